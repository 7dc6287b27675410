"""The quantizing kernel, in the emulator, gives the bytes of formats.py whatever the launch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from mmcompile.formats import BLOCK_FORMATS, THRESHOLDS
from mmcompile.quantize import element_table, quantize_blocks
from tests.kernels.build import EMULATOR_SOURCES, TESTING, compile_shared_library
from tests.node_models import padded_to, words_first

pytestmark = pytest.mark.slow


FORMATS = list(BLOCK_FORMATS.values())
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SIGNIFICANT_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
ELEMENTS = [
    ml_dtypes.float4_e2m1fn,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.float8_e4m3fn,
]
NONE, E4M3, ALL = range(3)
MXF4, NVF4, MXF8 = range(3)
MODES = [(True, 1), (True, 2), (True, 4), (False, 1), (False, 2)]
STAGED_THREADS, DIRECT_THREADS = 256, 64
POISON = 0xA5

# (channels, activation format, instruction, threshold) of segments. Borders fall anywhere in the
# 256 channels that a warp takes at a time, and in the 128 or 64 of a word of scales.
MIXES = {
    "mxfp4": [(352, 0, MXF4, 1.75)],
    "nvfp4": [(96, 4, NVF4, 2.0)],
    "nvfp4-then-all": [
        (32, 4, NVF4, 2.0),
        (288, 0, MXF4, 1.5),
        (32, 3, MXF8, 1.75),
        (64, 1, MXF8, 1.875),
        (96, 2, MXF8, 2.0),
        (160, 0, MXF8, 2.0),
    ],
    "bytes": [(544, 3, MXF8, 2.0), (64, 2, MXF8, 1.75)],
}


class Launch(ctypes.Structure):
    _fields_ = [("staged", ctypes.c_bool)] + [
        (name, ctypes.c_int)
        for name in ("rows_per_block", "grid_x", "grid_y", "threads", "shared_bytes")
    ]

    def tuple(self):
        return tuple(getattr(self, name) for name, _ in self._fields_)


class Call(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("x_bytes", ctypes.c_int64),
        ("order", ctypes.c_void_p),
        ("segment_count", ctypes.c_int64),  # of 4 bytes, with what aligns the pointers
        ("channels", ctypes.c_void_p),
        ("act_format", ctypes.c_void_p),
        ("instruction", ctypes.c_void_p),
        ("threshold", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("scale_words", ctypes.c_int32),
        ("counter_count", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("in_channels", ctypes.c_int32),
        ("padded_channels", ctypes.c_int32),
        ("row_bytes", ctypes.c_int32),
        ("tensor_scale", ctypes.c_float),
        ("x_type", ctypes.c_int32),
        ("conversions", ctypes.c_int32),
        ("launch", Launch),
        ("seed", ctypes.c_uint64),
    ]


@cache
def library() -> ctypes.CDLL:
    sources = [TESTING / "quantize_test.cpp", *EMULATOR_SOURCES]
    built = ctypes.CDLL(str(compile_shared_library("quantize_test", sources)))
    built.quantize_test_staged_bytes.restype = ctypes.c_int64
    built.quantize_test_reciprocal.restype = ctypes.c_float
    built.quantize_test_reciprocal.argtypes = [ctypes.c_float]
    return built


@dataclass
class Quantized:
    codes: np.ndarray  # [rows, row_bytes]
    scales: np.ndarray  # [words, rows, 4]
    launch: Launch


def aligned(shape, dtype, offset=0):
    """An array whose first byte is `offset` beyond a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start : start + size].view(dtype).reshape(shape)


def random_order(in_channels, padded, seed=0):
    """All channels once, with padding anywhere."""
    order = np.concatenate([np.arange(in_channels), np.full(padded - in_channels, -1)])
    return np.random.default_rng(seed).permutation(order).astype(np.int32)


def code_bytes(segment):
    channels, _, instruction, _ = segment
    return channels if instruction == MXF8 else channels // 2


