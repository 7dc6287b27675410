"""The native module gives the bytes of formats.py, whatever the layout, dtype or thread count."""

from __future__ import annotations

import dataclasses
import math
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcompile.formats import BLOCK_FORMATS
from mmcompile.quantize import (
    dequantize_blocks,
    pack_codes,
    quantize_blocks,
    quantize_blocks_searched,
)
from tests.node_models import padded_to, words_first

native = pytest.importorskip(
    "mmcompile._native", reason="the native module is not built (plugins/README.md)"
)

FORMATS = list(BLOCK_FORMATS.values())
NAMES = list(BLOCK_FORMATS)
THRESHOLDS = [1.75, None]
"""By rule, and searched."""
NativeSegments = list[tuple[int, int, float | None]]


@dataclasses.dataclass(frozen=True)
class Packed:
    codes: np.ndarray
    scales: np.ndarray
    values: np.ndarray
    sums: np.ndarray


def reference(
    weight: np.ndarray, order: np.ndarray, segments: NativeSegments, tensor_scale: float
) -> Packed:
    """What packing [N, K] must give, by formats.py; the layout is built by numpy."""
    ordered = np.where(order >= 0, weight[:, order], np.float32(0))
    codes, scales, values, sums = [], [], [], []
    first = 0
    for channels, number, threshold in segments:
        fmt = FORMATS[number]
        part = np.ascontiguousarray(ordered[:, first : first + channels])
        first += channels
        if threshold is None:
            part_codes, part_scales = quantize_blocks_searched(part, fmt, tensor_scale)
        else:
            part_codes, part_scales = quantize_blocks(part, fmt, threshold, tensor_scale)
        codes.append(padded_to(pack_codes(part_codes, fmt.element.bits), 16))
        scales.append(words_first(part_scales))
        values.append(dequantize_blocks(part_codes, part_scales, fmt, tensor_scale))
        with np.errstate(invalid="ignore"):
            exact = part.astype(np.float64)
            sums.append([(exact**2).sum(), ((exact - values[-1]) ** 2).sum()])
    return Packed(
        np.concatenate(codes, 1), np.concatenate(scales), np.concatenate(values, 1), np.array(sums)
    )


def row_sizes(segments: NativeSegments) -> tuple[int, int]:
    """Bytes of a row's codes, and words of its scales."""
    codes = sum(
        math.ceil(channels * FORMATS[f].element.bits / 128) * 16 for channels, f, _ in segments
    )
    return codes, sum(math.ceil(channels / FORMATS[f].block / 4) for channels, f, _ in segments)


def outputs(rows: int, segments: NativeSegments) -> tuple[np.ndarray, np.ndarray]:
    """Poisoned, so that bytes left unwritten show."""
    row_bytes, words = row_sizes(segments)
    return np.full((rows, row_bytes), 0xA5, np.uint8), np.full((words, rows, 4), 0xA5, np.uint8)


def pack(
    weight: np.ndarray,
    order: np.ndarray,
    segments: NativeSegments,
    tensor_scale: float = 1.0,
    channels_first: bool = False,
    **options: object,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = weight.shape[1 if channels_first else 0]
    codes, scales = outputs(rows, segments)
    threads = options.pop("threads", 1)
    sums = native.quantize_pack(
        weight, channels_first, order, segments, tensor_scale, codes, scales, threads, **options
    )
    return codes, scales, sums


def values_of_many_sizes(rows: int, channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, channels)) * np.exp2(rng.integers(-9, 4, (rows, channels)))
    values *= np.exp2(rng.integers(-40, 40, (rows, 1)))
    values[rng.random(values.shape) < 0.05] = 0
    values[rng.random(values.shape) < 0.05] = -0.0
    return values.astype(np.float32)


def assert_same(packed: tuple[np.ndarray, ...], expected: Packed) -> None:
    codes, scales, sums = packed
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(codes, expected.codes)
    # 32 fp32 additions of fp32 products lose at most 33 · 2^-24 of a sum.
    np.testing.assert_allclose(sums, expected.sums, rtol=33 * 2.0**-24, atol=0)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("instruction_set", native.instruction_sets())
