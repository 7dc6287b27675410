"""`PackedLinear`: weights in the kernel's layout, and what its bytes mean."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mmcompile import _native
from mmcompile.plan import GroupPlan, Segment

THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class SiteRounding:
    """How the weight of one layer was rounded, where error feedback was asked for.

    Attributes:
        node: the layer.
        gain_db: by how much the output's error on inputs held back fell below that of rounding to
            nearest, in dB; 0 where that was kept.
        reason: why rounding to nearest was kept; empty where it was not.
    """

    node: str
    gain_db: float
    reason: str


@dataclass(frozen=True)
class PackedLinear:
    """The constants of one `MicroMixLinear` node.

    Attributes:
        order: int32[K_pad].
        weight: int8[N, row_bytes].
        scales: int8[scale_words, N, 4].
        bias: float32[N].
        weight_sqnr_db: signal to quantization noise of all weights, in dB; infinite where exact.
        rounding: layer by layer, where error feedback was asked for; empty elsewhere.
    """

    order: npt.NDArray[np.int32]
    weight: npt.NDArray[np.int8]
    scales: npt.NDArray[np.int8]
    bias: npt.NDArray[np.float32]
    weight_sqnr_db: float
    rounding: tuple[SiteRounding, ...] = ()

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        """The node's constant inputs, in the order of `ops.INPUTS`."""
        return (self.order, self.weight, self.scales, self.bias)


def dequantize_weight(packed: PackedLinear, plan: GroupPlan) -> npt.NDArray[np.float32]:
    """The weights that the packed bytes mean: float32[N, K_pad] in the permuted order."""
    return dequantize_rows(packed.weight.view(np.uint8), packed.scales.view(np.uint8), plan)


def dequantize_rows(
    codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8], plan: GroupPlan
) -> npt.NDArray[np.float32]:
    """The same of some packed rows: uint8[N, row_bytes] and uint8[scale_words, N, 4]."""
    weight = np.empty((len(codes), plan.padded_channels), np.float32)
    _native.dequantize(
        codes,
        scales,
        native_segments(plan.segments, "weight"),
        plan.weight_tensor_scale,
        weight,
        THREADS,
    )
    return weight


def dequantize_activations(
    rows: npt.NDArray[np.float32], plan: GroupPlan
) -> npt.NDArray[np.float32]:
    """What the kernel makes of activation rows[R, K]: float32[R, K_pad], permuted, quantized."""
    return _native.quantize_rows(
        np.ascontiguousarray(rows, np.float32),
        plan.channel_order(),
        native_segments(plan.segments, "act"),
        plan.act_tensor_scale,
        THREADS,
    )


def native_segments(
    segments: tuple[Segment, ...], side: Literal["act", "weight"]
) -> list[tuple[int, int, float | None]]:
    """Segments as the native module takes them: (channels, format id, threshold).

    Where scales are searched there is no threshold.
    """
    if side == "weight":
        return [
            (s.channels, s.weight.id, s.weight_threshold if s.weight_scales == "rule" else None)
            for s in segments
        ]
    return [(s.channels, s.activation.id, s.act_threshold) for s in segments]
