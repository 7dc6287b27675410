"""The native module quantizes panels with error feedback as the formulas say.

The oracle is written from the formulas in float64, with ml_dtypes as the only rounding. It takes a
block at a time and gives up a block that fp32 may decide otherwise: where, within the bound of
fp32's rounding errors, a value lies at the boundary of two codes, an amax at that of two scales,
or the losses of two scales at equality. All other blocks must be the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest

from mmcompile.quantize import unpack_codes

native = pytest.importorskip(
    "mmcompile._native", reason="the native module is not built (plugins/README.md)"
)

NAMES = ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8", "nvfp4"]
NVFP4 = 4
ELEMENTS = [
    ml_dtypes.float4_e2m1fn,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float4_e2m1fn,
]
BITS = [4, 6, 6, 8, 4]
LARGEST = [6.0, 7.5, 28.0, 448.0, 6.0]
EMAX = [2, 2, 4, 8]
BLOCKS = [32, 32, 32, 32, 16]
UNIT_ROUNDOFF = 2.0**-24
SEARCHED = pytest.mark.parametrize("searched", [False, True], ids=["rule", "searched"])
EVERY_FORMAT = pytest.mark.parametrize("number", range(5), ids=NAMES)


@dataclasses.dataclass(frozen=True)
class Panel:
    target: np.ndarray
    weight: np.ndarray
    factor: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Quantized:
    codes: np.ndarray
    """uint8[N, P · bits / 8], packed."""
    scales: np.ndarray
    """uint8[words, N, 4]."""
    error: np.ndarray


def random_panel(rows: int, channels: int, seed: int = 0) -> Panel:
    """Correlated channels of different sizes; the factor is that of an actual H."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((4 * channels, channels)) @ (
        np.eye(channels) + 0.3 * rng.standard_normal((channels, channels)) / np.sqrt(channels)
    )
    lower = np.linalg.cholesky((inputs.T @ inputs / len(inputs))[::-1, ::-1])
    upper = lower[::-1, ::-1]
    diagonal = np.diag(upper)
    sizes = np.exp2(rng.uniform(-3, 3, channels))
    weight = rng.standard_normal((rows, channels)) * sizes * 0.02
    target = weight * (1 + 0.05 * rng.standard_normal((rows, channels)))
    return Panel(
        target.astype(np.float32),
        weight.astype(np.float32),
        (upper / diagonal).astype(np.float32),
        (diagonal**2).astype(np.float32),
    )


