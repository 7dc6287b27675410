"""Random layers for the self-test, and what must come out, by numpy from `mmcompile.formats`.

Packing follows docs/spec.md, section 6, and kernels.h; nothing here asks the kernel library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmcompile.cuda.layers import Constants, LayerShape
from mmcompile.formats import BLOCK_FORMATS, E4M3, BlockFormat
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from mmcompile.quantize import (
    E4M3_SCALES,
    E8M0_SCALES,
    CodeArray,
    element_table,
    encode_elements,
    pack_codes,
    quantize_blocks,
)

F64 = npt.NDArray[np.float64]
FORMATS: tuple[BlockFormat, ...] = tuple(BLOCK_FORMATS.values())
TYPES: dict[int, tuple[str, Any]] = {
    FLOAT32: ("fp32", np.float32),
    FLOAT16: ("fp16", np.float16),
    BFLOAT16: ("bf16", ml_dtypes.bfloat16),
}
"""Name and numpy type of each `MmcType`."""
_ROUNDOFF = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}
_HALF_STEP = {FLOAT32: 2.0**-150, FLOAT16: 2.0**-25, BFLOAT16: 2.0**-134}


@dataclass(frozen=True)
class Operand:
    """One side of the product, per segment: codes uint8[rows, channels], scales[rows, blocks]."""

    codes: tuple[CodeArray, ...]
    scales: tuple[CodeArray, ...]


def random_x(random: np.random.Generator, rows: int, channels: int, kind: int) -> npt.NDArray[Any]:
    """Rows of different magnitude with ties, signed zeros and a few outliers; finite in fp16."""
    values = random.standard_normal((rows, channels))
    values *= np.exp2(random.integers(-6, 4, (rows, 1)))
    values[:, ::7] = np.round(values[:, ::7] * 4) / 4
    values[:, 3::11] *= 0.0
    values[:, random.random(channels) < 0.02] *= 50
    return values.astype(TYPES[kind][1])


def random_order(random: np.random.Generator, shape: LayerShape) -> npt.NDArray[np.int32]:
    """A permutation of x's channels, with -1 for every channel of padding."""
    order = np.full(shape.padded_channels, -1, np.int32)
    order[: shape.in_channels] = np.arange(shape.in_channels)
    random.shuffle(order)
    return order


def random_weight(random: np.random.Generator, shape: LayerShape) -> Operand:
    """All codes but NaN's; scales of ordinary size."""
    codes, scales = [], []
    for segment in shape.segments:
        fmt = FORMATS[segment.weight_format]
        finite = np.flatnonzero(~np.isnan(element_table(fmt.element))).astype(np.uint8)
        codes.append(random.choice(finite, (shape.out_channels, segment.channels)))
        low, high = (118, 126) if fmt.scale == "e8m0" else (1, 0x7F)
        blocks = (shape.out_channels, segment.channels // fmt.block)
        scales.append(random.integers(low, high, blocks).astype(np.uint8))
    return Operand(tuple(codes), tuple(scales))


def quantized(x: npt.NDArray[Any], order: npt.NDArray[np.int32], shape: LayerShape) -> Operand:
    """What docs/spec.md, sections 3 to 5, make of x."""
    values = x.astype(np.float32)
    permuted = np.where(order >= 0, values[:, np.maximum(order, 0)], np.float32(0))
    codes, scales, start = [], [], 0
    for segment in shape.segments:
        part = permuted[:, start : start + segment.channels]
        fmt = FORMATS[segment.act_format]
        found = quantize_blocks(part, fmt, segment.act_threshold, shape.act_tensor_scale)
        codes.append(found[0])
        scales.append(found[1])
        start += segment.channels
    return Operand(tuple(codes), tuple(scales))


def pack_activations(operand: Operand, shape: LayerShape) -> tuple[CodeArray, CodeArray]:
    """Codes uint8[rows, act_row_bytes] and scales uint8[words, rows, 4].

    Two formats of four bits multiply as they are; any other pair takes bytes of E4M3.
    """
    rows = []
    for codes, segment in zip(operand.codes, shape.segments, strict=True):
        act, weight = FORMATS[segment.act_format], FORMATS[segment.weight_format]
        if act.element.bits == weight.element.bits == 4:
            rows.append(pack_codes(codes, 4))
        elif act.element is E4M3:
            rows.append(codes)
        else:
            rows.append(encode_elements(element_table(act.element), E4M3)[codes])
    return np.concatenate(rows, axis=1), _scale_words(operand.scales)


def pack_constants(
    operand: Operand,
    shape: LayerShape,
    order: npt.NDArray[np.int32],
    bias: npt.NDArray[np.float32],
) -> Constants:
    """The weights as the node holds them."""
    rows = []
    for codes, segment in zip(operand.codes, shape.segments, strict=True):
        packed = pack_codes(codes, FORMATS[segment.weight_format].element.bits)
        rows.append(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 16))))
    return Constants(order, np.concatenate(rows, axis=1), _scale_words(operand.scales), bias)


def _scale_words(scales: Sequence[CodeArray]) -> CodeArray:
    words = []
    for part in scales:
        filled = np.pad(part, ((0, 0), (0, -part.shape[1] % 4)))
        words.append(filled.reshape(len(filled), -1, 4).transpose(1, 0, 2))
    return np.ascontiguousarray(np.concatenate(words))


def dequantized(operand: Operand, formats: Sequence[int], tensor_scale: float) -> F64:
    """The numbers that an operand stands for, exactly: float64[rows, K_pad]."""
    parts = []
    for codes, scales, number in zip(operand.codes, operand.scales, formats, strict=True):
        fmt = FORMATS[number]
        table, factor = (E8M0_SCALES, 1.0) if fmt.scale == "e8m0" else (E4M3_SCALES, tensor_scale)
        elements = element_table(fmt.element).astype(np.float64)[codes]
        block_scales = table.astype(np.float64)[scales] * factor
        parts.append(elements * np.repeat(block_scales, fmt.block, axis=1))
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Reference:
    """The exact y and how far it may be off, float64[M, N]."""

    exact: F64
    bound: F64


def reference(
    act: Operand,
    weight: Operand,
    bias: npt.NDArray[np.float32],
    shape: LayerShape,
    kind: int,
) -> Reference:
    """The float64 product of the dequantized operands.

    The bound is that of docs/spec.md, section 7, widened to tensor cores, which cut sums off
    instead of rounding them: per instruction of k >= 16 products, k + 1 aligned terms, their sum
    and one addition lose at most one place of fp32, 2^-23, of the sum of all magnitudes each. That
    is 19/16 of K_pad; 32 more stand for sums over warps and splits, the bias and the tensor scale
    (M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021). One rounding to
    y's type follows.
    """
    a = dequantized(act, [s.act_format for s in shape.segments], shape.act_tensor_scale)
    w = dequantized(weight, [s.weight_format for s in shape.segments], shape.weight_tensor_scale)
    exact = a @ w.T + bias
    magnitude = np.abs(a) @ np.abs(w).T + np.abs(bias)
    steps = 19 * shape.padded_channels // 16 + 32
    loss = steps * 2.0**-23 / (1 - steps * 2.0**-23) * magnitude + steps * 2.0**-149
    bound = loss + _ROUNDOFF[kind] * (np.abs(exact) + loss) + _HALF_STEP[kind]
    return Reference(exact, bound)