@pytest.mark.parametrize("number", range(5), ids=NAMES)
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (37, 96), (300, 160)], ids=str)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_packs_the_bytes_of_the_reference(
    threshold: float | None,
    shape: tuple[int, int],
    number: int,
    instruction_set: str,
    channels_first: bool,
):
    rows, channels = shape
    weight = values_of_many_sizes(rows, channels, seed=number)
    order = np.random.default_rng(1).permutation(channels).astype(np.int32)
    segments = [(channels, number, threshold)]
    source = np.ascontiguousarray(weight.T) if channels_first else weight
    packed = pack(
        source, order, segments, 2.0**-5, channels_first, instruction_set=instruction_set, threads=2
    )
    assert_same(packed, reference(weight, order, segments, 2.0**-5))


def undecided_blocks(number: int, count: int) -> np.ndarray:
    """Blocks[n, block] between two neighbours of which the reference chooses different scales.

    A random block is stretched until the choice changes, which is where both scales err alike, and
    the place is narrowed down to the last bit: there the order of the sums decides.
    """
    fmt = FORMATS[number]
    rng = np.random.default_rng(number)
    base = rng.standard_normal((count, fmt.block))
    base /= np.abs(base).max(axis=1, keepdims=True)

    def blocks(stretch: np.ndarray) -> np.ndarray:
        return (stretch[:, None] * base).astype(np.float32)

    def second(stretch: np.ndarray) -> np.ndarray:
        other = quantize_blocks(blocks(stretch), fmt, 2.0)[1][:, 0]
        return quantize_blocks_searched(blocks(stretch), fmt)[1][:, 0] != other

    low, high = np.full(count, 1.01), np.full(count, 1.99)
    differ = second(low) != second(high)
    at_low = second(low)
    for _ in range(30):
        middle = (low + high) / 2
        same = second(middle) == at_low
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.concatenate([blocks(low)[differ], blocks(high)[differ]])


@pytest.mark.parametrize("instruction_set", native.instruction_sets())
@pytest.mark.parametrize("number", range(5), ids=NAMES)
def test_searched_scales_are_those_of_the_reference_to_the_last_bit(
    number: int, instruction_set: str
):
    blocks = undecided_blocks(number, 2000)
    assert len(blocks) > 100
    weight = np.zeros((len(blocks), 32), np.float32)
    weight[:, : blocks.shape[1]] = blocks
    order, segments = np.arange(32, dtype=np.int32), [(32, number, None)]
    packed = pack(weight, order, segments, instruction_set=instruction_set)
    assert_same(packed, reference(weight, order, segments, 1.0))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_shape_split_order_layout_and_thread_count(data: st.DataObject):
    lengths = st.integers(1, 6).map(lambda blocks: 32 * blocks)
    thresholds = st.sampled_from([1.0, 1.5, 1.75, 1.875, 2.0, None])
    segment = st.tuples(lengths, st.integers(0, 4), thresholds)
    segments = data.draw(st.lists(segment, min_size=1, max_size=5))
    padded = sum(channels for channels, _, _ in segments)
    channels = data.draw(st.integers(1, padded))
    rows = data.draw(st.integers(1, 150))
    seed = data.draw(st.integers(0, 2**32 - 1))
    channels_first = data.draw(st.booleans())
    tensor_scale = 2.0 ** data.draw(st.sampled_from([-100, -12, 0, 3, 100]))

    rng = np.random.default_rng(seed)
    order = np.full(padded, -1, np.int32)
    order[:channels] = rng.permutation(channels)
    order = rng.permutation(order)
    weight = values_of_many_sizes(rows, channels, seed)
    source = weight.T if channels_first else weight
    source = data.draw(
        st.sampled_from([source, np.ascontiguousarray(source), np.asfortranarray(source)])
    )
    threads = data.draw(st.integers(1, 4))
    packed = pack(source, order, segments, tensor_scale, channels_first, threads=threads)
    expected = reference(weight, order, segments, tensor_scale)
    assert_same(packed, expected)

    out = np.full((rows, padded), np.nan, np.float32)
    native.dequantize(packed[0], packed[1], segments, tensor_scale, out, threads)
    np.testing.assert_array_equal(out, expected.values)
    rows_out = native.quantize_rows(weight, order, segments, tensor_scale, threads)
    np.testing.assert_array_equal(rows_out, expected.values)
    assert rows_out.dtype == np.float32


