"""Layers for the checks: splits of K into segments, channel orders, operands, packed operands.

Operands are plain codes and scale bytes, from `mmcompile.formats` (the reference of docs/spec.md)
or from a random generator; packing follows docs/spec.md, section 6, and kernels.h.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from mmcompile.formats import BLOCK_FORMATS, E4M3, BlockFormat
from mmcompile.kernels import Linear, LinearSegment
from mmcompile.quantize import (
    E4M3_SCALES,
    E8M0_SCALES,
    CodeArray,
    element_table,
    encode_elements,
    pack_codes,
    quantize_blocks,
)
from tests.gpu.machine import Machine
from tests.gpu.number_types import F32, F64

FORMATS: tuple[BlockFormat, ...] = tuple(BLOCK_FORMATS.values())
MXFP4, E2M3, E3M2, MXFP8, NVFP4 = range(5)
SEGMENT_STEP = 32
Random = np.random.Generator
Order = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Layer:
    """A linear layer without its weights."""

    in_channels: int
    out_channels: int
    segments: tuple[LinearSegment, ...]
    act_tensor_scale: float = 1.0
    weight_tensor_scale: float = 1.0

    @property
    def padded_channels(self) -> int:
        return sum(segment.channels for segment in self.segments)

    def create(self, machine: Machine) -> Linear:
        return machine.library.linear(
            self.in_channels,
            self.out_channels,
            self.segments,
            self.act_tensor_scale,
            self.weight_tensor_scale,
        )


@dataclass(frozen=True)
class Codes:
    """One operand's part of a segment: codes uint8[rows, channels], scales uint8[rows, blocks]."""

    codes: CodeArray
    scales: CodeArray


def segments_of(pairs: Sequence[tuple[int, int, int]]) -> tuple[LinearSegment, ...]:
    """Segments from (channels, activation format, weight format), under various thresholds."""
    thresholds = itertools.cycle((1.75, 2.0, 1.5, 1.875, 1.0))
    return tuple(
        LinearSegment(*pair, threshold)
        for pair, threshold in zip(pairs, thresholds, strict=False)
        if pair[0] > 0
    )


def _share(channels: int, eighths: int) -> int:
    return channels * eighths // 8 // SEGMENT_STEP * SEGMENT_STEP


def _micromix(channels: int) -> list[tuple[int, int, int]]:
    six, eight = _share(channels, 2), _share(channels, 1)
    return [(channels - six - eight, MXFP4, MXFP4), (six, E3M2, E3M2), (eight, MXFP8, MXFP8)]


def _every_pair(channels: int) -> list[tuple[int, int, int]]:
    """All 16 MX pairs and NVFP4, interleaved; odd numbers of blocks; the last takes the rest."""
    pairs = [(a, w) for a in range(4) for w in range(4)]
    pairs.insert(5, (NVFP4, NVFP4))
    pairs.insert(11, (NVFP4, NVFP4))
    lengths = itertools.cycle((32, 96, 64, 160))
    found = [(length, a, w) for (a, w), length in zip(pairs, lengths, strict=False)]
    rest = channels - sum(length for length, _, _ in found)
    return [*found, (max(rest, SEGMENT_STEP), MXFP8, MXFP4)]


