"""Random operands of a layer, the numbers that they stand for, and how the kernels hold them.

Codes and scale bytes come from a random generator or from `mmcompile.formats`, the reference of
docs/spec.md; packing follows its section 6 and kernels.h. Nothing here asks the kernel library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.calls import Constants
from mmcompile.cuda.layers import LayerShape
from mmcompile.cuda.number_types import F32, F64, NUMBER_TYPES, BitArray, narrow
from mmcompile.formats import BLOCK_FORMATS, E4M3, BlockFormat
from mmcompile.quantize import (
    E4M3_SCALES,
    E8M0_SCALES,
    CodeArray,
    element_table,
    encode_elements,
    pack_codes,
    quantize_blocks,
)

Random = np.random.Generator
Order = npt.NDArray[np.int32]
FORMATS: tuple[BlockFormat, ...] = tuple(BLOCK_FORMATS.values())
X_KINDS = ("normal", "outliers", "ties", "any bits")
EXACT_UNIT = 0.25
"""Products of two elements of `exact_operand` are multiples of this."""
_E4M3_ONE, _E4M3_TWO = 0x38, 0x40


@dataclass(frozen=True)
class Operand:
    """One side of the product, per segment: codes uint8[rows, channels], scales[rows, blocks]."""

    codes: tuple[CodeArray, ...]
    scales: tuple[CodeArray, ...]


def act_formats(shape: LayerShape) -> tuple[BlockFormat, ...]:
    """Of each segment's activations."""
    return tuple(FORMATS[segment.act_format] for segment in shape.segments)


def weight_formats(shape: LayerShape) -> tuple[BlockFormat, ...]:
    """Of each segment's weights."""
    return tuple(FORMATS[segment.weight_format] for segment in shape.segments)


