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
from mmcompile.graph import SourceModel
from mmcompile.packed import THREADS, PackedLinear, native_segments
from mmcompile.plan import GroupPlan
from mmcompile.sites import LinearSite, SiteGroup


def pack_group(sites: SiteGroup, plan: GroupPlan, source: SourceModel) -> PackedLinear:
    """Reads, permutes, quantizes and packs the weights of a group.

    Raises:
        UnsupportedModelError: a weight is NaN or infinite.
    """
    rows = sum(plan.out_channels)
    order = plan.channel_order()
    codes = np.empty((rows, plan.row_bytes), np.uint8)
    scales = np.empty((rows, plan.scale_bytes), np.uint8)
    biases = []
    energy = np.zeros(2)
    start = 0
    for site in sites.sites:
        stop = start + site.out_channels
        sums = _pack_site(site, plan, source, order, codes[start:stop], scales[start:stop])
        if not np.isfinite(sums).all():
            raise UnsupportedModelError(
                "weight-not-finite",
                f"node {site.node}, weight {site.weight.name}",
                "the weight holds NaN or infinity",
                f"mend the model, or leave the layer alone with --exclude '{site.node}'",
            )
        energy += sums.sum(axis=0)
        biases.append(site.read_bias(source))
        start = stop
    return PackedLinear(
        order, codes.view(np.int8), scales.view(np.int8), np.concatenate(biases), _decibel(*energy)
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
