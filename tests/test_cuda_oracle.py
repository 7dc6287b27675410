"""formats.py against the conversions of CUDA's own headers, compiled for the host."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mmcompile.formats import BLOCK_FORMATS, E2M1, E2M3, E3M2, E4M3, THRESHOLDS
from mmcompile.quantize import E8M0_SCALES, element_table, encode_elements, mx_scale_bytes

SOURCE = Path(__file__).with_name("cuda_oracle.cpp")
ELEMENTS = [E2M1, E2M3, E3M2, E4M3]
MX_FORMATS = list(BLOCK_FORMATS.values())[:4]
HEADERS = ("cuda_fp6.h", "crt/host_defines.h", "nv/target")
WHEELS = "nvidia-cuda-runtime, nvidia-cuda-crt, nvidia-cuda-cccl"


def cuda_includes() -> list[Path]:
    """The folders of CUDA's headers: beside nvcc, in $CUDA_HOME, or of NVIDIA's wheels.

    Some releases keep nv/target in a folder `cccl` of its own.
    """
    folders = []
    if nvcc := shutil.which("nvcc"):
        # nvcc may be a script that calls another; --dryrun names the place it works from.
        dry = subprocess.run(
            [nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False
        )
        folders += [Path(top) / "include" for top in re.findall(r"TOP=(.+)", dry.stderr)]
        folders += [Path(nvcc).resolve().parents[1] / "include"]
    if home := os.environ.get("CUDA_HOME"):
        folders += [Path(home) / "include"]
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu13"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        folders += [Path(str(file.locate())).parent for file in files if file.name == HEADERS[0]]
    for folder in folders:
        includes = [folder, folder / "cccl"]
        if all(any((f / header).exists() for f in includes) for header in HEADERS):
            return includes
    return []


@pytest.fixture(scope="module")
def floats() -> np.ndarray:
    parts = [np.array([0.0, np.inf, 1e-45, 1.1754942e-38, np.finfo(np.float32).max], np.float32)]
    for element in ELEMENTS:
        grid = element_table(element)
        grid = np.sort(grid[np.isfinite(grid)])
        points = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2])
        parts += [points, np.nextafter(points, np.float32(np.inf)), points * np.float32(1 / 3)]
        parts += [np.nextafter(points, np.float32(-np.inf))]
    powers = np.ldexp(np.float32(1), np.arange(-149, 128))
    for max_value in (1.0, 6.0, 7.5, 28.0, 448.0):
        with np.errstate(over="ignore"):
            at_max = powers * np.float32(max_value)
        parts += [at_max, np.nextafter(at_max, np.float32(0)), np.nextafter(at_max, np.float32(8))]
    rng = np.random.default_rng(0)
    parts += [rng.uniform(-500, 500, 50_000).astype(np.float32)]
    parts += [rng.uniform(-8, 8, 50_000).astype(np.float32)]
    parts += [rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)]
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    return np.concatenate([values, -values])


@pytest.fixture(scope="module")
def answers(floats: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    includes = cuda_includes()
    compiler = shutil.which("g++") or shutil.which("c++")
    if not includes:
        pytest.skip(f"no CUDA headers, neither beside nvcc nor of the wheels {WHEELS}")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("oracle") / "cuda_oracle"
    flags = ["-std=c++17", "-O1"] + [f"-isystem{include}" for include in includes]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    return subprocess.run([program], input=floats.tobytes(), capture_output=True, check=True).stdout


def values_of(answers: bytes, index: int) -> np.ndarray:
    return np.frombuffer(answers, np.float32, 256, offset=index * 1024)


def codes_of(answers: bytes, floats: np.ndarray, index: int) -> np.ndarray:
    return np.frombuffer(answers, np.uint8, floats.size, offset=5 * 1024 + index * floats.size)


def assert_codes(got: np.ndarray, expected: np.ndarray, floats: np.ndarray) -> None:
    wrong = np.flatnonzero(got != expected)
    first = [(float(floats[i]), int(got[i]), int(expected[i])) for i in wrong[:5]]
    assert not wrong.size, f"{wrong.size} differ; (value, ours, CUDA's): {first}"


def test_the_oracle_answers_in_full(answers: bytes, floats: np.ndarray):
    assert len(answers) == 5 * 1024 + 9 * floats.size


@pytest.mark.parametrize("index", range(4), ids=[element.name for element in ELEMENTS])
def test_code_values(answers: bytes, index: int):
    table = element_table(ELEMENTS[index])
    expected = values_of(answers, index)[: table.size]
    np.testing.assert_array_equal(table, expected)
    numbers = ~np.isnan(table)  # CUDA's NaNs have no sign
    np.testing.assert_array_equal(np.signbit(table[numbers]), np.signbit(expected[numbers]))


def test_e8m0_values(answers: bytes):
    np.testing.assert_array_equal(E8M0_SCALES, values_of(answers, 4))


@pytest.mark.parametrize("index", range(4), ids=[element.name for element in ELEMENTS])
def test_rounding(answers: bytes, floats: np.ndarray, index: int):
    expected = codes_of(answers, floats, index)
    assert_codes(encode_elements(floats, ELEMENTS[index]), expected, floats)


@pytest.mark.parametrize("index", range(4), ids=[element.name for element in ELEMENTS])
def test_ocp_scale_is_e8m0_rounded_down_less_emax(answers: bytes, floats: np.ndarray, index: int):
    fmt = MX_FORMATS[index]
    finite = np.isfinite(floats)
    amax = np.abs(floats[finite])
    # CUDA's byte is 127 + floor(log2), clamped at 0 before emax is taken off, ours after.
    down = codes_of(answers, floats, 4)[finite].astype(int)
    expected = np.maximum(down - fmt.element.emax, 0)
    got = mx_scale_bytes(amax, fmt.element, THRESHOLDS["ocp"][fmt.name])
    assert_codes(got, expected, amax)


@pytest.mark.parametrize("index", range(4), ids=[element.name for element in ELEMENTS])
def test_saturation_free_scale_is_e8m0_of_amax_over_max_rounded_up(
    answers: bytes, floats: np.ndarray, index: int
):
    fmt = MX_FORMATS[index]
    finite = np.isfinite(floats)
    amax = np.abs(floats[finite])
    expected = codes_of(answers, floats, 5 + index)[finite]
    got = mx_scale_bytes(amax, fmt.element, THRESHOLDS["saturation_free"][fmt.name])
    assert_codes(got, expected, amax)