def any_operand(
    random: Random,
    shape: LayerShape,
    formats: Sequence[BlockFormat],
    rows: int,
    scales: tuple[int, int] = (110, 140),
) -> Operand:
    """All codes but NaN's; E8M0 scale bytes from a range, E4M3 ones from all without a sign."""
    codes, found = [], []
    for segment, fmt in zip(shape.segments, formats, strict=True):
        allowed = np.flatnonzero(~np.isnan(element_table(fmt.element))).astype(np.uint8)
        codes.append(random.choice(allowed, (rows, segment.channels)))
        low, high = scales if fmt.scale == "e8m0" else (0, 0x7F)
        blocks = (rows, segment.channels // fmt.block)
        found.append(random.integers(low, high, blocks).astype(np.uint8))
    return Operand(tuple(codes), tuple(found))


def exact_operand(
    random: Random, shape: LayerShape, formats: Sequence[BlockFormat], rows: int
) -> Operand:
    """Multiples of 1/2 up to 6, and scales of 1 and 2.

    While no sum of their products' magnitudes reaches 2^24 units, fp32 holds every partial sum in
    any order, rounding or truncating: the product is the same, bit for bit, on any machine.
    """
    codes, scales = [], []
    for segment, fmt in zip(shape.segments, formats, strict=True):
        table = element_table(fmt.element)
        with np.errstate(invalid="ignore"):
            allowed = np.flatnonzero((np.abs(table) <= 6) & (table * 2 == np.rint(table * 2)))
        codes.append(random.choice(allowed.astype(np.uint8), (rows, segment.channels)))
        ones = (127, 128) if fmt.scale == "e8m0" else (_E4M3_ONE, _E4M3_TWO)
        blocks = (rows, segment.channels // fmt.block)
        scales.append(random.choice(np.array(ones, np.uint8), blocks))
    return Operand(tuple(codes), tuple(scales))


def random_order(random: Random, shape: LayerShape) -> Order:
    """A permutation of x's channels, with -1 for every channel of padding."""
    order = np.full(shape.padded_channels, -1, np.int32)
    order[: shape.in_channels] = np.arange(shape.in_channels)
    random.shuffle(order)
    return order


def random_x(random: Random, kind: str, rows: int, channels: int, number_type: int) -> BitArray:
    """Bits of x.

    normal: Gaussian, rows of different magnitudes. outliers: Gaussian with channels many times
    larger, rows of zeros and signed zeros, subnormals. ties: small multiples of powers of two,
    where rounding meets ties and maxima meet thresholds. any bits: all of them, and an infinity or
    a NaN in every row.
    """
    if kind == "any bits":
        bits = NUMBER_TYPES[number_type].bits
        length = 8 * NUMBER_TYPES[number_type].size
        found = random.integers(0, 2**length, (rows, channels), bits)
        # NaN and Inf are rare enough for most blocks of 16-bit numbers to be free of them.
        tame = random.random((rows, channels)) < 0.9
        found = np.where(tame, found & ~bits(1 << length - 2), found)
        special = narrow(np.array([np.inf, -np.inf, np.nan], np.float32), number_type)
        found[np.arange(rows), random.integers(channels, size=rows)] = random.choice(special, rows)
        return found
    if kind == "ties":
        steps = random.integers(-64, 65, (rows, channels)).astype(np.float32) / 8
        powers = random.integers(-6, 7, (rows, 1))
        return narrow(np.ldexp(steps, powers), number_type)
    values = random.standard_normal((rows, channels), np.float32)
    values *= np.exp2(random.integers(-6, 7, (rows, 1))).astype(np.float32)
    if kind == "outliers":
        values[:, random.random(channels) < 0.02] *= np.float32(60)
        values[random.random(rows) < 0.1] *= np.float32(0)
        values[random.random(rows) < 0.1] *= np.float32(2.0**-22)
    return narrow(values, number_type)


def quantized(x: F32, order: Order, shape: LayerShape) -> Operand:
    """What docs/spec.md, sections 3 to 5, make of x; entries outside of x mean zero."""
    inside = (order >= 0) & (order < x.shape[1])
    permuted = np.where(inside, x[:, np.where(inside, order, 0)], np.float32(0))
    codes, scales, start = [], [], 0
    for segment in shape.segments:
        part = permuted[:, start : start + segment.channels]
        fmt = FORMATS[segment.act_format]
        found = quantize_blocks(part, fmt, segment.act_threshold, shape.act_tensor_scale)
        codes.append(found[0])
        scales.append(found[1])
        start += segment.channels
    return Operand(tuple(codes), tuple(scales))


def act_values(operand: Operand, shape: LayerShape) -> F64:
    """The numbers that quantized activations stand for, exactly: float64[rows, K_pad]."""
    return _values(operand, act_formats(shape), shape.act_tensor_scale)


def weight_values(operand: Operand, shape: LayerShape) -> F64:
    """The numbers that weights stand for, exactly: float64[N, K_pad]."""
    return _values(operand, weight_formats(shape), shape.weight_tensor_scale)


def _values(operand: Operand, formats: Sequence[BlockFormat], tensor_scale: float) -> F64:
    parts = []
    for codes, scales, fmt in zip(operand.codes, operand.scales, formats, strict=True):
        table, factor = (E8M0_SCALES, 1.0) if fmt.scale == "e8m0" else (E4M3_SCALES, tensor_scale)
        elements = element_table(fmt.element).astype(np.float64)[codes]
        block_scales = table.astype(np.float64)[scales] * factor
        parts.append(elements * np.repeat(block_scales, fmt.block, axis=1))
    return np.concatenate(parts, axis=1)


def pack_activations(operand: Operand, shape: LayerShape) -> tuple[CodeArray, CodeArray]:
    """Codes uint8[rows, act_row_bytes] and scales uint8[words, rows, 4].

    Two formats of four bits multiply as they are; any other pair takes bytes of E4M3.
    """
    rows = []
    for codes, act, weight in zip(
        operand.codes, act_formats(shape), weight_formats(shape), strict=True
    ):
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
    order: Order,
    bias: npt.NDArray[np.float32] | None = None,
) -> Constants:
    """The weights as the node holds them."""
    rows = []
    for codes, fmt in zip(operand.codes, weight_formats(shape), strict=True):
        packed = pack_codes(codes, fmt.element.bits)
        rows.append(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 16))))
    return Constants(order, np.concatenate(rows, axis=1), _scale_words(operand.scales), bias)


def _scale_words(scales: Sequence[CodeArray]) -> CodeArray:
    words = []
    for part in scales:
        filled = np.pad(part, ((0, 0), (0, -part.shape[1] % 4)))
        words.append(filled.reshape(len(filled), -1, 4).transpose(1, 0, 2))
    return np.ascontiguousarray(np.concatenate(words))
