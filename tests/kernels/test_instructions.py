"""The emulated instructions against the PTX ISA, CUTLASS's CuTe, CUDA's headers and numpy."""

from __future__ import annotations

import ctypes
import importlib.metadata
import subprocess
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.build import (
    EMULATOR_SOURCES,
    Recipe,
    compile_executable,
    compile_shared_library,
)
from tests.test_cuda_oracle import WHEELS, cuda_includes

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """An instruction, in the order of instructions.cpp."""

    index: int
    per_word: int  # elements of a 32-bit register
    blocks: int  # scales along K
    variants: int  # combinations of selectors

    @property
    def k(self) -> int:
        return 8 * self.per_word


KINDS = {
    "f16": Kind(0, 2, 1, 1),
    "mxf4": Kind(1, 8, 2, 8),
    "nvf4": Kind(2, 8, 4, 4),
    "mxf8": Kind(3, 4, 1, 16),
}
SCALED = {name: kind for name, kind in KINDS.items() if name != "f16"}
VARIANTS = [(name, i) for name, kind in KINDS.items() for i in range(kind.variants)]


def selectors(name: str, i: int) -> tuple[int, int, int, int]:
    """byte_a, thread_a, byte_b and thread_b of a variant, as in instructions.cpp."""
    if name == "mxf4":
        return i % 2 * 2, i // 2 % 2, i // 4 % 2 * 2, i % 4
    if name == "nvf4":
        return 0, i % 2, 0, i % 4
    return i % 4, i // 4 % 2, i // 4, (i + 1) % 4


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    path = compile_shared_library("instructions", (HERE / "instructions.cpp", *EMULATOR_SOURCES))
    library = ctypes.CDLL(str(path))
    library.multiply_half2.restype = library.add_bytes_saturating.restype = ctypes.c_uint32
    library.permute_bytes.restype = ctypes.c_int64
    return library


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


# --- fragments ---


def ptx_places(kind: Kind, operand: str) -> np.ndarray:
    """(line, k) of value i of a lane, [32, values, 2], in the words of the PTX ISA.

    "Matrix fragments for mma.m16n8k16 with floating point type", "mma.m16n8k32" and
    "mma.m16n8k64": groupID = lane >> 2, threadID_in_group = lane % 4.
    """
    n = kind.per_word
    lane = np.arange(32)[:, None]
    group, thread = lane >> 2, lane % 4
    i = np.arange({"a": 4 * n, "b": 2 * n, "c": 4}[operand])[None, :]
    if operand == "c":
        line, k = group + np.where(i < 2, 0, 8), thread * 2 + (i & 1)
    elif operand == "b":
        line, k = group + 0 * i, thread * n + (i & (n - 1)) + np.where(i < n, 0, 4 * n)
    else:
        upper = (i < n) | ((i >= 2 * n) & (i < 3 * n))
        line = np.where(upper, group, group + 8)
        k = thread * n + (i & (n - 1)) + np.where(i < 2 * n, 0, 4 * n)
    return np.stack(np.broadcast_arrays(line, k), axis=-1)


def emulated_places(library: ctypes.CDLL, kind: Kind, operand: str) -> np.ndarray:
    values = {"a": 4 * kind.per_word, "b": 2 * kind.per_word, "c": 4}[operand]
    out = np.zeros((32, values, 2), np.int32)
    if operand == "c":
        library.places_in_c(pointer(out))
    else:
        getattr(library, f"places_in_{operand}")(kind.per_word, pointer(out))
    return out


def place_of_scale(
    library: ctypes.CDLL, operand: str, byte: int, thread: int, line: int, block: int
) -> tuple[int, int]:
    out = np.zeros(2, np.int32)
    library.place_of_scale(int(operand == "b"), byte, thread, line, block, pointer(out))
    return int(out[0]), int(out[1])


@pytest.mark.parametrize("operand", ["a", "b", "c"])
@pytest.mark.parametrize("name", KINDS)
def test_fragments_are_those_of_the_ptx_isa(library: ctypes.CDLL, name: str, operand: str):
    kind = KINDS[name]
    expected = ptx_places(kind, operand)
    np.testing.assert_array_equal(emulated_places(library, kind, operand), expected)
    assert len({tuple(place) for place in expected.reshape(-1, 2)}) == expected[..., 0].size


