"""What the benchmarks of the kernels compile: cuda.cu for sm_120f, and the library's host code.

Everything is kept in build/kernels under a name made from all that it was compiled from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmcompile.errors import EnvironmentProblem

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "kernels"
LIBRARY = ROOT / "plugins" / "library"
INCLUDES = (ROOT / "plugins" / "include", ROOT / "plugins" / "kernels", LIBRARY)
ARCHITECTURE = "arch=compute_120f,code=sm_120f"
NVCC_FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xptxas", "-v")
"""-lineinfo adds tables to the cubin and leaves its code as it is."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Resources:
    """What the compiler says of a kernel, in bytes but for the registers per thread."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class Tile:
    """A tile of the GEMM, as plugins/kernels/tiles.h has it."""

    name: str
    swapped: bool
    rows: int
    channels: int
    warps_a: int
    warps_b: int
    warps_k: int
    stages: int
    threads: int
    shared_bytes: int
    stage_bytes: int
    fragments_a: int
    fragments_b: int
    chunk_bytes: int
    can_split: bool

    def copies(self, scale_words: int) -> int:
        """LDGSTS of a warp for one chunk, with so many words of scales per row and slice."""
        rows_at_once = self.threads // (4 * self.warps_k)
        return sum(
            -(-rows // rows_at_once) + -(-rows * self.warps_k * scale_words // self.threads)
            for rows in (self.rows, self.channels)
        )


def nvcc() -> str:
    """The CUDA compiler.

    Raises:
        EnvironmentProblem: there is none.
    """
    pypi = ROOT / "build" / "nvcc" / "nvidia" / "cu13" / "bin" / "nvcc"  # by `make nvcc`
    places = (os.environ.get("CUDACXX", ""), "nvcc", "/usr/local/cuda/bin/nvcc", str(pypi))
    found = next(filter(None, map(shutil.which, places)), None)
    if found is None:
        raise EnvironmentProblem(
            "no-nvcc",
            "nvcc",
            "not on PATH, nor in /usr/local/cuda/bin, nor in build/nvcc",
            "install the CUDA toolkit 13, or run `make nvcc`",
        )
    return found


def nvcc_version() -> str:
    """Such as `13.0.88`."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV([\d.]+)", text)
    return found[1] if found else text.strip().splitlines()[-1]


def compile_kernels() -> tuple[Path, dict[str, Resources]]:
    """The cubin of all native kernels, and what each of them takes, by its mangled name.

    Raises:
        EnvironmentProblem: no compiler, or it refuses the source.
    """
    command = [nvcc(), "--cubin", "-gencode", ARCHITECTURE, *NVCC_FLAGS]
    cubin = _compiled("sm_120f", ".cubin", [*command, nvcc_version()], command, ["cuda.cu"])
    return cubin, parse_resources(cubin.with_suffix(".log").read_text(encoding="utf-8"))


def parse_resources(log: str) -> dict[str, Resources]:
    """From what `ptxas -v` prints."""
    found = {}
    name = ""
    sizes = (0, 0, 0)
    for line in log.splitlines():
        entry, spills, registers = (each.search(line) for each in (_ENTRY, _SPILLS, _REGISTERS))
        if entry:
            name = entry[1]
        elif spills:
            sizes = (int(spills[1]), int(spills[2]), int(spills[3]))
        elif registers:
            found[name] = Resources(int(registers[1]), *sizes)
    return found


@cache
def tiles() -> tuple[Tile, ...]:
    """The tiles of the GEMM, in the order of their tactics."""
    return tuple(Tile(**each) for each in _launches("tiles"))


def launches(shapes: Sequence[str]) -> list[dict[str, Any]]:
    """What the library would launch for shapes, each a line for benchmarks/launches.cpp."""
    return _launches(text="".join(f"{shape}\n" for shape in shapes))


def _launches(*arguments: str, text: str = "") -> list[dict[str, Any]]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise EnvironmentProblem("no-compiler", "g++", "no C++ compiler", "install g++, or set CXX")
    command = [compiler, "-std=c++20", "-O2"]
    source = ROOT / "benchmarks" / "launches.cpp"
    program = _compiled("launches", "", command, command, [source, "choice.cpp", "linear.cpp"])
    done = subprocess.run(
        [program, *arguments], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _compiled(
    name: str,
    suffix: str,
    key: Iterable[str],
    command: Sequence[str],
    sources: Sequence[Path | str],
) -> Path:
    """Compiles sources (names are the library's) and keeps what the compiler prints beside it."""
    digest = hashlib.sha256(" ".join(key).encode())
    paths = [LIBRARY / source for source in sources]  # an absolute path stays what it is
    headers = [path for folder in INCLUDES for path in sorted(folder.rglob("*.h"))]
    for path in (*headers, *paths):
        digest.update(path.read_bytes())
    target = BUILD / f"{name}-{digest.hexdigest()[:16]}{suffix}"
    if target.exists():
        return target
    BUILD.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}{suffix}")
    includes = [f"-I{folder}" for folder in INCLUDES]
    done = subprocess.run(
        [*command, *includes, *map(str, paths), "-o", str(part)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EnvironmentProblem(
            "kernels-do-not-compile",
            ", ".join(path.name for path in paths),
            f"{Path(command[0]).name} says: {done.stderr.strip()[:600]}",
            "mend the source, or use the compiler that docs/measurements/kernel_code.md names",
        )
    target.with_suffix(".log").write_text(done.stderr + done.stdout, encoding="utf-8")
    part.replace(target)
    return target
