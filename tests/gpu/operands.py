"""Random operands: any codes at all, codes whose products add up exactly, and rows of x."""

from __future__ import annotations

import numpy as np

from mmcompile.formats import E8M0_NAN, BlockFormat
from mmcompile.kernels import FLOAT32
from mmcompile.quantize import CodeArray, element_table
from tests.gpu.layers import FORMATS, Codes, Layer, Random
from tests.gpu.number_types import BITS_TYPE, BitArray, narrow

E4M3_ONE, E4M3_TWO = 0x38, 0x40


def any_operand(
    random: Random, made: Layer, rows: int, formats: list[int], scales: tuple[int, int] = (110, 140)
) -> list[Codes]:
    """All codes but NaN's, and E8M0 scale bytes within a range (E4M3 ones from all positive)."""
    found = []
    for segment, format_id in zip(made.segments, formats, strict=True):
        fmt = FORMATS[format_id]
        codes = _pick(
            random, np.flatnonzero(~np.isnan(element_table(fmt.element))), rows, segment.channels
        )
        low, high = scales if fmt.scale == "e8m0" else (1, 0x7F)
        blocks = (rows, segment.channels // fmt.block)
        found.append(Codes(codes, random.integers(low, high, blocks).astype(np.uint8)))
    return found


EXACT_UNIT = 0.25
"""Products of two elements of `exact_operand` are multiples of this."""


def exact_operand(random: Random, made: Layer, rows: int, formats: list[int]) -> list[Codes]:
    """Multiples of 1/2 up to 6, and scales of 1 and 2.

    While no sum of their products' magnitudes reaches 2^24 units, fp32 holds every partial sum in
    any order, rounding or truncating: the product is the same, bit for bit, on any machine.
    """
    found = []
    for segment, format_id in zip(made.segments, formats, strict=True):
        fmt = FORMATS[format_id]
        table = element_table(fmt.element)
        with np.errstate(invalid="ignore"):
            allowed = np.flatnonzero((np.abs(table) <= 6) & (table * 2 == np.rint(table * 2)))
        codes = _pick(random, allowed, rows, segment.channels)
        found.append(Codes(codes, _unit_scales(random, fmt, (rows, segment.channels // fmt.block))))
    return found


def _unit_scales(random: Random, fmt: BlockFormat, shape: tuple[int, int]) -> CodeArray:
    choices = (127, 128) if fmt.scale == "e8m0" else (E4M3_ONE, E4M3_TWO)
    return random.choice(np.array(choices, np.uint8), shape)


def _pick(random: Random, allowed: np.ndarray, rows: int, channels: int) -> CodeArray:
    chosen: CodeArray = random.choice(allowed.astype(np.uint8), (rows, channels))
    return chosen


def spoil_rows(random: Random, operand: list[Codes], rows: list[int]) -> None:
    """Makes one block of each of these rows NaN."""
    for row in rows:
        part = operand[int(random.integers(len(operand)))]
        blocks = part.scales.shape[1]
        e8m0 = part.codes.shape[1] == 32 * blocks
        block = int(random.integers(blocks))
        part.scales[row, block] = E8M0_NAN if e8m0 else 0x7F
        length = part.codes.shape[1] // blocks
        part.codes[row, block * length : (block + 1) * length] = 0


X_KINDS = ("normal", "outliers", "ties", "any bits")


def random_x(random: Random, kind: str, rows: int, channels: int, number_type: int) -> BitArray:
    """Bits of x.

    normal: Gaussian, rows of different magnitudes. outliers: Gaussian with channels many times
    larger, rows of zeros and signed zeros, subnormals. ties: small multiples of powers of two,
    where rounding meets ties and maxima meet thresholds. any bits: all of them, NaN and Inf too.
    """
    if kind == "any bits":
        bits = random.integers(0, 2**32 if number_type == FLOAT32 else 2**16, (rows, channels))
        found = bits.astype(BITS_TYPE[number_type])
        # NaN and Inf are rare enough for most blocks of 16-bit numbers to be free of them.
        tame = random.random((rows, channels)) < 0.9
        clear = {FLOAT32: 0x40000000, 1: 0x4000, 2: 0x4000}[number_type]
        return np.where(tame, found & ~BITS_TYPE[number_type](clear), found)
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


def spoil_x(random: Random, bits: BitArray, number_type: int, rows: list[int]) -> None:
    """Puts a NaN or an infinity into each of these rows."""
    special = np.array([np.nan, np.inf, -np.inf], np.float32)
    for i, row in enumerate(rows):
        bits[row, int(random.integers(bits.shape[1]))] = narrow(special, number_type)[i % 3]
