"""formats.py against ml_dtypes (elements) and exact rational arithmetic (block scales)."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcompile.errors import UsageError
from mmcompile.formats import (
    BLOCK_FORMATS,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    OCP_THRESHOLD,
    THRESHOLDS,
    BlockFormat,
    ElementFormat,
    block_format,
)
from mmcompile.quantize import (
    E4M3_SCALES,
    E8M0_SCALES,
    dequantize_blocks,
    element_table,
    encode_elements,
    mx_scale_bytes,
    nvfp4_scale_bytes,
    nvfp4_tensor_scale,
    pack_codes,
    quantize_blocks,
    quantize_blocks_searched,
    unpack_codes,
)

ORACLES = {
    E2M1: ml_dtypes.float4_e2m1fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E3M2: ml_dtypes.float6_e3m2fn,
    E4M3: ml_dtypes.float8_e4m3fn,
}
ELEMENTS = list(ORACLES)
FORMATS = list(BLOCK_FORMATS.values())
MX_FORMATS = FORMATS[:4]
FLT_MAX = float(np.finfo(np.float32).max)


def name_of(value: object) -> str:
    return value.name if isinstance(value, (ElementFormat, BlockFormat)) else str(value)


def random_floats(count: int, seed: int = 0) -> np.ndarray:
    """Finite fp32 of all exponents, subnormals included."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    values = bits.view(np.float32)
    return values[np.isfinite(values)]


def neighbours(values: np.ndarray) -> np.ndarray:
    """Values with the next fp32 below and above."""
    values = values.astype(np.float32)
    low, high = np.float32(-np.inf), np.float32(np.inf)
    return np.concatenate([values, np.nextafter(values, low), np.nextafter(values, high)])


def difficult_values(element: ElementFormat) -> np.ndarray:
    grid = element_table(element)
    grid = np.sort(grid[np.isfinite(grid)])
    ties = (grid[1:] + grid[:-1]) / 2
    beyond = np.array([1.01, 1.5, 2, 1e10], np.float32) * np.float32(element.max)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, FLT_MAX, -FLT_MAX], np.float32)
    in_range = np.random.default_rng(1).uniform(-element.max, element.max, 200_000)
    parts = [neighbours(grid), neighbours(ties), beyond, -beyond, special]
    return np.concatenate([*parts, in_range.astype(np.float32), random_floats(50_000)])


def test_ids_follow_the_order_of_the_table():
    assert [fmt.id for fmt in FORMATS] == [0, 1, 2, 3, 4]
    assert [block_format(fmt.name) for fmt in FORMATS] == FORMATS


def test_unknown_format_is_a_usage_error():
    with pytest.raises(UsageError, match="mxfp5"):
        block_format("mxfp5")


@pytest.mark.parametrize("element", ELEMENTS, ids=name_of)
def test_element_properties(element: ElementFormat):
    info = ml_dtypes.finfo(ORACLES[element])
    assert element.bits == 1 + element.exponent_bits + element.mantissa_bits
    assert element.max == float(info.max)
    assert 2.0**element.emin == float(info.smallest_normal)
    assert element.emax == math.floor(math.log2(element.max))
    assert element.mantissa_bits == info.nmant


@pytest.mark.parametrize("element", ELEMENTS, ids=name_of)
def test_every_code_decodes_as_in_ml_dtypes(element: ElementFormat):
    codes = np.arange(2**element.bits, dtype=np.uint8)
    expected = codes.view(ORACLES[element]).astype(np.float32)
    table = element_table(element)
    np.testing.assert_array_equal(table, expected)
    np.testing.assert_array_equal(np.signbit(table), np.signbit(expected))


def test_scale_tables():
    codes = np.arange(256, dtype=np.uint8)
    e8m0 = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(E8M0_SCALES, e8m0)
    np.testing.assert_array_equal(E4M3_SCALES, element_table(E4M3))
    with pytest.raises(ValueError, match="read-only"):
        E8M0_SCALES[0] = 1


