"""Sensitivity: what a format in a run of channels does to the model's output.

For a layer y = W·x, a change δy moves v·output by g·δy in first order, g = ∂(v·output)/∂y. With
x̂ and Ŵ the quantized operands, the channels j of a run b contribute Σ_{j∈b} x̂_j·(gŴ)_j −
x_j·(gW)_j, and

    D[b, f] = mean over tokens and directions v of (Σ_{j∈b} x̂_j·(gŴ)_j − x_j·(gW)_j)².

Directions are standard normal, so that D is the expected squared length of the output's change,
per token. Errors of different runs are taken to be uncorrelated: their D add up. One product
[tokens, N] × [N, K] per weight format gives the D of all runs and of all activation formats.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmcompile import _native
from mmcompile.calib.gradient_rows import GroupRows
from mmcompile.dtypes import F32, F64, IntArray
from mmcompile.formats import THRESHOLDS, WeightScales, block_format
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.packed import THREADS, dequantize_activations, native_segments
from mmcompile.plan import PADDING, GroupPlan
from mmcompile.policy.order import Bounds
from mmcompile.targets.target import FormatPair

WEIGHT_BLOCK = 2**23
"""Weights that are quantized at once: 32 MiB as float32."""


@dataclass(frozen=True)
class Scales:
    """How block scales are found, the same in measuring and in the plan.

    Attributes:
        rule: the rule of `formats.THRESHOLDS`.
        act_tensor: NVFP4's tensor scale of the activations.
        weight_tensor: NVFP4's tensor scale of the weights.
        weights: whether weights follow the rule or the better of two scales is searched.
    """

    rule: str
    act_tensor: float = 1.0
    weight_tensor: float = 1.0
    weights: WeightScales = "rule"

    def act_threshold(self, fmt: str) -> float:
        """The mantissa threshold of a format of activations."""
        return THRESHOLDS[self.rule][fmt]

    def weight_threshold(self, fmt: str) -> float | None:
        """That of a format of weights; None where scales are searched."""
        return THRESHOLDS[self.rule][fmt] if self.weights == "rule" else None


@dataclass(frozen=True)
class Sampled:
    """A group of layers and sampled tokens of it.

    Attributes:
        group: the layers.
        source: where their weights lie.
        rows: the tokens.
    """

    group: SiteGroup
    source: SourceModel
    rows: GroupRows

    @functools.cached_property
    def exact(self) -> F32:
        """g·W, float32[D, R, K] in the channels' own order."""
        gradients = self.rows.gradients
        response = np.zeros((*gradients.shape[:2], self.group.in_channels), np.float32)
        for start, weight in weight_rows(self.group, self.source):
            response += gradients[:, :, start : start + len(weight)] @ weight
        return response


@dataclass(frozen=True)
class Responses:
    """g·W of the sampled tokens, exact and with quantized weights, in a channel order.

    Attributes:
        exact: float32[D, R, K_pad].
        quantized: the same by weight format.
    """

    exact: F32
    quantized: Mapping[str, F32]


def channel_damage(
    rows: GroupRows, responses: Responses, order: IntArray, pair: FormatPair, scales: Scales
) -> F64:
    """Damage of every channel alone: D for runs of one channel, float64[K_pad]."""
    quantized = _quantized_activations(rows, order, pair.act, scales)
    wanted = _exact_contributions(rows, responses, order)
    return _squared_errors(quantized, responses.quantized[pair.weight], wanted, None)


def run_damage(
    rows: GroupRows,
    responses: Responses,
    order: IntArray,
    pairs: Sequence[FormatPair],
    scales: Scales,
    bounds: Bounds,
) -> F64:
    """D of every run and pair, float64[runs, pairs]; `bounds` are those of `order.run_bounds`."""
    damage = np.empty((len(bounds) - 1, len(pairs)))
    wanted = _exact_contributions(rows, responses, order)
    for act in dict.fromkeys(pair.act for pair in pairs):
        quantized = _quantized_activations(rows, order, act, scales)
        for index, pair in enumerate(pairs):
            if pair.act == act:
                changed = responses.quantized[pair.weight]
                damage[:, index] = _squared_errors(quantized, changed, wanted, bounds)
    return damage


def responses_of(
    sampled: Sampled, order: IntArray, formats: Sequence[str], scales: Scales
) -> Responses:
    """g·W for the weight as it is and in the given formats, in a channel order.

    Weights are read, ordered and quantized in blocks of rows: beside the result, about
    `WEIGHT_BLOCK` numbers are in memory at a time.

    Args:
        sampled: the layers and sampled tokens of them.
        order: int32[K_pad].
        formats: names of the weight formats, without repetition.
        scales: how block scales are found.
    """
    gradients = sampled.rows.gradients
    quantized = {name: np.zeros((*gradients.shape[:2], order.size), np.float32) for name in formats}
    for start, weight in weight_rows(sampled.group, sampled.source):
        gradient = gradients[:, :, start : start + len(weight)]
        for name in formats:
            rounded = quantized_rows(
                weight, order, name, scales.weight_threshold(name), scales.weight_tensor
            )
            quantized[name] += gradient @ rounded
    return Responses(in_order(sampled.exact, order), quantized)