def _thirty_two(channels: int) -> list[tuple[int, int, int]]:
    """As many segments as the library takes."""
    length = max(channels // 32 // SEGMENT_STEP, 1) * SEGMENT_STEP
    kinds = ((MXFP4, MXFP4), (NVFP4, NVFP4), (E2M3, MXFP4), (MXFP8, E3M2))
    return [(length, *kinds[i * i % 7 % 4]) for i in range(32)]


def _uniform(act: int, weight: int) -> Callable[[int], list[tuple[int, int, int]]]:
    return lambda channels: [(channels, act, weight)]


MIXES: dict[str, Callable[[int], list[tuple[int, int, int]]]] = {
    "mxfp4": _uniform(MXFP4, MXFP4),
    "e2m3": _uniform(E2M3, E2M3),
    "e3m2": _uniform(E3M2, E3M2),
    "mxfp8": _uniform(MXFP8, MXFP8),
    "nvfp4": _uniform(NVFP4, NVFP4),
    "a8w4": _uniform(MXFP8, MXFP4),
    "a4w8": _uniform(MXFP4, MXFP8),
    "micromix": _micromix,
    "every_pair": _every_pair,
    "thirty_two": _thirty_two,
}
"""Splits of about so many channels, a multiple of 32, by name."""


def layer(mix: str, channels: int, out_channels: int, missing: int = 0) -> Layer:
    """A layer of a mix, whose x has `missing` channels less than the segments."""
    segments = segments_of(MIXES[mix](channels))
    padded = sum(segment.channels for segment in segments)
    return Layer(padded - missing, out_channels, segments, 2.0**-5, 2.0**3)


def random_order(random: Random, made: Layer) -> Order:
    """A permutation of x's channels, with -1 spread over what is missing."""
    order = np.full(made.padded_channels, -1, np.int32)
    order[: made.in_channels] = np.arange(made.in_channels)
    random.shuffle(order)
    return order


def quantized(x: F32, order: Order, made: Layer) -> list[Codes]:
    """What docs/spec.md, sections 3 to 5, make of x."""
    permuted = np.where(order >= 0, x[:, np.maximum(order, 0)], np.float32(0))
    found, start = [], 0
    for segment in made.segments:
        part = permuted[:, start : start + segment.channels]
        fmt = FORMATS[segment.act_format]
        codes = quantize_blocks(part, fmt, segment.act_threshold, made.act_tensor_scale)
        found.append(Codes(*codes))
        start += segment.channels
    return found


def values(operand: Sequence[Codes], formats: Sequence[int], tensor_scale: float) -> F64:
    """The numbers that an operand stands for, exactly, float64[rows, K_pad]."""
    parts = []
    for part, format_id in zip(operand, formats, strict=True):
        fmt = FORMATS[format_id]
        table, factor = (E8M0_SCALES, 1.0) if fmt.scale == "e8m0" else (E4M3_SCALES, tensor_scale)
        scales = table.astype(np.float64)[part.scales] * factor
        elements = element_table(fmt.element).astype(np.float64)[part.codes]
        parts.append(elements * np.repeat(scales, fmt.block, axis=1))
    return np.concatenate(parts, axis=1)


def act_values(operand: Sequence[Codes], made: Layer) -> F64:
    return values(operand, [s.act_format for s in made.segments], made.act_tensor_scale)


def weight_values(operand: Sequence[Codes], made: Layer) -> F64:
    return values(operand, [s.weight_format for s in made.segments], made.weight_tensor_scale)


@cache
def e4m3_bytes(format_id: int) -> CodeArray:
    """The E4M3 code of every value of a format, all of whose values E4M3 has."""
    element = FORMATS[format_id].element
    codes = np.arange(2**element.bits, dtype=np.uint8)
    return codes if element is E4M3 else encode_elements(element_table(element), E4M3)


def pack_activations(operand: Sequence[Codes], made: Layer) -> tuple[CodeArray, CodeArray]:
    """Codes uint8[rows, act_row_bytes] and scales uint8[words, rows, 4], as kernels.h has them.

    Two formats of four bits multiply as they are; any other pair takes bytes of E4M3.
    """
    rows = []
    for part, segment in zip(operand, made.segments, strict=True):
        bits = [FORMATS[f].element.bits for f in (segment.act_format, segment.weight_format)]
        four = bits == [4, 4]
        rows.append(
            pack_codes(part.codes, 4) if four else e4m3_bytes(segment.act_format)[part.codes]
        )
    return np.concatenate(rows, axis=1), _scale_words(operand)


def pack_weights(operand: Sequence[Codes], made: Layer) -> tuple[CodeArray, CodeArray]:
    """`weight` uint8[N, row_bytes] and `scales` uint8[words, N, 4] of docs/spec.md, section 6."""
    rows = []
    for part, segment in zip(operand, made.segments, strict=True):
        packed = pack_codes(part.codes, FORMATS[segment.weight_format].element.bits)
        rows.append(np.pad(packed, ((0, 0), (0, -packed.shape[1] % 16))))
    return np.concatenate(rows, axis=1), _scale_words(operand)


def _scale_words(operand: Sequence[Codes]) -> CodeArray:
    words = []
    for part in operand:
        filled = np.pad(part.scales, ((0, 0), (0, -part.scales.shape[1] % 4)))
        words.append(filled.reshape(filled.shape[0], -1, 4).transpose(1, 0, 2))
    return np.ascontiguousarray(np.concatenate(words))