def expected(x, order, segments, tensor_scale):
    """Codes and scales by formats.py; E4M3 bytes of other grids' values by ml_dtypes."""
    wide = x.astype(np.float32)
    ordered = np.where(order >= 0, wide[:, order], np.float32(0))
    codes, scales, first = [], [], 0
    for channels, number, instruction, threshold in segments:
        fmt = FORMATS[number]
        part = np.ascontiguousarray(ordered[:, first : first + channels])
        first += channels
        part_codes, part_scales = quantize_blocks(part, fmt, threshold, tensor_scale)
        if instruction == MXF8:
            values = element_table(fmt.element)[part_codes]
            codes.append(values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
        else:
            codes.append(part_codes[:, ::2] | part_codes[:, 1::2] << 4)
        scales.append(words_first(padded_to(part_scales, 4)))
    return np.concatenate(codes, 1), np.concatenate(scales)


def quantize(
    x,
    order,
    segments,
    mode=None,
    *,
    conversions=NONE,
    tensor_scale=1.0,
    grid_y=2,
    seed=0,
    multiprocessors=0,
) -> Quantized:
    """Runs the kernel: staged or not with that many rows, or what choose_quantize says."""
    rows, in_channels = x.shape
    scale_words = sum(-(-c // (64 if i == NVF4 else 128)) for c, _, i, _ in segments)
    order_array = aligned(order.shape, np.int32)
    order_array[:] = order
    codes = aligned((rows, sum(map(code_bytes, segments))), np.uint8)
    scales = aligned((scale_words, rows, 4), np.uint8)
    counters = np.full(1500, POISON, np.uint32)
    codes[:] = POISON
    scales[:] = POISON
    columns = [
        np.array(column, kind)
        for column, kind in zip(
            zip(*segments, strict=True), (np.int32, np.int32, np.int32, np.float64), strict=True
        )
    ]
    call = Call(
        x.ctypes.data,
        x.nbytes,
        order_array.ctypes.data,
        len(segments),
        *[column.ctypes.data for column in columns],
        codes.ctypes.data,
        scales.ctypes.data,
        counters.ctypes.data,
        scale_words,
        counters.size,
        rows,
        in_channels,
        len(order),
        codes.shape[1],
        tensor_scale,
        list(TYPES.values()).index(x.dtype.type),
        conversions,
        Launch(),
        seed,
    )
    if mode is None:
        library().quantize_test_choose(
            ctypes.byref(call), multiprocessors, ctypes.byref(call, Call.launch.offset)
        )
    else:
        staged, count = mode
        shared = library().quantize_test_staged_bytes(call.x_type, count, in_channels)
        call.launch = (
            Launch(True, count, -(-rows // count), 1, STAGED_THREADS, shared)
            if staged
            else Launch(False, count, -(-rows // count), grid_y, DIRECT_THREADS, 0)
        )
    error = ctypes.create_string_buffer(1024)
    failed = library().quantize_test_run(ctypes.byref(call), error, ctypes.c_int64(len(error)))
    assert not failed, error.value.decode()
    assert not counters.any()
    return Quantized(codes, scales, call.launch)


def check(x, order, segments, mode=None, *, tensor_scale=1.0, **options) -> Launch:
    got = quantize(x, order, segments, mode, tensor_scale=tensor_scale, **options)
    codes, scales = expected(x, order, segments, tensor_scale)
    np.testing.assert_array_equal(got.scales, scales)
    np.testing.assert_array_equal(got.codes, codes)
    return got.launch


def random_values(rows, channels, dtype, seed, offset=0):
    """Magnitudes over many binades, zeros of either sign, a row of subnormals, some NaN and Inf."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0, 8, (rows, 1))
    values = rng.standard_normal((rows, channels)) * np.exp2(rng.uniform(-spread, spread))
    values[rng.random(values.shape) < 0.05] = 0
    values *= rng.choice([-1, 1], values.shape)
    if rows > 2:
        values[1] *= 2.0**-140 if dtype != np.float16 else 2.0**-22
        values[2] *= 2.0**120 if dtype != np.float16 else 2.0**9
    if rows > 4:
        values[3, rng.integers(channels)] = np.nan
        values[4, rng.integers(channels)] = -np.inf
    x = aligned(values.shape, dtype, offset)
    with np.errstate(over="ignore"):
        x[:] = values.astype(np.float32).astype(dtype)
    return x


@pytest.mark.parametrize("mode", MODES, ids=lambda m: f"{'staged' if m[0] else 'direct'}{m[1]}")
@pytest.mark.parametrize("conversions", [NONE, E4M3, ALL], ids=["none", "e4m3", "all"])
@pytest.mark.parametrize("dtype", TYPES)
def test_all_formats_and_launches(dtype, conversions, mode):
    segments = MIXES["nvfp4-then-all"]
    padded = sum(s[0] for s in segments)
    seed = conversions * 10 + mode[1]
    x = random_values(7, padded - 40, TYPES[dtype], seed)
    order = random_order(padded - 40, padded, seed)
    check(x, order, segments, mode, conversions=conversions, tensor_scale=2.0**-3, seed=seed)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", TYPES)
def test_segment_mixes(dtype, mix):
    segments = MIXES[mix]
    padded = sum(s[0] for s in segments)
    x = random_values(5, padded - 8, TYPES[dtype], len(mix))
    order = random_order(padded - 8, padded)
    for mode in (True, 4 if dtype != "float32" else 2), (False, 1):
        for conversions in (NONE, ALL):
            check(x, order, segments, mode, conversions=conversions, tensor_scale=2.0**10)


@pytest.mark.parametrize("rule", THRESHOLDS)
@pytest.mark.parametrize("dtype", TYPES)
def test_scale_rules_around_the_threshold(dtype, rule):
    """Each block's amax is a multiple of 1/64 in 1..2, or next to one, in all binades in turn."""
    kind = TYPES[dtype]
    info = ml_dtypes.finfo(kind)
    amax = np.repeat(np.linspace(1, 2, 64, endpoint=False), 3).astype(kind)
    integers = amax.view(f"u{amax.itemsize}")
    integers[0::3] -= 1
    integers[2::3] += 1
    binades = np.linspace(info.minexp - 1, info.maxexp - 1, amax.size).round()
    blocks = np.zeros((amax.size, 32), np.float64)
    blocks[:, 5] = np.ldexp(amax.astype(np.float64), binades.astype(int))
    blocks[:, 6:] = blocks[:, 5:6] * np.random.default_rng(1).uniform(-1, 1, (amax.size, 26))
    x = blocks.astype(np.float32).astype(kind).reshape(8, -1)
    names = ("mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8")
    for name in names:
        number = BLOCK_FORMATS[name].id
        threshold = THRESHOLDS[rule][name]
        for instruction in {MXF8, MXF4 if number == 0 else MXF8}:
            segments = [(x.shape[1], number, instruction, threshold)]
            order = np.arange(x.shape[1], dtype=np.int32)
            check(x, order, segments, (True, 2), conversions=ALL)
            check(x, order, segments, (True, 1), conversions=NONE)


@pytest.mark.parametrize("scale", [-100, -20, 0, 7, 100])
@pytest.mark.parametrize("dtype", TYPES)
def test_nvfp4_scales(dtype, scale):
    """Scales that are E4M3's subnormals, zero, saturate, and lie next to ties."""
    kind = TYPES[dtype]
    rng = np.random.default_rng(scale + 200)
    with np.errstate(over="ignore"):
        amax = np.exp2(rng.uniform(-14, 14, (6, 32, 1)) + scale)
        amax[0] = np.ldexp(6 * (8 + np.arange(32).reshape(32, 1) / 2), scale - 8)
        x = (amax * rng.uniform(-1, 1, (6, 32, 16))).reshape(6, -1)
        x[:, ::16] = amax[..., 0]
        x = x.astype(np.float32).astype(kind)
    order = np.arange(x.shape[1], dtype=np.int32)
    for conversions in (NONE, ALL):
        segments = [(x.shape[1], 4, NVF4, 2.0)]
        check(x, order, segments, (True, 2), conversions=conversions, tensor_scale=2.0**scale)


@pytest.mark.parametrize("dtype", TYPES)
def test_nvfp4_ties(dtype):
    """x is a tie times the scale; its product with the rounded inverse lies next to the tie."""
    scales = np.arange(8, 16)[:, None]
    ties = np.tile([6, 0.25, -0.75, 1.25, -1.75, 2.5, -3.5, 5], 2)
    x = (scales * ties).astype(np.float32).astype(TYPES[dtype]).reshape(1, -1)
    order = np.arange(128, dtype=np.int32)
    for conversions in (NONE, ALL):
        check(x, order, [(128, 4, NVF4, 2.0)], (True, 1), conversions=conversions)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ends_of_the_range(dtype):
    """amax near 2^128, the smallest subnormals, and blocks of zeros of either sign."""
    kind = TYPES[dtype]
    largest = float(ml_dtypes.finfo(kind).max)
    smallest = float(ml_dtypes.finfo(kind).smallest_subnormal)
    x = np.zeros((4, 64), np.float64)
    x[0, ::3] = largest
    x[0, 1::3] = -largest / 2
    x[1, :16] = -smallest
    x[1, 16:] = smallest * np.arange(48)
    x[2, ::2] = -0.0
    x[3] = np.exp2(np.linspace(-149, 127, 64))
    x = x.astype(np.float32).astype(kind)
    order = np.arange(64, dtype=np.int32)
    for number, instruction in [(0, MXF4), (4, NVF4), (0, MXF8), (1, MXF8), (2, MXF8), (3, MXF8)]:
        for conversions in (NONE, ALL):
            segments = [(64, number, instruction, 1.75)]
            check(x, order, segments, (True, 4), conversions=conversions)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 13, 37])
def test_any_number_of_rows(rows):
    x = random_values(rows, 96, ml_dtypes.bfloat16, rows)
    segments = [(32, 4, NVF4, 2.0), (32, 0, MXF4, 2.0), (32, 3, MXF8, 2.0)]
    for mode in MODES:
        check(x, random_order(96, 96), segments, mode, conversions=E4M3)


@pytest.mark.parametrize("in_channels", [1, 2, 7, 8, 31, 33, 255, 352])
@pytest.mark.parametrize("dtype", TYPES)
def test_any_number_of_channels(dtype, in_channels):
    """Rows that do not start at multiples of 16 bytes, and a base address that does not."""
    padded = in_channels + -in_channels % 128
    segments = [(padded - 32, 0, MXF4, 1.75), (32, 3, MXF8, 1.75)]
    for mode, offset in ((True, 1), 0), ((True, 2), 4), ((True, 4), 0), ((False, 1), 0):
        x = random_values(5, in_channels, TYPES[dtype], in_channels, offset)
        check(x, random_order(in_channels, padded), segments, mode)


@pytest.mark.parametrize("seed", range(3))
def test_random_layers(seed):
    rng = np.random.default_rng(seed + 77)
    choices = [(4, NVF4), (0, MXF4), (0, MXF8), (1, MXF8), (2, MXF8), (3, MXF8)]
    count = rng.integers(1, 9)
    segments = [
        (32 * int(rng.integers(1, 12)), *choices[c], float(rng.uniform(1, 2)))
        for c in np.sort(rng.integers(0, len(choices), count))
    ]
    padded = sum(s[0] for s in segments)
    in_channels = int(rng.integers(padded - 31, padded + 1))
    kind = list(TYPES.values())[seed % 3]
    x = random_values(int(rng.integers(1, 12)), in_channels, kind, seed)
    order = random_order(in_channels, padded, seed)
    for mode in MODES:
        check(x, order, segments, mode, conversions=seed % 3, tensor_scale=0.5, seed=seed)


def test_a_channel_may_occur_twice_and_not_at_all():
    x = random_values(3, 10, np.float16, 5)
    order = np.random.default_rng(1).integers(-1, 10, 128).astype(np.int32)
    for mode in MODES:
        check(x, order, [(128, 0, MXF4, 1.75)], mode)


# --- rounding, value by value ---


def encode(values, dtype, is_4_bit, number, exponent):
    values = np.ascontiguousarray(values, np.float32)
    codes = np.empty(values.size, np.uint8)
    library().quantize_test_encode(
        ctypes.c_void_p(values.ctypes.data),
        ctypes.c_int64(values.size),
        SIGNIFICANT_BITS[dtype],
        is_4_bit,
        number,
        exponent,
        ctypes.c_void_p(codes.ctypes.data),
    )
    return codes


def values_to_round(dtype):
    """All of a 16-bit type, or what surrounds the ties of E4M3, whose grid is the finest."""
    if dtype != "float32":
        return np.arange(2**16, dtype=np.uint16).view(TYPES[dtype]).astype(np.float32)
    ties = np.arange(0, 2**21, 2**9, dtype=np.int64) + (np.arange(110, 138)[:, None] << 23)
    near = ties.reshape(-1, 1) + np.array([-(2**18), -1, 0, 1, 2, 3, 2**17, 2**19])
    bits = near.astype(np.uint32).ravel()
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


@pytest.mark.parametrize("exponent", [-4, 0, 3, 12])
@pytest.mark.parametrize(("is_4_bit", "number"), [(1, 0), (0, 0), (0, 1), (0, 2), (0, 3)])
@pytest.mark.parametrize("dtype", TYPES)
def test_portable_rounding(dtype, is_4_bit, number, exponent):
    """ml_dtypes rounds fp32 once, to nearest even; it does not saturate, so values are clamped."""
    values = values_to_round(dtype)
    element = FORMATS[number].element
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.ldexp(values, exponent).astype(np.float32)
        # No block has larger values.
        inside = np.abs(scaled) <= 2.0 ** (element.emax + 1)
        clamped = np.clip(scaled, -element.max, element.max).astype(np.float32)
        rounded = clamped.astype(ELEMENTS[number])
        want = rounded if is_4_bit else rounded.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    got = encode(values, dtype, is_4_bit, number, exponent)
    assert inside.sum() > 1000
    np.testing.assert_array_equal(got[inside], want.view(np.uint8)[inside])


def test_reciprocals_of_scales():
    scales = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    got = [library().quantize_test_reciprocal(float(s)) for s in scales]
    np.testing.assert_array_equal(np.array(got, np.float32), np.float32(1) / scales)


# --- the choice of a launch ---


@pytest.mark.parametrize(
    ("dtype", "rows", "in_channels", "multiprocessors", "want"),
    [
        # staged, rows per block, grid x and y, threads, bytes of shared memory
        ("bfloat16", 1, 4096, 132, (False, 1, 1, 8, 64, 0)),
        ("bfloat16", 64, 4096, 132, (False, 1, 64, 8, 64, 0)),
        ("bfloat16", 128, 4096, 132, (True, 1, 128, 1, 256, 8320)),
        ("bfloat16", 8192, 4096, 132, (True, 4, 2048, 1, 256, 32896)),
        ("bfloat16", 8191, 8192, 132, (True, 2, 4096, 1, 256, 32896)),
        ("float16", 8192, 28672, 132, (True, 1, 8192, 1, 256, 57472)),
        ("float16", 8192, 57344, 132, (False, 1, 8192, 112, 64, 0)),
        ("float32", 8192, 4096, 170, (True, 2, 4096, 1, 256, 32896)),
        ("float32", 0x7FFFFFFF, 65536, 170, (False, 1, 0x7FFFFFFF, 128, 64, 0)),
    ],
)
def test_choice(dtype, rows, in_channels, multiprocessors, want):
    channels = np.array([in_channels], np.int32)
    zero = np.zeros(1, np.int32)
    threshold = np.ones(1)
    call = Call(segment_count=1, rows=rows, in_channels=in_channels)
    call.x_type = list(TYPES).index(dtype)
    call.channels, call.act_format = channels.ctypes.data, zero.ctypes.data
    call.instruction, call.threshold = zero.ctypes.data, threshold.ctypes.data
    launch = Launch()
    library().quantize_test_choose(ctypes.byref(call), multiprocessors, ctypes.byref(launch))
    assert launch.tuple() == want


def test_rows_too_long_to_stage():
    """Staging ends at 98 KiB; chosen launches run, on either side."""
    for in_channels, staged in (25086, True), (25088, False):
        padded = in_channels + -in_channels % 32
        x = random_values(1, in_channels, np.float32, 3)
        order = random_order(in_channels, padded)
        launch = check(x, order, [(padded, 3, MXF8, 1.75)], multiprocessors=0)
        assert launch.staged == staged