@pytest.fixture(scope="module")
def cute_layouts() -> dict[tuple[str, str], np.ndarray]:
    """(line, k) by lane and value, of each atom and operand."""
    try:
        files = importlib.metadata.files("nvidia-cutlass") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the wheel nvidia-cutlass is not installed (4.2.0.0 carries CuTe's headers)")
    traits = [file for file in files if file.match("cute/atom/mma_traits_sm120.hpp")]
    if not traits:
        pytest.skip("this release of the wheel nvidia-cutlass carries no headers")
    if not (includes := cuda_includes()):
        pytest.skip(f"no CUDA headers, neither beside nvcc nor of the wheels {WHEELS}")
    cute = Path(str(traits[0].locate())).parents[2]
    program = compile_executable(
        "cute_layouts",
        (HERE / "cute_layouts.cpp",),
        Recipe({}, (), (cute, *includes), ("-std=c++17", "-O0", "-w")),
    )
    text = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    rows: dict[tuple[str, str], list[list[int]]] = {}
    for line in text.splitlines():
        atom, operand, *numbers = line.split()
        rows.setdefault((atom, operand), []).append([int(number) for number in numbers])
    # Lanes and values come in order.
    return {key: np.array(each)[:, 2:].reshape(32, -1, 2) for key, each in rows.items()}


@pytest.mark.parametrize("operand", ["a", "b", "c"])
@pytest.mark.parametrize("name", KINDS)
def test_fragments_are_those_of_cute(library: ctypes.CDLL, cute_layouts, name: str, operand: str):
    expected = cute_layouts[name, operand]
    np.testing.assert_array_equal(emulated_places(library, KINDS[name], operand), expected)


@pytest.mark.parametrize("operand", ["a", "b"])
@pytest.mark.parametrize("name", SCALED)
def test_scales_come_from_the_lanes_of_cute(
    library: ctypes.CDLL, cute_layouts, name: str, operand: str
):
    """CuTe lets all lanes hold scales, and lanes that hold the same are the selectable ones."""
    kind = KINDS[name]
    expected = cute_layouts[name, f"scale_{operand}"]
    lanes_seen = set()
    for thread in range(2 if operand == "a" else 4):
        for line in range(16 if operand == "a" else 8):
            for k in range(kind.k):
                block = k * kind.blocks // kind.k
                lane, byte = place_of_scale(library, operand, 0, thread, line, block)
                assert list(expected[lane, k]) == [line, k] and byte == block
                lanes_seen.add(lane)
    assert lanes_seen == set(range(32))


# --- products ---

E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
E8M0 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)


@dataclass
class Operands:
    """Codes and scale codes of one product; what the instruction must ignore is random."""

    a: np.ndarray  # [16, k]
    b: np.ndarray  # [8, k]
    scale_a: np.ndarray  # [16, blocks]
    scale_b: np.ndarray  # [8, blocks]
    c: np.ndarray  # [16, 8]


def draw(name: str, seed: int) -> Operands:
    """Operands whose exact products and sums fit a float64, so that any order gives one result."""
    kind = KINDS[name]
    rng = np.random.default_rng(seed)
    shapes = ((16, kind.k), (8, kind.k))
    if name == "f16":
        a, b = (rng.integers(-2047, 2048, s).astype(np.float16).view(np.uint16) for s in shapes)
    elif name == "mxf8":
        a, b = (rng.integers(0, 127, s) | rng.integers(0, 2, s) << 7 for s in shapes)
    else:
        a, b = (rng.integers(0, 16, s) for s in shapes)
    low, high = (0x28, 0x48) if name == "nvf4" else (119, 136)
    scale_a = rng.integers(low, high, (16, kind.blocks))
    scale_b = rng.integers(low, high, (8, kind.blocks))
    c = rng.normal(0, 1000, (16, 8)).astype(np.float32)
    return Operands(a, b, scale_a, scale_b, c)


def values(name: str, codes: np.ndarray) -> np.ndarray:
    if name == "f16":
        return codes.astype(np.uint16).view(np.float16).astype(np.float64)
    return (E4M3 if name == "mxf8" else E2M1)[codes]


def scale_values(name: str, codes: np.ndarray) -> np.ndarray:
    if name == "f16":
        return np.ones(codes.shape)
    return E4M3[codes & 0x7F] if name == "nvf4" else E8M0[codes]


