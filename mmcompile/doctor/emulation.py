"""The kernel library on the CPU: compiled from the kernels' own source, where it is at hand.

An emulator of a thread block runs the real kernels (plugins/testing); an installed wheel has no
sources and cannot do it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmcompile.cache import cache_folder
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import KernelLibrary

SOURCES = Path(__file__).resolve().parents[2] / "plugins"
"""In a checkout; absent where a wheel is installed."""
FILES = (
    *(f"testing/{name}.cpp" for name in ("emulator", "fiber", "memory", "shared_memory")),
    *(f"testing/emulated_{name}.cpp" for name in ("device", "gemm", "quantize")),
    *(f"library/{name}.cpp" for name in ("choice", "library", "linear")),
)
FOLDERS = ("include", "kernels", "testing", "library")
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-w", "-DMMCOMPILE_EMULATE")
COMPILE_SECONDS = 900.0
DEVICES = {0: "sm_120, native instructions", 1: "sm_90, portable instructions"}
"""Devices of the emulated library."""
_RANDOM_COPIES, _MULTIPROCESSORS = 2, 4


def emulated_library(sources: Path = SOURCES) -> KernelLibrary:
    """The emulated library, compiled once and kept in the cache folder.

    Raises:
        EnvironmentProblem: there are no sources or no C++ compiler, or it does not compile.
    """
    if not all((sources / file).is_file() for file in FILES):
        reason = "the kernels' sources are not here: this is an installed package"
        raise EnvironmentProblem(
            "no-sources", "self-test", reason, "run it from a checkout, or on a GPU"
        )
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        reason = "there is no C++ compiler to emulate the kernels with"
        raise EnvironmentProblem("no-compiler", "self-test", reason, "install g++, or set CXX")
    command = [compiler, *FLAGS, *(f"-I{sources / folder}" for folder in FOLDERS)]
    target = cache_folder() / "emulated" / f"libmmcompile_emulated-{_key(command, sources)}.so"
    if not target.is_file():
        _compile(command, sources, target)
    library = KernelLibrary(target)
    library.functions.mmc_emulator_configure(ctypes.c_uint64(0), _RANDOM_COPIES, _MULTIPROCESSORS)
    return library


def _key(command: list[str], sources: Path) -> str:
    digest = hashlib.sha256(" ".join(command).encode())
    for folder in FOLDERS:
        for path in sorted((sources / folder).rglob("*")):
            if path.suffix in (".h", ".cpp"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(command: list[str], sources: Path, target: Path) -> None:
    """Compiles beside the target and moves: an interrupted run leaves no half library."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stems = [target.with_name(f"{target.stem}.{os.getpid()}.{i}.o") for i in range(len(FILES))]
    part = target.with_name(f"{target.stem}.{os.getpid()}.so")
    try:
        jobs = [
            [*command, "-c", str(sources / file), "-o", str(made)]
            for file, made in zip(FILES, stems, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for failure in pool.map(_run, jobs):
                if failure:
                    raise _refusal(failure)
        link = [command[0], "-shared", "-pthread", *map(str, stems), "-o", str(part)]
        if failure := _run(link):
            raise _refusal(failure)
        part.replace(target)
    finally:
        for left in (*stems, part):
            left.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    """What a compiler says if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def _refusal(text: str) -> EnvironmentProblem:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return EnvironmentProblem(
        "emulator-does-not-compile",
        "self-test",
        f"the C++ compiler says: {lines[0][:300]}",
        "use g++ 12 or later, or set CXX",
    )
