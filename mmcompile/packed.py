"""`PackedLinear`: weights in the kernel's layout, and what its bytes mean."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmcompile import _native
from mmcompile.plan import GroupPlan, Segment

THREADS = os.cpu_count() or 1


@dataclass(frozen=True)
class PackedLinear:
    """The constants of one `MicroMixLinear` node.

    Attributes:
        order: int32[K_pad].
        weight: int8[N, row_bytes].
        scales: int8[scale_words, N, 4].
        bias: float32[N].
        weight_sqnr_db: signal to quantization noise of all weights, in dB; infinite where exact.
    """

    order: npt.NDArray[np.int32]
    weight: npt.NDArray[np.int8]
    scales: npt.NDArray[np.int8]
    bias: npt.NDArray[np.float32]
    weight_sqnr_db: float

    def constants(self) -> tuple[npt.NDArray[Any], ...]:
        """The node's constant inputs, in the order of `ops.INPUTS`."""
        return (self.order, self.weight, self.scales, self.bias)


def dequantize_weight(packed: PackedLinear, plan: GroupPlan) -> npt.NDArray[np.float32]:
    """The weights that the packed bytes mean: float32[N, K_pad] in the permuted order."""
    weight = np.empty((packed.weight.shape[0], plan.padded_channels), np.float32)
    _native.dequantize(
        packed.weight.view(np.uint8),
        packed.scales.view(np.uint8),
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


def native_segments(segments: tuple[Segment, ...], side: str) -> list[tuple[int, int, float]]:
    """Segments as the native module takes them: (channels, format id, threshold)."""
    if side == "weight":
        return [(s.channels, s.weight.id, s.weight_threshold) for s in segments]
    return [(s.channels, s.activation.id, s.act_threshold) for s in segments]