def reference(name: str, operands: Operands) -> np.ndarray:
    kind = KINDS[name]
    repeat = kind.k // kind.blocks
    a = values(name, operands.a) * np.repeat(scale_values(name, operands.scale_a), repeat, axis=1)
    b = values(name, operands.b) * np.repeat(scale_values(name, operands.scale_b), repeat, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        return (a @ b.T + operands.c.astype(np.float64)).astype(np.float32)


def emulate(library: ctypes.CDLL, name: str, operands: Operands, variant: int = 0) -> np.ndarray:
    kind = KINDS[name]
    bits = 32 // kind.per_word
    record = np.zeros((), [("c", "f4", (32, 4)), ("a", "u4", (32, 4)), ("b", "u4", (32, 2)),
                           ("scale_a", "u4", 32), ("scale_b", "u4", 32)])  # fmt: skip
    for operand, codes in (("a", operands.a), ("b", operands.b)):
        line, k = np.moveaxis(ptx_places(kind, operand), -1, 0)
        words = codes[line, k].reshape(32, -1, kind.per_word).astype(np.uint64)
        shifts = np.arange(kind.per_word, dtype=np.uint64) * np.uint64(bits)
        record[operand] = (words << shifts).sum(-1)
    row, column = np.moveaxis(ptx_places(kind, "c"), -1, 0)
    record["c"] = operands.c[row, column]
    rng = np.random.default_rng(variant)
    byte_a, thread_a, byte_b, thread_b = selectors(name, variant)
    for operand, codes, byte, thread in (
        ("a", operands.scale_a, byte_a, thread_a),
        ("b", operands.scale_b, byte_b, thread_b),
    ):
        scales = rng.integers(0, 256, (32, 4), dtype=np.uint8)  # NaN among them
        for line, block in np.ndindex(codes.shape):
            # PTX ISA, "Block scaling for mma.sync": of a quad, A takes a pair of lanes, for rows
            # g and g + 8; B takes one.
            pair = 2 * thread + line // 8
            lane = 4 * (line % 8) + (pair if operand == "a" else thread)
            scales[lane, byte + block] = codes[line, block]
        record[f"scale_{operand}"] = scales.view("<u4")[:, 0]
    library.mma(kind.index, variant, pointer(record))
    out = np.empty((16, 8), np.float32)
    out[row, column] = record["c"]
    return out


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_products(library: ctypes.CDLL, name: str, variant: int):
    for seed in range(20):
        operands = draw(name, seed)
        got = emulate(library, name, operands, variant)
        np.testing.assert_array_equal(got, reference(name, operands))


def test_the_products_above_see_every_operand(library: ctypes.CDLL):
    """A wrong element or scale changes the result: the comparison can fail."""
    for name in KINDS:
        operands = draw(name, 0)
        right = reference(name, operands)
        for field in ("a", "b", "c", "scale_a", "scale_b")[: 3 if name == "f16" else 5]:
            changed = draw(name, 0)
            getattr(changed, field)[-1, -1] = getattr(changed, field)[-1, -1].dtype.type(1)
            assert (emulate(library, name, changed) != right).any(), (name, field)


def test_nan_and_infinity(library: ctypes.CDLL):
    nan_row = np.zeros((16, 8), bool)
    nan_row[3] = True
    for name, scale in (("mxf4", 255), ("mxf8", 255), ("nvf4", 0x7F), ("nvf4", 0xFF)):
        operands = draw(name, 1)
        operands.scale_a[3, -1] = scale
        np.testing.assert_array_equal(np.isnan(emulate(library, name, operands)), nan_row)
    for name, code in (("mxf8", 0x7F), ("mxf8", 0xFF), ("f16", 0x7E00)):
        operands = draw(name, 1)
        operands.a[3, 0] = code
        np.testing.assert_array_equal(np.isnan(emulate(library, name, operands)), nan_row)
    operands = draw("f16", 1)
    operands.a[3] = np.float16(1).view(np.uint16)
    operands.b[:] = np.float16(1).view(np.uint16)
    operands.a[3, 0] = np.float16(np.inf).view(np.uint16)
    assert (emulate(library, "f16", operands)[3] == np.inf).all()


def test_scales_at_the_ends(library: ctypes.CDLL):
    """2^-127 · 2^127 is one; 2^127 · 2^127 overflows where the sum is not zero."""
    operands = draw("mxf8", 2)
    operands.scale_a[:], operands.scale_b[:] = 0, 254
    np.testing.assert_array_equal(emulate(library, "mxf8", operands), reference("mxf8", operands))
    operands.scale_a[:] = 254
    got = emulate(library, "mxf8", operands)
    assert np.isinf(got[got != operands.c]).all()


def test_the_sign_of_an_e4m3_scale_is_ignored(library: ctypes.CDLL):
    operands = draw("nvf4", 3)
    right = reference("nvf4", operands)
    operands.scale_b |= 0x80
    np.testing.assert_array_equal(emulate(library, "nvf4", operands), right)


# --- conversions ---


@pytest.fixture(scope="module")
def floats() -> np.ndarray:
    """All halves and bfloat16 numbers, the ties between neighbours, and what lies beside them."""
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    bfloats = (np.arange(0x7F81, dtype=np.uint32) << 16).view(np.float32)  # Inf included
    narrow = [np.sort(codes[codes >= 0]).astype(np.float32) for codes in (E4M3, E2M1)]
    grids = [halves, bfloats, *narrow]
    parts = [np.array([65519.996, 65520, 65536, 447.9, 448, 464, 465, 480, 1e9], np.float32)]
    for grid in grids:
        finite = grid[np.isfinite(grid)]
        ties = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        parts += [grid, ties, np.nextafter(ties, np.float32(0))]
        parts += [np.nextafter(ties, np.float32(np.inf))]
    rng = np.random.default_rng(0)
    parts += [rng.integers(0, 1 << 31, 100_000, dtype=np.uint32).view(np.float32)]  # NaN among them
    positive = np.concatenate(parts)
    both = np.concatenate([positive, (positive.view(np.uint32) | 1 << 31).view(np.float32)])
    return rng.permutation(both)


def convert(library: ctypes.CDLL, function: str, floats: np.ndarray) -> np.ndarray:
    out = np.empty(floats.size, np.uint16)
    getattr(library, function)(pointer(floats), pointer(out), floats.size)
    return out


def assert_words(got: np.ndarray, expected: np.ndarray, floats: np.ndarray) -> None:
    wrong = np.flatnonzero(got != expected)
    first = [(float(floats[i]), hex(got[i]), hex(expected[i])) for i in wrong[:5]]
    assert not wrong.size, f"{wrong.size} differ; (value, ours, expected): {first}"


@pytest.mark.parametrize(
    ("function", "dtype"), [("to_half", np.float16), ("to_bfloat16", ml_dtypes.bfloat16)]
)
def test_rounding_to_16_bits(library: ctypes.CDLL, floats: np.ndarray, function: str, dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(dtype).view(np.uint16)
    expected = np.where(np.isnan(floats), np.uint16(0x7FFF), expected)  # PTX's canonical NaN
    assert_words(convert(library, function, floats), expected, floats)


@pytest.mark.parametrize(
    ("function", "dtype", "nan"),
    [("to_e2m1x2", ml_dtypes.float4_e2m1fn, 0x7), ("to_e4m3x2", ml_dtypes.float8_e4m3fn, 0x7F)],
)
def test_rounding_to_narrow_pairs(library, floats: np.ndarray, function: str, dtype, nan: int):
    limit = float(ml_dtypes.finfo(dtype).max)
    numbers = np.clip(np.nan_to_num(floats, posinf=np.inf, neginf=-np.inf), -limit, limit)
    codes = numbers.astype(dtype).view(np.uint8).astype(np.uint16)
    codes = np.where(np.isnan(floats), np.uint16(nan), codes)
    expected = codes | np.roll(codes, -1) << (4 if nan == 0x7 else 8)
    assert_words(convert(library, function, floats), expected, floats)


def test_conversions_are_those_of_cuda(library: ctypes.CDLL, floats: np.ndarray):
    if not (includes := cuda_includes()):
        pytest.skip(f"no CUDA headers, neither beside nvcc nor of the wheels {WHEELS}")
    program = compile_executable(
        "cuda_conversions",
        (HERE / "cuda_conversions.cpp",),
        Recipe({}, (), includes, ("-std=c++17", "-O1", "-w")),
    )
    done = subprocess.run([program], input=floats.tobytes(), capture_output=True, check=True)
    answers = np.frombuffer(done.stdout, np.uint16).reshape(4, -1)
    for function, expected in zip(
        ("to_half", "to_bfloat16", "to_e2m1x2", "to_e4m3x2"), answers, strict=True
    ):
        assert_words(convert(library, function, floats), expected, floats)


def test_halves_widen_exactly(library: ctypes.CDLL):
    halves = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(halves.size, np.float32)
    library.from_half(pointer(halves), pointer(out), halves.size)
    np.testing.assert_array_equal(out, halves.view(np.float16).astype(np.float32))


def test_products_of_pairs_of_halves(library: ctypes.CDLL):
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 1 << 32, (2, 5000), dtype=np.uint32)
    got = np.array(
        [library.multiply_half2(int(x), int(y)) for x, y in zip(a, b, strict=True)], np.uint32
    ).view(np.float16)
    with np.errstate(all="ignore"):
        expected = a.view(np.float16) * b.view(np.float16)
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


def test_bytes(library: ctypes.CDLL):
    assert library.add_bytes_saturating(0xFF01F080, 0x01020F7F) == 0xFF03FFFF
    assert library.permute_bytes(0x33221100, 0x77665544, 0x7250) == 0x77225500
    assert library.permute_bytes(0, 0, 0x0008) == -1