@pytest.mark.parametrize("number", range(5), ids=NAMES)
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_all_exponents_up_to_the_ends_of_fp32(
    threshold: float | None, number: int, channels_first: bool
):
    bits = np.random.default_rng(number).integers(0, 2**32, (512, 64), dtype=np.uint32)
    # Rows of one exponent each, give or take two, so that the elements' roundings show.
    exponents = np.clip(np.arange(512)[:, None] // 2 - bits % 3, 0, 253).astype(np.uint32)
    weight = ((bits & 0x807FFFFF) | exponents << 23).view(np.float32)
    weight[1, ::2] = np.float32(1e-45)
    order = np.arange(64, dtype=np.int32)
    segments = [(64, number, threshold)]
    source = np.ascontiguousarray(weight.T) if channels_first else weight
    for tensor_scale in (1.0, 2.0**100, 2.0**-100):
        packed = pack(source, order, segments, tensor_scale, channels_first)
        assert_same(packed, reference(weight, order, segments, tensor_scale))


@pytest.mark.parametrize("number", range(5), ids=NAMES)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_largest_fp32(threshold: float | None, number: int):
    largest = np.finfo(np.float32).max
    weight = np.full((16, 32), largest) * np.linspace(-1, 1, 32, dtype=np.float32)
    order = np.arange(32, dtype=np.int32)
    segments = [(32, number, threshold)]
    codes, scales, sums = pack(weight, order, segments, 2.0**100)
    with np.errstate(over="ignore"):  # 2^128, to which the largest fp32 may be rounded, is Inf
        expected = reference(weight, order, segments, 2.0**100)
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(codes, expected.codes)
    assert np.isfinite(sums).all()
    out = np.zeros((16, 32), np.float32)
    native.dequantize(codes, scales, segments, 2.0**100, out, 1)
    np.testing.assert_array_equal(out, expected.values)


@pytest.mark.parametrize("instruction_set", native.instruction_sets())
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_16_bit_weights_are_widened_exactly(kind: str, channels_first: bool, instruction_set: str):
    bits = np.arange(2**16, dtype=np.uint16)
    narrow = bits.view(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        wide = narrow.astype(np.float32).reshape(-1, 64)
    stored = narrow.reshape(-1, 64) if kind == "float16" else bits.reshape(-1, 64)
    order = np.random.default_rng(0).permutation(64).astype(np.int32)
    segments = [(32, 3, 1.75), (32, 1, 1.875)]
    options = {"bf16": kind == "bfloat16", "instruction_set": instruction_set}
    if channels_first:
        stored = np.ascontiguousarray(stored.T)
    codes, scales, _ = pack(stored, order, segments, 1.0, channels_first, **options)
    expected = reference(wide, order, segments, 1.0)
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(codes, expected.codes)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_16_bit_value_by_its_square(kind: str):
    # The sum of one square shows every bit of a value: at most 11 bits squared are exact in fp32.
    bits = np.arange(2**16, dtype=np.uint16)
    narrow = bits.view(np.float16 if kind == "float16" else ml_dtypes.bfloat16)
    order = np.array([0] + [-1] * 31, np.int32)
    codes, scales = outputs(1, [(32, 3, 2.0)])
    for i, value in enumerate(narrow):
        stored = (narrow if kind == "float16" else bits)[i : i + 1, None]
        sums = native.quantize_pack(
            stored, False, order, [(32, 3, 2.0)], 1.0, codes, scales, 1, kind == "bfloat16"
        )
        wide = float(value)
        expected = wide**2 if np.isfinite(wide) else np.nan
        np.testing.assert_equal(sums[0, 0], expected)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("number", range(5), ids=NAMES)
@pytest.mark.parametrize("threshold", [2.0, None])
def test_blocks_that_are_not_finite(
    threshold: float | None, number: int, bad: float, channels_first: bool
):
    weight = values_of_many_sizes(40, 96, seed=2)
    weight[3, 40] = weight[39, 0] = bad
    order = np.arange(96, dtype=np.int32)
    segments = [(32, 0, 2.0), (64, number, threshold)]
    source = np.ascontiguousarray(weight.T) if channels_first else weight
    codes, scales, sums = pack(source, order, segments, 1.0, channels_first)
    with np.errstate(invalid="ignore"):
        expected = reference(weight, order, segments, 1.0)
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(codes, expected.codes)
    assert np.isnan(sums).all()
    out = np.zeros((40, 96), np.float32)
    native.dequantize(codes, scales, segments, 1.0, out, 1)
    np.testing.assert_array_equal(out, expected.values)
    assert np.isnan(out[3]).sum() == FORMATS[number].block


@pytest.mark.parametrize("number", range(5), ids=NAMES)
def test_dequantizes_all_codes_and_scales(number: int):
    fmt = FORMATS[number]
    rng = np.random.default_rng(number)
    codes = rng.integers(0, 2**fmt.element.bits, (256, 128), dtype=np.uint8)
    scales = rng.permutation(np.arange(256, dtype=np.uint8))[:, None]
    scales = np.repeat(scales, 128 // fmt.block, axis=1)
    out = np.zeros((256, 128), np.float32)
    packed = pack_codes(codes, fmt.element.bits)
    words = np.ascontiguousarray(words_first(scales))
    native.dequantize(packed, words, [(128, number, 2.0)], 2.0**-9, out, 2)
    np.testing.assert_array_equal(out, dequantize_blocks(codes, scales, fmt, 2.0**-9))


def test_sums_do_not_depend_on_threads_or_instruction_set():
    weight = values_of_many_sizes(777, 192, seed=5)
    order = np.random.default_rng(3).permutation(192).astype(np.int32)
    segments = [(32, 4, 2.0), (64, 1, 1.875), (32, 3, 1.75), (32, 4, None), (32, 0, None)]
    for channels_first, source in ((False, weight), (True, np.ascontiguousarray(weight.T))):
        first = pack(source, order, segments, 0.5, channels_first)[2]
        for name in native.instruction_sets():
            for threads in (1, 2, 7):
                other = pack(
                    source, order, segments, 0.5, channels_first, threads=threads,
                    instruction_set=name,
                )[2]  # fmt: skip
                np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("channels_first", [True, False])
def test_any_strides(channels_first: bool):
    storage = np.zeros((200, 300), np.float32)
    weight = values_of_many_sizes(50, 96, seed=6)
    source = weight.T if channels_first else weight
    view = storage[::-2, 1::3][: source.shape[0], : source.shape[1]]
    view[:] = source
    order = np.random.default_rng(4).permutation(96).astype(np.int32)
    segments = [(96, 2, 1.75)]
    packed = pack(view, order, segments, 1.0, channels_first)
    assert_same(packed, reference(weight, order, segments, 1.0))


def test_read_only_weights_and_slices_of_rows(tmp_path):
    weight = values_of_many_sizes(64, 32, seed=7)
    weight.tofile(tmp_path / "weight")
    mapped = np.memmap(tmp_path / "weight", np.float32, "r", shape=(64, 32))
    for segments in ([(32, 0, 1.75)], [(32, 1, 1.75), (160, 4, 2.0), (160, 2, 1.75)]):
        order = np.full(sum(channels for channels, _, _ in segments), -1, np.int32)
        order[-32:] = np.arange(32)
        codes, scales = outputs(192, segments)
        part, part_scales = codes[64:128], scales[:, 64:128]
        native.quantize_pack(mapped, False, order, segments, 1.0, part, part_scales, threads=2)
        expected = reference(weight, order, segments, 1.0)
        np.testing.assert_array_equal(part, expected.codes)
        np.testing.assert_array_equal(part_scales, expected.scales)
        for rest in (codes[:64], codes[128:], scales[:, :64], scales[:, 128:]):
            assert (rest == 0xA5).all()
        out = np.zeros((64, order.size), np.float32)
        native.dequantize(part, part_scales, segments, 1.0, out, 1)
        np.testing.assert_array_equal(out, expected.values)


def test_no_rows_is_no_work():
    order = np.arange(32, dtype=np.int32)
    codes, scales, sums = pack(np.zeros((0, 32), np.float32), order, [(32, 0, 2.0)])
    assert (codes.shape, scales.shape) == ((0, 16), (1, 0, 4))
    np.testing.assert_array_equal(sums, [[0, 0]])
    empty = np.zeros((0, 32), np.float32)
    assert native.quantize_rows(empty, order, [(32, 0, 2.0)], 1.0, 2).shape == (0, 32)


def test_rows_of_activations_from_a_view():
    x = values_of_many_sizes(90, 64, seed=8)
    order = np.random.default_rng(5).permutation(64).astype(np.int32)
    segments = [(32, 4, 2.0), (32, 3, 1.75)]
    expected = reference(x, order, segments, 2.0).values
    strided = np.asfortranarray(x)
    for threads in (1, 3):
        result = native.quantize_rows(strided, order, segments, 2.0, threads)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "channels"), [(1, 5), (16, 32), (37, 96), (300, 161)])
def test_rows_are_put_in_order(rows: int, channels: int, kind: str, channels_first: bool):
    random = np.random.default_rng(rows)
    values = random.standard_normal((rows, channels)).astype(np.dtype(kind))
    order = np.full(-(-channels // 32) * 32, -1, np.int32)
    order[random.permutation(order.size)[:channels]] = random.permutation(channels)
    expected = np.where(order >= 0, values.astype(np.float32)[:, order], np.float32(0))
    given = np.ascontiguousarray(values.T) if channels_first else values
    bf16 = kind == "bfloat16"
    for threads in (1, 3):
        found = native.order_rows(
            given.view(np.uint16) if bf16 else given, channels_first, order, threads, bf16=bf16
        )
        np.testing.assert_array_equal(found, expected)
        part = given[:, rows // 2 :] if channels_first else given[rows // 2 :]
        found = native.order_rows(
            part.view(np.uint16) if bf16 else part, channels_first, order, threads, bf16=bf16
        )
        np.testing.assert_array_equal(found, expected[rows // 2 :])


@pytest.mark.parametrize(
    ("order", "threads", "message"),
    [
        (np.arange(31, dtype=np.int32), 1, "order has 31 channels"),
        (np.zeros(0, np.int32), 1, "order has 0 channels"),
        (np.full(32, 40, np.int32), 1, r"order\[0\] is 40"),
        (np.arange(32, dtype=np.int32), 0, "threads is 0"),
    ],
)
def test_orders_that_do_not_fit_are_refused(order: np.ndarray, threads: int, message: str):
    with pytest.raises(ValueError, match=message):
        native.order_rows(np.zeros((4, 40), np.float32), False, order, threads)


def test_other_threads_run_meanwhile():
    weight = np.ones((4096, 2048), np.float32)
    order = np.arange(2048, dtype=np.int32)
    segments = [(2048, 1, 2.0)]
    codes, scales = outputs(4096, segments)

    def ticks_within() -> bool:
        """Whether this thread ran in the middle of the call."""
        times, ticks = [], []

        def work() -> None:
            times.append(time.perf_counter())
            native.quantize_pack(
                weight, False, order, segments, 1.0, codes, scales, 1, instruction_set="generic"
            )
            times.append(time.perf_counter())

        worker = threading.Thread(target=work)
        worker.start()
        while worker.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)
        begin, end = times
        return any(begin < tick - 0.2 * (end - begin) < tick < end - 0.2 * (end - begin)
                   for tick in ticks)  # fmt: skip

    # With the interpreter's lock held there would be no such tick ever; on a busy machine there is
    # not always one.
    assert any(ticks_within() for _ in range(50))


GOOD = {
    "weight": np.zeros((8, 64), np.float32),
    "channels_first": False,
    "order": np.arange(64, dtype=np.int32),
    "segments": [(32, 0, 1.75), (32, 3, 1.75)],
    "tensor_scale": 1.0,
    "codes": np.zeros((8, 48), np.uint8),
    "scales": np.zeros((2, 8, 4), np.uint8),
    "threads": 1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": np.arange(63, dtype=np.int32)}, "order has 63 channels, the segments have 64"),
        ({"order": np.arange(1, 65, dtype=np.int32)}, r"order\[63\] is 64, needed is -1..63"),
        ({"order": np.arange(-2, 62, dtype=np.int32)}, r"order\[0\] is -2"),
        ({"segments": [(48, 0, 1.0), (16, 0, 1.0)]}, "segment 0: 48 channels"),
        ({"segments": [(64, 0, 1.0), (0, 0, 1.0)]}, "segment 1: 0 channels"),
        ({"segments": [(64, 5, 1.0)]}, "segment 0: format id 5 is not in 0..4"),
        ({"segments": [(64, -1, 1.0)]}, "format id -1"),
        ({"segments": [(64, 0, 0.5)]}, r"threshold 0.5 is outside \[1, 2\]"),
        ({"segments": [(64, 0, float("nan"))]}, "threshold nan"),
        ({"tensor_scale": 3.0}, "no power of two"),
        ({"tensor_scale": 2.0**101}, "no power of two"),
        ({"tensor_scale": float("nan")}, "no power of two"),
        ({"tensor_scale": -1.0}, "no power of two"),
        ({"codes": np.zeros((8, 47), np.uint8)}, r"codes has shape \[8, 47\], needed is \[8, 48\]"),
        (
            {"scales": np.zeros((2, 7, 4), np.uint8)},
            r"scales has shape \[2, 7, 4\], needed is \[2, 8, 4\]",
        ),
        ({"scales": np.zeros((3, 8, 4), np.uint8)}, r"scales has shape \[3, 8, 4\]"),
        ({"scales": np.zeros((2, 8, 8), np.uint8)}, r"scales has shape \[2, 8, 8\]"),
        ({"scales": np.zeros((2, 8, 8), np.uint8)[..., ::2]}, "rows of a word are not contiguous"),
        ({"scales": np.zeros((2, 16, 4), np.uint8)[:, ::2]}, "rows of a word are not contiguous"),
        ({"threads": 0}, "threads is 0"),
        ({"weight": np.zeros((8, 64), np.float64)}, "float32, float16"),
        ({"weight": np.zeros((8, 64), np.uint16)}, "float32, float16"),
        ({"bf16": True}, "uint16"),
        ({"weight": np.zeros((8, 0), np.float32)}, "no input channels"),
        ({"instruction_set": "sse9"}, "sse9"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        native.quantize_pack(**{**GOOD, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"codes": np.zeros((8, 96), np.uint8)[:, ::2]},
        {"codes": np.zeros((8, 48), np.int8)},
        {"codes": np.frombuffer(bytes(8 * 48), np.uint8).reshape(8, 48)},
        {"scales": np.frombuffer(bytes(2 * 8 * 4), np.uint8).reshape(2, 8, 4)},
        {"scales": np.zeros((8, 2), np.uint8)},
        {"order": np.arange(64)},
        {"weight": np.zeros(64, np.float32)},
    ],
    ids=[
        "strided output",
        "signed output",
        "read-only output",
        "read-only scales",
        "two-axis scales",
        "int64 order",
        "one axis",
    ],
)
def test_arrays_of_another_kind_are_refused(change: dict[str, object]):
    with pytest.raises(TypeError):
        native.quantize_pack(**{**GOOD, **change})


def test_dequantize_and_rows_check_their_arguments():
    out = np.zeros((8, 64), np.float32)
    codes, scales = GOOD["codes"], GOOD["scales"]
    with pytest.raises(ValueError, match="out has shape"):
        native.dequantize(codes, scales, GOOD["segments"], 1.0, out[:7], 1)
    with pytest.raises(ValueError, match="scales has shape"):
        native.dequantize(codes, scales[:1], GOOD["segments"], 1.0, out, 1)
    with pytest.raises(ValueError, match="rows of a word"):
        native.dequantize(
            codes, np.zeros((2, 4, 8), np.uint8).transpose(0, 2, 1), GOOD["segments"], 1.0, out, 1
        )
    with pytest.raises(ValueError, match="x is float32"):
        native.quantize_rows(out.astype(np.float16), GOOD["order"], GOOD["segments"], 1.0, 1)