@pytest.mark.parametrize("element", ELEMENTS, ids=name_of)
def test_encoding_rounds_as_ml_dtypes(element: ElementFormat):
    values = difficult_values(element)
    # ml_dtypes makes NaN of what exceeds E4M3; saturation is ours to test below.
    clipped = np.clip(values, -element.max, element.max)
    expected = clipped.astype(ORACLES[element]).view(np.uint8)
    np.testing.assert_array_equal(encode_elements(values, element), expected)


@pytest.mark.parametrize("element", ELEMENTS, ids=name_of)
def test_encoding_saturates(element: ElementFormat):
    beyond = np.array([element.max * 1.5, np.inf, FLT_MAX], np.float32)
    largest = encode_elements(np.float32([element.max]), element)[0]
    assert (encode_elements(beyond, element) == largest).all()
    assert (encode_elements(-beyond, element) == largest | 1 << (element.bits - 1)).all()


def difficult_amaxes(element: ElementFormat) -> np.ndarray:
    powers = np.ldexp(np.float32(1), np.arange(-149, 128))
    mantissas = [1.0, 1.25, 1.5, 1.75, 1.875, element.max / 2**element.emax]
    near = np.concatenate([neighbours(powers * np.float32(m)) for m in mantissas])
    special = np.array([0, 1e-45, 1.1754942e-38, FLT_MAX], np.float32)
    values = np.abs(np.concatenate([near, special, random_floats(3000)]))
    return np.unique(values[np.isfinite(values)])


def clamped_byte(exponent: int) -> int:
    return min(max(exponent + 127, 0), 254)


def byte_by_threshold(amax: float, element: ElementFormat, threshold: float) -> int:
    if amax == 0:
        return 0
    half_mantissa, exponent = math.frexp(amax)
    above = threshold < 2 and Fraction(half_mantissa) * 2 > Fraction(threshold)
    return clamped_byte(exponent - 1 - element.emax + above)


def byte_without_saturation(amax: float, element: ElementFormat) -> int:
    if amax == 0:
        return 0
    exponent = math.frexp(amax / element.max)[1] - 2
    while Fraction(element.max) * Fraction(2) ** exponent < Fraction(amax):
        exponent += 1
    return clamped_byte(exponent)


@pytest.mark.parametrize("threshold", [1.0, 1.25, 1.5, 1.75, 1.7500001, 1.875, 2.0])
@pytest.mark.parametrize("fmt", MX_FORMATS, ids=name_of)
def test_mx_scale_is_floor_plus_one_beyond_the_threshold(fmt: BlockFormat, threshold: float):
    amax = difficult_amaxes(fmt.element)
    expected = [byte_by_threshold(float(a), fmt.element, threshold) for a in amax]
    np.testing.assert_array_equal(mx_scale_bytes(amax, fmt.element, threshold), expected)


@pytest.mark.parametrize("fmt", MX_FORMATS, ids=name_of)
def test_saturation_free_rule_is_the_smallest_scale_that_holds_amax(fmt: BlockFormat):
    amax = difficult_amaxes(fmt.element)
    threshold = THRESHOLDS["saturation_free"][fmt.name]
    expected = [byte_without_saturation(float(a), fmt.element) for a in amax]
    np.testing.assert_array_equal(mx_scale_bytes(amax, fmt.element, threshold), expected)


def test_rules_name_every_format():
    for rule, thresholds in THRESHOLDS.items():
        assert list(thresholds) == list(BLOCK_FORMATS), rule
    assert set(THRESHOLDS["ocp"].values()) == {OCP_THRESHOLD}


@pytest.mark.parametrize("threshold", [0.99, 2.01, math.nan])
def test_threshold_outside_one_to_two_is_refused(threshold: float):
    with pytest.raises(ValueError, match=r"outside \[1, 2\]"):
        quantize_blocks(np.ones(32, np.float32), FORMATS[0], threshold)


