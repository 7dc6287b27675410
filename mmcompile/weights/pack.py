"""Packs a group's weights into the kernel's layout (docs/spec.md, layout).

One group is in memory at a time. Source weights are memory-mapped; the native module gathers,
quantizes and packs them in one pass over their bytes. With sampled inputs at hand, weights are
corrected for the rounding of their inputs (`correction`) and rounded with error feedback
(`feedback`) besides, and each layer keeps what errs less on inputs held back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmcompile import _native
from mmcompile.dtypes import F32, F64, U8
from mmcompile.errors import UnsupportedModelError
from mmcompile.formats import E8M0_BIAS
from mmcompile.model.sites import LinearSite, SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.packed import (
    THREADS,
    PackedLinear,
    SiteRounding,
    dequantize_activations,
    dequantize_rows,
    native_segments,
)
from mmcompile.plan import SCALE_WORD, GroupPlan
from mmcompile.weights.correction import corrected, correction
from mmcompile.weights.feedback import round_with_feedback
from mmcompile.weights.hessian import Factor, factorize, hessian

MAX_WEIGHT_SCALE = 248
"""Largest E8M0 scale byte of a weight: kernels widen 4- and 6-bit codes into E4M3 bytes and add up
to 6 to the byte, E4M3's bias less E2M1's or E2M3's; 254 is the largest number in E8M0."""
WEIGHT_BLOCK = 2**23
"""Weights that error feedback works on at once: 32 MiB as float32."""
LEAST_HESSIAN_ROWS = 32
"""Sampled inputs below which a Hessian says too little."""


@dataclass(frozen=True)
class SampledInputs:
    """Sampled inputs of a group's layers, for error feedback.

    Attributes:
        seen: float32[R, K], what the Hessian is made of.
        held_back: float32[S, K] of other samples, what both ways of rounding are compared on.
        dampings: what is added to the Hessian's diagonal, relative to its mean; of several the
            one with the least error is kept.
    """

    seen: F32
    held_back: F32
    dampings: tuple[float, ...]


def pack_group(
    sites: SiteGroup, plan: GroupPlan, source: SourceModel, inputs: SampledInputs | None = None
) -> PackedLinear:
    """Reads, permutes, quantizes and packs the weights of a group.

    Args:
        sites: the layers.
        plan: order, segments and scales.
        source: where the weights lie.
        inputs: for error feedback; without them weights are rounded to nearest.

    Raises:
        UnsupportedModelError: a weight is NaN or infinite, or too large for the kernels.
    """
    rows = sum(plan.out_channels)
    order = plan.channel_order()
    codes = np.empty((rows, plan.row_bytes), np.uint8)
    scales = np.empty((plan.scale_words, rows, SCALE_WORD), np.uint8)
    biases = []
    layers: list[_Layer] = []
    energies = []
    start = 0
    for site in sites.sites:
        part = slice(start, start + site.out_channels)
        layer = _Layer(site, codes[part], scales[:, part])
        sums = _pack_site(site, plan, source, order, layer.codes, layer.scales)
        if not np.isfinite(sums).all():
            raise _refusal(site, "weight-not-finite", "the weight holds NaN or infinity")
        energies.append(sums.sum(axis=0))
        layers.append(layer)
        biases.append(site.read_bias(source))
        start = part.stop
    roundings = []
    improved = [] if inputs is None else _Feedback(plan, inputs).improve(layers, source)
    for (rounding, noise), energy in zip(improved, energies, strict=False):
        roundings.append(rounding)
        if noise is not None:
            energy[1] = noise
    for layer in layers:
        # NVFP4's bytes, E4M3 without a sign, are below 128, and padding is 0.
        if (largest := int(layer.scales.max())) > MAX_WEIGHT_SCALE:
            reason = (
                f"a block of the weight has the scale 2^{largest - E8M0_BIAS}, "
                f"kernels take up to 2^{MAX_WEIGHT_SCALE - E8M0_BIAS}"
            )
            raise _refusal(layer.site, "weight-too-large", reason)
    return PackedLinear(
        order,
        codes.view(np.int8),
        scales.view(np.int8),
        np.concatenate(biases),
        _decibel(*np.sum(energies, axis=0)),
        tuple(roundings),
    )


def _refusal(site: LinearSite, code: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        code,
        f"node {site.node}, weight {site.weight.name}",
        reason,
        f"mend the model, or leave the layer alone with --exclude '{site.node}'",
    )


def _pack_site(
    site: LinearSite,
    plan: GroupPlan,
    source: SourceModel,
    order: npt.NDArray[np.int32],
    codes: U8,
    scales: U8,
) -> F64:
    """Packs one layer's rows; returns the sums of w² and of squared error per segment."""
    weight, is_bfloat16 = _native_weight(site, source)
    return _native.quantize_pack(
        weight,
        site.channels_first,
        order,
        native_segments(plan.segments, "weight"),
        plan.weight_tensor_scale,
        codes,
        scales,
        THREADS,
        bf16=is_bfloat16,
    )


def _native_weight(site: LinearSite, source: SourceModel) -> tuple[Any, bool]:
    """A weight as the native module takes it, and whether it holds bits of bfloat16."""
    weight: Any = site.read_weight(source)
    is_bfloat16 = weight.dtype == ml_dtypes.bfloat16
    return weight.view(np.uint16) if is_bfloat16 else weight, is_bfloat16