def quantize(
    panel: Panel,
    number: int,
    searched: bool,
    threshold: float = 1.75,
    tensor_scale: float = 2.0**-12,
    threads: int = 1,
    instruction_set: str = "",
) -> Quantized:
    rows, channels = panel.weight.shape
    codes = np.full((rows, channels * BITS[number] // 8), 0xA5, np.uint8)
    scales = np.zeros((-(-channels // BLOCKS[number] // 4), rows, 4), np.uint8)
    error = np.full((rows, channels), np.nan, np.float32)
    native.feedback_panel(
        panel.target,
        panel.weight,
        panel.factor,
        panel.loss,
        number,
        threshold,
        searched,
        tensor_scale,
        codes,
        0,
        scales,
        0,
        0,
        error,
        threads,
        instruction_set,
    )
    return Quantized(codes, scales, error)


def assert_same(first: Quantized, second: Quantized) -> None:
    np.testing.assert_array_equal(first.scales, second.scales)
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.error.view(np.uint32), second.error.view(np.uint32))


def element_codes(values: np.ndarray, number: int) -> np.ndarray:
    """Nearest elements, saturating; ml_dtypes rounds to nearest even."""
    return np.clip(values, -LARGEST[number], LARGEST[number]).astype(ELEMENTS[number])


def boundaries(number: int) -> np.ndarray:
    """Magnitudes at which codes change; those above the largest element saturate."""
    magnitudes = np.arange(1 << (BITS[number] - 1), dtype=np.uint8).view(ELEMENTS[number])
    magnitudes = magnitudes.astype(np.float64)
    magnitudes = magnitudes[np.isfinite(magnitudes)]
    return (magnitudes[1:] + magnitudes[:-1]) / 2


def nearest(sorted_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Distance to the nearest of some values."""
    above = np.clip(np.searchsorted(sorted_values, values), 1, len(sorted_values) - 1)
    return np.minimum(
        np.abs(values - sorted_values[above]), np.abs(values - sorted_values[above - 1])
    )


def candidate_scales(
    amax: np.ndarray, number: int, searched: bool, threshold: float, tensor_scale: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Bytes and values of a block's candidates, from the positive amax of each row."""
    if number == NVFP4:
        units = [amax / divisor / tensor_scale for divisor in ((6, 4) if searched else (6,))]
        codes = [np.minimum(unit, 448).astype(ml_dtypes.float8_e4m3fn) for unit in units]
        return (
            [code.view(np.uint8) for code in codes],
            [code.astype(np.float64) * tensor_scale for code in codes],
        )
    mantissa, exponent = np.frexp(amax)
    byte = exponent - 1 - EMAX[number] + 127
    if searched:
        candidates = [byte, byte + 1]
    else:
        candidates = [byte + (2 * mantissa > threshold if threshold < 2 else 0)]
    bytes_ = [np.clip(candidate, 0, 254).astype(np.uint8) for candidate in candidates]
    return bytes_, [b.view(ml_dtypes.float8_e8m0fnu).astype(np.float64) for b in bytes_]


def scale_undecided(
    amax: np.ndarray, bound: np.ndarray, number: int, searched: bool, threshold: float, ts: float
) -> np.ndarray:
    """Whether amax is so near to where the scale changes that `bound` may move it across."""
    below, _ = candidate_scales(np.maximum(amax - bound, 1e-300), number, searched, threshold, ts)
    above, _ = candidate_scales(amax + bound, number, searched, threshold, ts)
    return np.any([low != high for low, high in zip(below, above, strict=True)], axis=0)


@dataclasses.dataclass(frozen=True)
class Block:
    codes: np.ndarray
    error: np.ndarray
    loss: np.ndarray
    undecided: np.ndarray


def quantize_block(
    values: np.ndarray, magnitudes: np.ndarray, panel: Panel, first: int, scale: np.ndarray, n: int
) -> Block:
    """Quantizes a block under one scale; `magnitudes` are sums of the terms' magnitudes of u."""
    channels = range(first, first + BLOCKS[n])
    values, magnitudes = values.copy(), magnitudes.copy()
    weight, factor = panel.weight.astype(np.float64), panel.factor.astype(np.float64)
    error = np.zeros_like(values)
    codes = np.zeros(values.shape, np.uint8)
    loss = np.zeros(len(values))
    undecided = np.zeros(len(values), bool)
    limits = boundaries(n)
    for i, channel in enumerate(channels):
        scaled = values[:, i] / scale
        element = element_codes(scaled, n)
        # u is a sum of channel + 1 terms at most: as many additions; e and its product with the
        # factor are rounded, as are the reciprocal of the scale and the product with it.
        bound = (channel + 6) * UNIT_ROUNDOFF * magnitudes[:, i] / scale
        undecided |= nearest(limits, np.abs(scaled)) <= bound
        undecided |= np.abs(scaled) <= bound  # the sign
        codes[:, i] = element.view(np.uint8)
        quantized = element.astype(np.float64) * scale
        error[:, i] = weight[:, channel] - quantized
        loss += float(panel.loss[channel]) * (quantized - values[:, i]) ** 2
        later = factor[channel, channel + 1 : channels.stop]
        values[:, i + 1 :] += np.outer(error[:, i], later)
        magnitudes[:, i + 1 :] += np.abs(np.outer(error[:, i], later))
    return Block(codes, error, loss, undecided)


def check_against_the_oracle(
    panel: Panel,
    number: int,
    searched: bool,
    got: Quantized,
    threshold: float = 1.75,
    tensor_scale: float = 2.0**-12,
) -> None:
    rows, channels = panel.weight.shape
    length = BLOCKS[number]
    codes = unpack_codes(got.codes, BITS[number])
    error = got.error.astype(np.float64)
    factor = np.triu(panel.factor.astype(np.float64), 1)
    decided_blocks, total_loss, total_expected = 0, 0.0, 0.0
    for first in range(0, channels, length):
        part = slice(first, first + length)
        # The errors of earlier blocks are the native ones: blocks are judged one by one.
        values = panel.target[:, part] + error[:, :first] @ factor[:first, part]
        magnitudes = np.abs(panel.target[:, part]) + np.abs(error[:, :first]) @ np.abs(
            factor[:first, part]
        )
        amax = np.abs(values).max(1)
        bytes_, scales = candidate_scales(amax, number, searched, threshold, tensor_scale)
        # Two more roundings: the factor 1 / 6 and the product with it.
        bound = (first + 6) * UNIT_ROUNDOFF * magnitudes.max(1)
        undecided = scale_undecided(amax, bound, number, searched, threshold, tensor_scale)
        blocks = [quantize_block(values, magnitudes, panel, first, s, number) for s in scales]
        byte = bytes_[0]
        chosen = np.zeros(rows, int)
        for block in blocks:
            undecided |= block.undecided
        if searched:
            # 1e-4 is far above what fp32 loses of a sum of 32 squares. Scales that give the same
            # values are no matter of rounding: the first stays.
            close = np.abs(blocks[1].loss - blocks[0].loss) <= 1e-4 * blocks[0].loss
            undecided |= close & (blocks[1].error != blocks[0].error).any(1)
            chosen = (blocks[1].loss < blocks[0].loss).astype(int)
            byte = np.where(chosen, bytes_[1], bytes_[0])
        pick = np.arange(rows)
        expected_codes = np.stack([b.codes for b in blocks])[chosen, pick]
        expected_error = np.stack([b.error for b in blocks])[chosen, pick]
        expected_loss = np.stack([b.loss for b in blocks])[chosen, pick]
        word, place = divmod(first // length, 4)
        decided = ~undecided
        decided_blocks += int(decided.sum())
        np.testing.assert_array_equal(got.scales[word, decided, place], byte[decided])
        np.testing.assert_array_equal(codes[decided, part], expected_codes[decided])
        np.testing.assert_allclose(
            got.error[decided, part], expected_error[decided], rtol=UNIT_ROUNDOFF, atol=0
        )
        quantized = panel.weight[:, part] - error[:, part]
        inside = np.triu(factor[part, part], 1)
        loss = (quantized - values - error[:, part] @ inside) ** 2 @ panel.loss[part].astype(float)
        total_loss += loss.sum()
        total_expected += expected_loss.sum()
    # The bound is the worst case of up to 133 roundings, hence up to 3 % of 1000 rows' blocks.
    assert decided_blocks >= 0.9 * rows * (channels // length)
    assert total_loss == pytest.approx(total_expected, rel=1e-4)


@SEARCHED
@EVERY_FORMAT
@pytest.mark.parametrize("shape", [(1, 32), (15, 64), (17, 96), (1000, 128)], ids=str)
def test_quantizes_as_the_formulas_say(shape: tuple[int, int], number: int, searched: bool):
    panel = random_panel(*shape, seed=number)
    check_against_the_oracle(panel, number, searched, quantize(panel, number, searched))


@pytest.mark.parametrize("threshold", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("number", range(4), ids=NAMES[:4])
def test_any_mantissa_threshold(number: int, threshold: float):
    panel = random_panel(40, 64, seed=9)
    got = quantize(panel, number, False, threshold)
    check_against_the_oracle(panel, number, False, got, threshold)


@SEARCHED
@EVERY_FORMAT
def test_the_oracle_notices_a_wrong_code_and_a_wrong_scale(number: int, searched: bool):
    panel = random_panel(17, 64)
    got = quantize(panel, number, searched)
    codes, scales = got.codes.copy(), got.scales.copy()
    codes[:, 5] ^= 1
    scales[0, :, 1] += 1
    for wrong in (dataclasses.replace(got, codes=codes), dataclasses.replace(got, scales=scales)):
        with pytest.raises(AssertionError):
            check_against_the_oracle(panel, number, searched, wrong)


@EVERY_FORMAT
@pytest.mark.parametrize("rows", [1, 37])
def test_without_feedback_it_is_packing(number: int, rows: int):
    rng = np.random.default_rng(number)
    weight = rng.standard_normal((rows, 96)) * np.exp2(rng.integers(-9, 4, (rows, 96)))
    # Adding the feedback 0 turns -0 into 0, which packing keeps; there is none here.
    weight = (weight * np.exp2(rng.integers(-40, 40, (rows, 1)))).astype(np.float32)
    weight[:, 32:64][rng.random((rows, 32)) < 0.3] = 0
    weight[0, 64:] = 0
    panel = Panel(weight, weight, np.eye(96, dtype=np.float32), np.ones(96, np.float32))
    got = quantize(panel, number, False, tensor_scale=0.25)
    row_bytes = -(-96 * BITS[number] // 128) * 16
    codes = np.zeros((rows, row_bytes), np.uint8)
    scales = np.zeros_like(got.scales)
    order = np.arange(96, dtype=np.int32)
    native.quantize_pack(weight, False, order, [(96, number, 1.75)], 0.25, codes, scales, 1)
    np.testing.assert_array_equal(got.codes, codes[:, : got.codes.shape[1]])
    np.testing.assert_array_equal(got.scales, scales)
    values = np.empty((rows, 96), np.float32)
    native.dequantize(codes, scales, [(96, number, 1.75)], 0.25, values, 1)
    np.testing.assert_array_equal(got.error, weight - values)


@SEARCHED
@EVERY_FORMAT
@pytest.mark.parametrize("rows", [1, 15, 17, 1000])
def test_threads_instruction_sets_and_other_rows_change_nothing(
    rows: int, number: int, searched: bool
):
    panel = random_panel(rows, 128, seed=3)
    expected = quantize(panel, number, searched, instruction_set="generic")
    for threads in (1, 2, 3):
        assert_same(quantize(panel, number, searched, threads=threads), expected)
    for instruction_set in native.instruction_sets():
        got = quantize(panel, number, searched, instruction_set=instruction_set)
        assert_same(got, expected)
    last = dataclasses.replace(panel, target=panel.target[-1:], weight=panel.weight[-1:])
    alone = quantize(last, number, searched)
    np.testing.assert_array_equal(alone.codes, expected.codes[-1:])
    np.testing.assert_array_equal(alone.error, expected.error[-1:])


@SEARCHED
@EVERY_FORMAT
@pytest.mark.parametrize("first_block", [0, 3, 4])
def test_views_into_larger_arrays(first_block: int, number: int, searched: bool):
    rows, channels = 17, 64
    panel = random_panel(rows, channels)
    expected = quantize(panel, number, searched)
    wide = [
        np.concatenate([np.full((len(a), 3), np.nan, np.float32), a, a[:, :5] * np.nan], axis=1)
        for a in (panel.target, panel.weight, panel.factor)
    ]
    target, weight, factor = (a[:, 3 : 3 + channels] for a in wide)
    factor[np.tril_indices(channels)] = np.nan
    blocks, code_bytes = channels // BLOCKS[number], expected.codes.shape[1]
    all_codes = np.full((rows + 2, code_bytes + 20), 0xA5, np.uint8)
    all_scales = np.full((4, rows + 3, 4), 0xA5, np.uint8)
    all_error = np.full((rows, channels + 7), 7, np.float32)
    native.feedback_panel(
        target,
        weight,
        factor,
        panel.loss,
        number,
        1.75,
        searched,
        2.0**-12,
        all_codes[1:-1, 4:],
        8,
        all_scales[:, 2:-1],
        1,
        first_block,
        all_error[:, 2 : 2 + channels],
        2,
    )
    np.testing.assert_array_equal(all_codes[1:-1, 12 : 12 + code_bytes], expected.codes)
    np.testing.assert_array_equal(all_error[:, 2 : 2 + channels], expected.error)
    per_row = all_scales.transpose(1, 0, 2).reshape(rows + 3, -1)
    expected_bytes = expected.scales.transpose(1, 0, 2).reshape(rows, -1)[:, :blocks]
    start = 4 + first_block
    np.testing.assert_array_equal(per_row[2:-1, start : start + blocks], expected_bytes)
    # Nothing else is written.
    all_codes[1:-1, 12 : 12 + code_bytes] = 0xA5
    per_row[2:-1, start : start + blocks] = 0xA5
    all_error[:, 2 : 2 + channels] = 7
    assert (all_codes == 0xA5).all() and (per_row == 0xA5).all() and (all_error == 7).all()


@SEARCHED
@EVERY_FORMAT
def test_blocks_of_zeros(number: int, searched: bool):
    panel = random_panel(17, 64)
    length = BLOCKS[number]
    channels = slice(length, 2 * length)
    panel.weight[:, channels] = panel.target[:, channels] = 0
    panel.factor[:, channels] = 0
    got = quantize(panel, number, searched)
    assert (unpack_codes(got.codes, BITS[number])[:, channels] == 0).all()
    assert (got.scales[0, :, 1] == 0).all() and (got.error[:, channels] == 0).all()
    check_zero = dataclasses.replace(panel, factor=random_panel(1, 64).factor)
    # A block that is zero when it begins stays so, whatever its weight feeds back.
    check_zero.weight[:, :length] = check_zero.target[:, :length] = 0
    check_zero.weight[:, 0] = 1
    got = quantize(check_zero, number, searched)
    magnitudes = unpack_codes(got.codes, BITS[number])[:, :length] & ((1 << BITS[number] - 1) - 1)
    assert (magnitudes == 0).all() and (got.scales[0, :, 0] == 0).all()
    assert (got.error[:, 0] == 1).all()


@SEARCHED
@pytest.mark.parametrize("exponent", [-140, -110, 110], ids="2^{}".format)
@pytest.mark.parametrize("number", range(4), ids=NAMES[:4])
def test_powers_of_two_scale_mx_results(number: int, exponent: int, searched: bool):
    """Losses are compared in the block's unit: their squares leave the range of fp32 otherwise."""
    panel = random_panel(33, 64)
    if exponent < -126:  # so few bits that products with the factor are exact
        panel = dataclasses.replace(
            panel,
            target=np.round(panel.target * 16) / 16,
            weight=np.round(panel.weight * 16) / 16,
            factor=np.triu(np.round(panel.factor), 1).astype(np.float32),
        )
    power = np.float32(np.ldexp(1.0, exponent))
    moved = dataclasses.replace(panel, target=panel.target * power, weight=panel.weight * power)
    expected, got = quantize(panel, number, searched), quantize(moved, number, searched)
    shift = got.scales[0, :, :2].astype(int) - expected.scales[0, :, :2]
    if exponent > -126:
        assert (shift == exponent).all()
        np.testing.assert_array_equal(got.codes, expected.codes)
    else:
        assert (got.scales <= 2).all()
    assert np.isfinite(got.error).all()


@SEARCHED
@EVERY_FORMAT
@pytest.mark.parametrize("size", [np.finfo(np.float32).max, np.finfo(np.float32).tiny / 2**23])
@pytest.mark.parametrize("every_channel", [False, True], ids=["last", "all"])
def test_the_ends_of_fp32_stay_finite(
    every_channel: bool, size: float, number: int, searched: bool
):
    """At twice the first scale, the largest fp32 would be rounded to 2^128, with little loss.

    Whatever follows in the block would then be NaN, and so would the loss; the last channel counts.
    """
    signs = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.float32), (17, 64))
    if not every_channel:
        signs[:, np.arange(64) % 16 != 15] = 0
    panel = dataclasses.replace(random_panel(17, 64), target=signs * size, weight=signs * size)
    got = quantize(panel, number, searched, threshold=2.0, tensor_scale=1.0)
    assert np.isfinite(got.error).all() and (got.scales[0, :, :2] < 255).all()


def arguments() -> dict[str, object]:
    panel = random_panel(5, 64)
    return {
        "target": panel.target,
        "weight": panel.weight,
        "factor": panel.factor,
        "loss": panel.loss,
        "format": 0,
        "threshold": 1.75,
        "searched": False,
        "tensor_scale": 1.0,
        "codes": np.zeros((5, 48), np.uint8),
        "code_offset": 0,
        "scales": np.zeros((2, 5, 4), np.uint8),
        "first_word": 0,
        "first_block": 0,
        "error": np.zeros((5, 64), np.float32),
        "threads": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros((5, 48), np.float32)}, "panel of 48 channels"),
        ({"target": np.zeros((5, 160), np.float32)}, "panel of 160 channels"),
        ({"target": np.zeros((64, 5), np.float32).T}, "target: the values of a row"),
        ({"weight": np.zeros((4, 64), np.float32)}, "weight has shape [4, 64]"),
        ({"weight": np.zeros((5, 128), np.float32)[:, ::2]}, "weight: the values of a row"),
        ({"factor": np.zeros((32, 64), np.float32)}, "factor has shape [32, 64]"),
        ({"loss": np.zeros(63, np.float32)}, "loss has 63 entries"),
        ({"error": np.zeros((5, 32), np.float32)}, "error has shape [5, 32]"),
        ({"format": 5}, "format id 5"),
        ({"format": -1}, "format id -1"),
        ({"threshold": 2.5}, "threshold 2.5 is outside [1, 2]"),
        ({"threshold": float("nan")}, "is outside [1, 2]"),
        ({"tensor_scale": 3.0}, "is no power of two"),
        ({"codes": np.zeros((4, 48), np.uint8)}, "codes has shape [4, 48]"),
        ({"code_offset": 17}, "32 bytes at offset 17 are not inside rows of 48"),
        ({"code_offset": -1}, "at offset -1"),
        ({"scales": np.zeros((2, 4, 4), np.uint8)}, "scales has shape [2, 4, 4]"),
        ({"first_word": 2}, "of word 2 on are not inside 2 words"),
        ({"first_word": -1}, "of word -1 on"),
        ({"first_block": 7}, "2 blocks from block 7 of word 0"),
        ({"first_block": -1}, "from block -1"),
        ({"first_block": 3, "first_word": 1}, "from block 3 of word 1"),
        ({"threads": 0}, "threads is 0"),
        ({"instruction_set": "mmx"}, "no instruction set mmx"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], message: str):
    native.feedback_panel(**arguments())
    with pytest.raises(ValueError, match=re.escape(message)):
        native.feedback_panel(**(arguments() | change))


def test_no_rows_is_no_work():
    empty = {
        "target": np.zeros((0, 64), np.float32),
        "weight": np.zeros((0, 64), np.float32),
        "codes": np.zeros((0, 48), np.uint8),
        "scales": np.zeros((2, 0, 4), np.uint8),
        "error": np.zeros((0, 64), np.float32),
    }
    native.feedback_panel(**(arguments() | empty))