def contributions(sampled: Sampled, plan: GroupPlan) -> F32:
    """x̂_j·(gŴ)_j − x_j·(gW)_j of every token and position of the order: float32[D, R, K_pad]."""
    rows, order = sampled.rows, plan.channel_order()
    segments = native_segments(plan.segments, "weight")
    quantized = np.zeros((*rows.gradients.shape[:2], order.size), np.float32)
    for start, weight in weight_rows(sampled.group, sampled.source):
        rounded = _native.quantize_rows(weight, order, segments, plan.weight_tensor_scale, THREADS)
        quantized += rows.gradients[:, :, start : start + len(weight)] @ rounded
    quantized *= dequantize_activations(rows.activations, plan)
    real = order != PADDING
    quantized[:, :, real] -= (rows.activations * sampled.exact)[:, :, order[real]]
    return quantized


def mean_squares(errors: F32) -> F64:
    """Mean over tokens and directions: float64[…] of the last axis."""
    total = np.einsum("drk,drk->k", errors, errors, dtype=np.float64)
    mean: F64 = np.nan_to_num(total, nan=0.0) / max(1, errors.shape[0] * errors.shape[1])
    return mean


def quantized_rows(
    values: F32, order: IntArray, fmt: str, threshold: float | None, tensor_scale: float
) -> F32:
    """Rows[R, K] in one format, as kernels see them: float32[R, K_pad] in the given order.

    A threshold of None searches the better of two scales per block, as for weights.
    """
    segments = [(order.size, block_format(fmt).id, threshold)]
    scale = tensor_scale if block_format(fmt).has_tensor_scale else 1.0
    return _native.quantize_rows(values, order, segments, scale, THREADS)


def in_order(values: F32, order: IntArray) -> F32:
    """Values[…, K] with their channels ordered: float32[…, K_pad], zeros where padding is."""
    ordered = np.take(values, np.maximum(order, 0), axis=-1)
    ordered[..., order == PADDING] = 0
    return ordered


def weight_amax(group: SiteGroup, source: SourceModel) -> F32:
    """Largest finite |w| per input channel over all layers of a group, float32[K]."""
    largest = np.zeros(group.in_channels, np.float32)
    for _, weight in weight_rows(group, source):
        peak = np.maximum(weight.max(axis=0), -weight.min(axis=0))
        if not np.isfinite(peak).all():
            peak = np.where(np.isfinite(weight), np.abs(weight), np.float32(0)).max(axis=0)
        np.maximum(largest, peak, out=largest)
    return largest


def output_energy(group: SiteGroup, source: SourceModel, activations: F32) -> float:
    """Mean |x·W|² of rows[R, K], over rows; biases are not counted."""
    total = 0.0
    for _, weight in weight_rows(group, source):
        product = activations @ weight.T
        total += float(np.einsum("rn,rn->", product, product, dtype=np.float64))
    return total / max(1, len(activations))


def weight_rows(group: SiteGroup, source: SourceModel) -> Iterator[tuple[int, F32]]:
    """The weights of a group as float32[rows, K], block by block, and each block's first row.

    Blocks of weights that are stored [K, N] are transposed views.
    """
    step = max(1, WEIGHT_BLOCK // group.in_channels)
    start = 0
    for site in group.sites:
        weight = site.read_weight(source)
        rows = weight.T if site.channels_first else weight
        for first in range(0, site.out_channels, step):
            yield start + first, np.asarray(rows[first : first + step], np.float32)
        start += site.out_channels


def _quantized_activations(rows: GroupRows, order: IntArray, fmt: str, scales: Scales) -> F32:
    """The sampled tokens in one format, float32[R, K_pad]."""
    threshold = scales.act_threshold(fmt)
    return quantized_rows(rows.activations, order, fmt, threshold, scales.act_tensor)


def _exact_contributions(rows: GroupRows, responses: Responses, order: IntArray) -> F32:
    """x_j·(gW)_j: float32[D, R, K_pad]."""
    found: F32 = responses.exact * in_order(rows.activations, order)
    return found


def _squared_errors(quantized: F32, changed: F32, wanted: F32, bounds: Bounds | None) -> F64:
    """Mean over tokens and directions of the squared error of every run, or channel.

    Args:
        quantized: x̂, float32[R, K_pad].
        changed: gŴ, float32[D, R, K_pad].
        wanted: x_j·(gW)_j, likewise.
        bounds: of the runs; None takes every channel alone.
    """
    total = np.zeros(quantized.shape[1] if bounds is None else len(bounds) - 1)
    for direction, exact in zip(changed, wanted, strict=True):
        error = quantized * direction
        error -= exact
        sums = error if bounds is None else np.add.reduceat(error, bounds[:-1], axis=1)
        total += np.einsum("rb,rb->b", sums, sums, dtype=np.float64)
    total /= max(1, changed.shape[0] * changed.shape[1])
    return total