@dataclass(frozen=True)
class _Layer:
    """A layer and its rows of the group's codes and scales, which are written in place."""

    site: LinearSite
    codes: U8
    scales: U8


@dataclass(frozen=True)
class _Trial:
    """What one damping gave a layer.

    Attributes:
        before: squared error of the output on inputs held back, of the rows kept so far.
        after: the same with error feedback; the rows were replaced where it is smaller.
        noise: Σ (w − ŵ)² with error feedback.
    """

    before: float
    after: float
    noise: float


class _Feedback:
    """Error feedback for the layers of one group, which share their inputs and so the Hessian."""

    def __init__(self, plan: GroupPlan, inputs: SampledInputs) -> None:
        self._plan = plan
        self._inputs = inputs
        self._order = plan.channel_order()
        self._exact = self._in_order(inputs.held_back)
        self._quantized = dequantize_activations(inputs.held_back, plan)

    def improve(
        self, layers: Sequence[_Layer], source: SourceModel
    ) -> list[tuple[SiteRounding, float | None]]:
        """Replaces a layer's packed rows where error feedback errs less on inputs held back.

        Args:
            layers: rounded to nearest; each is decided on its own.
            source: where the weights lie.

        Returns:
            For each layer what was kept and why, and Σ (w − ŵ)² where it is error feedback's.
        """
        if reason := self._unfit():
            return [(SiteRounding(layer.site.node, 0.0, reason), None) for layer in layers]
        trials: list[list[_Trial]] = [[] for _ in layers]
        seen = dequantize_activations(self._inputs.seen, self._plan)
        for damping in self._inputs.dampings:
            factor = gain = None  # lets go of their memory before the next are made
            factor = factorize(hessian(seen), damping)
            if factor is not None:
                gain = correction(factor, self._in_order(self._inputs.seen), seen)
                for layer, found in zip(layers, trials, strict=True):
                    found.append(self._try(layer, factor, gain, source))
        return [
            _outcome(layer.site.node, found) for layer, found in zip(layers, trials, strict=True)
        ]

    def _unfit(self) -> str:
        """Why the inputs are of no use; empty where they are."""
        parts = (self._inputs.seen, self._inputs.held_back)
        if min(map(len, parts)) < LEAST_HESSIAN_ROWS:
            return f"fewer than {LEAST_HESSIAN_ROWS} sampled inputs"
        if not all(np.isfinite(part).all() for part in parts):
            return "the sampled inputs hold NaN or infinity"
        return ""

    def _try(self, layer: _Layer, factor: Factor, gain: F32 | None, source: SourceModel) -> _Trial:
        """Rounds a layer's weight; its rows are replaced where that errs less."""
        codes, scales = np.zeros_like(layer.codes), np.zeros_like(layer.scales)
        before, after = np.zeros(2), np.zeros(2)
        for rows, weight in self._weights(layer.site, source):
            exact = self._exact @ weight.T
            target = weight
            if gain is not None:
                target = corrected(weight, gain, self._quantized, exact)
            round_with_feedback(target, self._plan, factor, codes[rows], scales[:, rows])
            before += self._errors(weight, exact, layer.codes[rows], layer.scales[:, rows])
            after += self._errors(weight, exact, codes[rows], scales[:, rows])
        if after[0] < before[0]:
            layer.codes[:], layer.scales[:] = codes, scales
        return _Trial(float(before[0]), float(after[0]), float(after[1]))

    def _errors(self, weight: F32, exact: F32, codes: U8, scales: U8) -> tuple[float, float]:
        """Squared error of packed rows: of the output on inputs held back, and of the weights.

        The output's inputs are quantized as kernels do it; `exact` is float32[S, N].
        """
        packed = dequantize_rows(codes, scales, self._plan)
        difference = self._quantized @ packed.T
        difference -= exact
        packed -= weight
        return float(np.vdot(difference, difference)), float(np.vdot(packed, packed))

    def _weights(self, site: LinearSite, source: SourceModel) -> Iterator[tuple[slice, F32]]:
        """The weight block by block: the rows, and float32[rows, K_pad] in the plan's order."""
        whole, is_bfloat16 = _native_weight(site, source)
        step = max(1, WEIGHT_BLOCK // self._plan.padded_channels)
        for first in range(0, site.out_channels, step):
            rows = slice(first, min(first + step, site.out_channels))
            part = whole[:, rows] if site.channels_first else whole[rows]
            yield (
                rows,
                _native.order_rows(
                    part, site.channels_first, self._order, THREADS, bf16=is_bfloat16
                ),
            )

    def _in_order(self, values: F32) -> F32:
        """Rows[R, K] in the plan's order: float32[R, K_pad], zeros for padding."""
        return _native.order_rows(values, False, self._order, THREADS)


def _outcome(node: str, trials: Sequence[_Trial]) -> tuple[SiteRounding, float | None]:
    """What became of a layer's weight after all dampings."""
    if not trials:
        return SiteRounding(node, 0.0, "the Hessian is not positive definite"), None
    kept = [trial for trial in trials if trial.after < trial.before]
    if not kept:
        return SiteRounding(node, 0.0, "no better on samples held back"), None
    return SiteRounding(node, _decibel(trials[0].before, kept[-1].after), ""), kept[-1].noise


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
