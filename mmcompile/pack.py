"""Packs a group's weights into the kernel's layout (docs/spec.md, layout).

One group is in memory at a time. Source weights are memory-mapped; the native module gathers,
quantizes and packs them in one pass over their bytes.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmcompile import _native
from mmcompile.errors import UnsupportedModelError
from mmcompile.formats import E8M0_BIAS
from mmcompile.graph import SourceModel
from mmcompile.packed import THREADS, PackedLinear, native_segments
from mmcompile.plan import SCALE_WORD, GroupPlan
from mmcompile.sites import LinearSite, SiteGroup

MAX_WEIGHT_SCALE = 248
"""Largest E8M0 scale byte of a weight: kernels widen 4- and 6-bit codes into E4M3 bytes and add up
to 6 to the byte, E4M3's bias less E2M1's or E2M3's; 254 is the largest number in E8M0."""


def pack_group(sites: SiteGroup, plan: GroupPlan, source: SourceModel) -> PackedLinear:
    """Reads, permutes, quantizes and packs the weights of a group.

    Raises:
        UnsupportedModelError: a weight is NaN or infinite, or too large for the kernels.
    """
    rows = sum(plan.out_channels)
    order = plan.channel_order()
    codes = np.empty((rows, plan.row_bytes), np.uint8)
    scales = np.empty((plan.scale_words, rows, SCALE_WORD), np.uint8)
    biases = []
    energy = np.zeros(2)
    start = 0
    for site in sites.sites:
        stop = start + site.out_channels
        own_scales = scales[:, start:stop]
        sums = _pack_site(site, plan, source, order, codes[start:stop], own_scales)
        if not np.isfinite(sums).all():
            raise _refusal(site, "weight-not-finite", "the weight holds NaN or infinity")
        # NVFP4's bytes, E4M3 without a sign, are below 128, and padding is 0.
        if (largest := int(own_scales.max())) > MAX_WEIGHT_SCALE:
            reason = (
                f"a block of the weight has the scale 2^{largest - E8M0_BIAS}, "
                f"kernels take up to 2^{MAX_WEIGHT_SCALE - E8M0_BIAS}"
            )
            raise _refusal(site, "weight-too-large", reason)
        energy += sums.sum(axis=0)
        biases.append(site.read_bias(source))
        start = stop
    return PackedLinear(
        order, codes.view(np.int8), scales.view(np.int8), np.concatenate(biases), _decibel(*energy)
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
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint8],
) -> npt.NDArray[np.float64]:
    """Packs one layer's rows; returns the sums of w² and of squared error per segment."""
    weight: Any = site.read_weight(source)
    is_bfloat16 = weight.dtype == ml_dtypes.bfloat16
    return _native.quantize_pack(
        weight.view(np.uint16) if is_bfloat16 else weight,
        site.channels_first,
        order,
        native_segments(plan.segments, "weight"),
        plan.weight_tensor_scale,
        codes,
        scales,
        THREADS,
        bf16=is_bfloat16,
    )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