@pytest.mark.parametrize("exponent", [-100, -40, -3, 0, 5, 100])
def test_nvfp4_scale_is_amax_over_six_to_nearest(exponent: int):
    tensor_scale = 2.0**exponent
    # Magnitudes that give scales throughout E4M3, and some that give none or saturate.
    mantissas = np.random.default_rng(2).uniform(1, 2, 4000)
    exponents = np.random.default_rng(3).integers(-14, 14, 4000)
    grid = np.sort(E4M3_SCALES[:127])
    ties = (grid[1:] + grid[:-1]) * np.float32(3)
    units = np.concatenate([np.ldexp(mantissas, exponents).astype(np.float32), neighbours(ties)])
    amax = units * np.float32(tensor_scale)
    factor = Fraction(float(np.float32(1) / np.float32(6))) / Fraction(2) ** exponent
    # 24 by 24 bits are exact in fp64, so that one rounding to fp32 remains.
    scaled = np.float32(amax.astype(np.float64) * float(factor))
    expected = np.minimum(scaled, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(nvfp4_scale_bytes(amax, tensor_scale), expected)


@pytest.mark.parametrize("amax", [*np.geomspace(1e-20, 1e20, 97), 2688.0, 2688.0 * 2**-9, 2689.0])
def test_nvfp4_tensor_scale_is_the_smallest_that_suffices(amax: float):
    amax = float(np.float32(amax))
    scale = nvfp4_tensor_scale(amax)
    assert math.frexp(scale)[0] == 0.5
    assert Fraction(scale) * 2688 >= Fraction(amax) > Fraction(scale) * 1344


def test_nvfp4_tensor_scale_at_the_ends():
    assert nvfp4_tensor_scale(0.0) == 1.0
    assert nvfp4_tensor_scale(FLT_MAX) == 2.0**100
    assert nvfp4_tensor_scale(1e-45) == 2.0**-100
    with pytest.raises(UsageError, match="nan"):
        nvfp4_tensor_scale(math.nan)


@pytest.mark.parametrize("scale", [0.0, -1.0, 3.0, 2.0**101, 2.0**-101, math.inf, math.nan])
def test_nvfp4_refuses_other_tensor_scales(scale: float):
    with pytest.raises(ValueError, match="no power of two"):
        quantize_blocks(np.ones(16, np.float32), block_format("nvfp4"), tensor_scale=scale)


def blocks_of_all_exponents(block: int) -> np.ndarray:
    """Blocks [n, block] of similar magnitudes each, from subnormals to FLT_MAX."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((600, block)) * np.exp2(rng.integers(-6, 3, (600, block)))
    exponents = np.linspace(-150, 124, 600).astype(int)[:, None]
    with np.errstate(over="ignore"):
        blocks = np.clip(np.ldexp(values, exponents), -FLT_MAX, FLT_MAX).astype(np.float32)
    blocks[::50] = 0
    blocks[25::50, ::2] *= np.float32(-0.0)
    return blocks


@pytest.mark.parametrize("fmt", MX_FORMATS, ids=name_of)
def test_mx_blocks_step_by_step(fmt: BlockFormat):
    x = blocks_of_all_exponents(32)
    codes, scales = quantize_blocks(x, fmt)
    threshold = THRESHOLDS["balanced"][fmt.name]
    amax = np.abs(x).max(axis=1)
    expected = [byte_by_threshold(float(a), fmt.element, threshold) for a in amax]
    np.testing.assert_array_equal(scales[:, 0], expected)
    # In fp64 nothing under- or overflows.
    scaled = np.ldexp(x.astype(np.float64), 127 - scales.astype(np.int64))
    clipped = np.clip(scaled, -fmt.element.max, fmt.element.max).astype(np.float32)
    np.testing.assert_array_equal(codes, clipped.astype(ORACLES[fmt.element]).view(np.uint8))


@pytest.mark.parametrize("exponent", [-90, -20, 0, 7, 80])
def test_nvfp4_blocks_step_by_step(exponent: int):
    fmt = block_format("nvfp4")
    x = blocks_of_all_exponents(16)
    codes, scales = quantize_blocks(x, fmt, tensor_scale=2.0**exponent)
    step = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * 2.0**exponent
    with np.errstate(divide="ignore"):
        inverse = np.where(step > 0, np.float32(1 / step), np.float32(0))
    with np.errstate(over="ignore"):
        values = np.float32(x.astype(np.float64) * inverse.astype(np.float64))
    clipped = np.clip(values, -6, 6)
    np.testing.assert_array_equal(codes, clipped.astype(ml_dtypes.float4_e2m1fn).view(np.uint8))


def rounded_blocks(scaled: np.ndarray, element: ElementFormat) -> np.ndarray:
    """Values of the nearest elements by ml_dtypes, float64."""
    clipped = np.clip(scaled, -element.max, element.max).astype(np.float32)
    return clipped.astype(ORACLES[element]).astype(np.float64)


def mx_candidates(
    x: np.ndarray, fmt: BlockFormat
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Scale bytes, codes and float64 errors, in units of amax, of both exponents of blocks[n, 32].

    In fp64 nothing under- or overflows: blocks are first divided by 2^floor(log2 amax).
    """
    amax = np.abs(x.astype(np.float64)).max(axis=1)
    exponent = np.where(amax > 0, np.frexp(amax)[1] - 1, -150)  # zeros have the least byte
    unit = np.ldexp(x.astype(np.float64), -exponent[:, None])
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    for more in (0, 1):
        byte = np.array([clamped_byte(e - fmt.element.emax + more) for e in exponent.tolist()])
        scaled = np.ldexp(x.astype(np.float64), 127 - byte[:, None])
        values = rounded_blocks(scaled, fmt.element)
        restored = np.ldexp(values, byte[:, None] - 127 - exponent[:, None])
        codes = np.clip(scaled, -fmt.element.max, fmt.element.max).astype(np.float32)
        for part, value in zip(
            found,
            (
                byte,
                codes.astype(ORACLES[fmt.element]).view(np.uint8),
                np.square(restored - unit).sum(1),
            ),
            strict=True,
        ):
            part.append(value)
    return found


def nvfp4_candidates(
    x: np.ndarray, tensor_scale: float
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The same of blocks[n, 16] whose amax is mapped onto 6 and onto 4."""
    amax = np.abs(x).max(axis=1)
    exponent = np.frexp(amax.astype(np.float64))[1] - 1
    unit = np.ldexp(x.astype(np.float64), -exponent[:, None])
    found: tuple[list[np.ndarray], ...] = ([], [], [])
    for largest in (6, 4):
        factor = float(np.float32(1) / np.float32(largest)) / tensor_scale
        with np.errstate(over="ignore"):
            scaled = np.float32(amax.astype(np.float64) * factor)
        byte = np.minimum(scaled, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        step = byte.astype(np.float64) * tensor_scale
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(step > 0, np.float32(1 / step), np.float32(0))
            values = np.float32(x.astype(np.float64) * inverse.astype(np.float64)[:, None])
        elements = rounded_blocks(values, E2M1)
        restored = np.ldexp(elements * step[:, None], -exponent[:, None])
        codes = np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        errors = np.square(restored - unit).sum(axis=1)
        for part, value in zip(found, (byte.view(np.uint8), codes, errors), strict=True):
            part.append(value)
    return found


def check_search(
    found: tuple[np.ndarray, np.ndarray],
    candidates: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]],
    block: int,
) -> np.ndarray:
    """Holds searched blocks against the better of two candidates; tells where it is the second.

    A sum of `block` squares in fp32 is off by at most (block + 2) · 2^-24 of itself, so that
    errors which are closer than twice that may be ordered either way. Equal ones keep the first.
    """
    codes, scales = found
    (first, second), tried, (error, other) = candidates
    chosen = scales[:, 0].astype(int)
    is_second = chosen != first
    assert (chosen == np.where(is_second, second, first)).all()
    clear = np.abs(error - other) > 2 * (block + 2) * 2.0**-24 * np.maximum(error, other)
    np.testing.assert_array_equal(is_second[clear], (other < error)[clear])
    assert not is_second[error == other].any()
    assert clear.mean() > 0.05  # E4M3 errs alike under most pairs of scales
    np.testing.assert_array_equal(codes, np.where(is_second[:, None], tried[1], tried[0]))
    return is_second


def blocks_to_search(block: int, size: float = 1.0) -> np.ndarray:
    """Blocks[n, block] of all exponents; of normal numbers and few distinct ones of some size."""
    rng = np.random.default_rng(6)
    normal = rng.standard_normal((3000, block))
    few = rng.choice([0, 0.5, 1, 1.5, 2, 3, 4, 6, 7], (600, block))
    tiny = rng.standard_normal((300, block)) * 2.0**-146
    parts = [blocks_of_all_exponents(block), size * normal, size * few, tiny]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("fmt", MX_FORMATS, ids=name_of)
def test_searched_mx_scales_are_the_better_of_two(fmt: BlockFormat):
    x = blocks_to_search(32)
    is_second = check_search(quantize_blocks_searched(x, fmt), mx_candidates(x, fmt), 32)
    assert 0.01 < is_second.mean() < 0.5


@pytest.mark.parametrize("exponent", [-100, -20, -2, 0, 7, 100])
def test_searched_nvfp4_scales_are_the_better_of_two(exponent: int):
    scale = 2.0**exponent
    x = blocks_to_search(16, 8 * scale)
    found = quantize_blocks_searched(x, block_format("nvfp4"), scale)
    is_second = check_search(found, nvfp4_candidates(x, scale), 16)
    assert 0.1 < is_second.mean() < 0.6


def test_searched_scales_by_hand():
    mxfp4, nvfp4 = block_format("mxfp4"), block_format("nvfp4")

    def searched(first: list[float], rest: float, fmt: BlockFormat) -> tuple[float, list[float]]:
        x = np.float32(first + [rest] * (fmt.block - len(first)))
        codes, scales = quantize_blocks_searched(x, fmt)
        table = E8M0_SCALES if fmt.scale == "e8m0" else E4M3_SCALES
        return float(table[scales[0]]), dequantize_blocks(codes, scales, fmt)[:2].tolist()

    # 7.5 is 6 under 2^0, off by 1.5, and 3.75 → 4 under 2^1, off by 0.5.
    assert searched([7.5, 2.0], 0.0, mxfp4) == (2, [8, 2])
    # 30 times 0.5 is exact under 2^0 and 0.25 → 0 under 2^1, off by 30 · 0.25 = 7.5.
    assert searched([7.5, 0.5], 0.5, mxfp4) == (1, [6, 0.5])
    # 7 is off by one under either; ties keep the smaller exponent. So do blocks that both hold.
    assert searched([7.0, 0.0], 0.0, mxfp4) == (1, [6, 0])
    assert searched([6.0, 2.0], 0.0, mxfp4) == (1, [6, 2])
    # 5 / 6 → 0.8125: 4 is 4.92 → 4 of them, 3.25. 5 / 4 = 1.25: 4 is 3.2 → 3 of them, 3.75.
    assert searched([5.0, 4.0], 4.0, nvfp4) == (1.25, [5, 3.75])
    # 6 / 6 = 1 holds 6 and 0.5; 6 / 4 = 1.5 has 0.75 next to 0.5.
    assert searched([6.0, 0.5], 0.5, nvfp4) == (1, [6, 0.5])
    # amax / 6 is below the least scale's half, amax / 4 is not: zero, or 2^-9 times 1 and 4.
    assert searched([2.0**-8 * 1.2, 0.0], 0.0, nvfp4) == (2.0**-9, [2.0**-9 * 2, 0])


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_searched_scales_of_zeros_and_of_what_is_not_finite(fmt: BlockFormat):
    x = np.zeros((4, 2 * fmt.block), np.float32)
    x[0, 1] = np.nan
    x[1, fmt.block] = -np.inf
    x[2] = -0.0
    x[3, ::3] = 5
    assert quantize_blocks_searched(x[:0], fmt)[0].shape == (0, 2 * fmt.block)
    for found, expected in zip(
        quantize_blocks_searched(x[:3], fmt), quantize_blocks(x[:3], fmt), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_dequantizing_is_exact(fmt: BlockFormat):
    scale = 2.0**-7 if fmt.scale == "e4m3" else 1.0
    codes, scales = quantize_blocks(blocks_of_all_exponents(fmt.block), fmt, tensor_scale=scale)
    elements = codes.view(ORACLES[fmt.element]).astype(np.float64)
    kind = ml_dtypes.float8_e4m3fn if fmt.scale == "e4m3" else ml_dtypes.float8_e8m0fnu
    expected = elements * scales.view(kind).astype(np.float64) * scale
    np.testing.assert_array_equal(dequantize_blocks(codes, scales, fmt, scale), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_a_block_that_is_not_finite_has_a_nan_scale_and_codes_of_zero(fmt: BlockFormat, bad: float):
    x = np.linspace(-3, 5, 4 * fmt.block, dtype=np.float32).reshape(1, -1)
    x[0, 2 * fmt.block + 3] = bad
    codes, scales = quantize_blocks(x, fmt)
    assert scales[0, 2] == (255 if fmt.scale == "e8m0" else 0x7F)
    assert not codes[0, 2 * fmt.block : 3 * fmt.block].any()
    values = dequantize_blocks(codes, scales, fmt)
    assert np.isnan(values[0, 2 * fmt.block : 3 * fmt.block]).all()
    assert np.isnan(values).sum() == fmt.block


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_zero_blocks_keep_their_signs(fmt: BlockFormat):
    x = np.array([0.0, -0.0] * (fmt.block // 2), np.float32)
    codes, scales = quantize_blocks(x, fmt)
    assert scales.tolist() == [0]
    assert codes.tolist() == [0, 1 << (fmt.element.bits - 1)] * (fmt.block // 2)


@pytest.mark.parametrize("fmt", FORMATS, ids=name_of)
def test_leading_axes_are_kept_and_partial_blocks_refused(fmt: BlockFormat):
    x = np.random.default_rng(5).standard_normal((3, 2, 96)).astype(np.float32)
    codes, scales = quantize_blocks(x, fmt)
    assert codes.shape == (3, 2, 96)
    assert scales.shape == (3, 2, 96 // fmt.block)
    assert dequantize_blocks(codes, scales, fmt).shape == x.shape
    assert quantize_blocks(x[:0], fmt)[0].shape == (0, 2, 96)
    with pytest.raises(ValueError, match="whole number"):
        quantize_blocks(x[..., :40], fmt)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), bits=st.sampled_from([4, 6, 8]), rows=st.integers(0, 3))
def test_packing_is_a_little_endian_bit_stream(data: st.DataObject, bits: int, rows: int):
    count = 4 * data.draw(st.integers(0, 20))
    seed = data.draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count), dtype=np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, count * bits // 8)
    for row, stream in zip(codes, packed, strict=True):
        number = int.from_bytes(stream.tobytes(), "little")
        assert [number >> (c * bits) & (2**bits - 1) for c in range(count)] == row.tolist()
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


def test_packing_refuses_partial_bytes():
    with pytest.raises(ValueError, match="3 codes of 6 bits"):
        pack_codes(np.zeros(3, np.uint8), 6)
    with pytest.raises(ValueError, match="2 bytes"):
        unpack_codes(np.zeros(2, np.uint8), 6)
