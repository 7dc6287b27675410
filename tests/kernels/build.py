"""C++ that tests compile: the kernels in the emulator, and programs that answer for an oracle."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
BUILD = ROOT / "build" / "kernels"
TESTING = PLUGINS / "testing"

EMULATOR_SOURCES = tuple(
    TESTING / name for name in ("emulator.cpp", "fiber.cpp", "memory.cpp", "shared_memory.cpp")
)

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
FLAGS = ("-std=c++20", "-O2", "-g1", "-ffp-contract=off", "-fPIC")


@dataclass(frozen=True)
class Recipe:
    """How sources are compiled; as it is, for the emulator."""

    defines: Mapping[str, str | None] = field(default_factory=dict)
    includes: Sequence[Path] = (PLUGINS / "include", PLUGINS / "kernels", TESTING)
    system_includes: Sequence[Path] = ()
    flags: Sequence[str] = (*FLAGS, *WARNINGS, "-DMMCOMPILE_EMULATE")

    def options(self) -> list[str]:
        """The compiler's."""
        return [
            *self.flags,
            *(f"-D{name}" + (f"={value}" if value else "") for name, value in self.defines.items()),
            *(f"-I{folder}" for folder in self.includes),
            *(f"-isystem{folder}" for folder in self.system_includes),
        ]


EMULATED = Recipe()


@cache
def compiler() -> str:
    """The C++20 compiler; the test is skipped where there is none."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler (g++, c++ or $CXX)")
    probe = [found, "-std=c++20", "-x", "c++", "-fsyntax-only", "-"]
    source = "#include <source_location>\n#include <bit>\n"
    if subprocess.run(probe, input=source, text=True, capture_output=True, check=False).returncode:
        pytest.skip(f"{found} does not compile C++20")
    return found


def compile_shared_library(name: str, sources: Sequence[Path], recipe: Recipe = EMULATED) -> Path:
    """Compiles a shared library and returns its path.

    A library that was made from the same bytes in the same way is not made again.
    """
    return _link(name, sources, recipe, shared=True)


def compile_executable(name: str, sources: Sequence[Path], recipe: Recipe = EMULATED) -> Path:
    """Compiles a program; see `compile_shared_library`."""
    return _link(name, sources, recipe, shared=False)


def _link(name: str, sources: Sequence[Path], recipe: Recipe, *, shared: bool) -> Path:
    options = recipe.options()
    objects = [_object(source, options) for source in sources]
    link = [compiler(), "-pthread", *(("-shared", "-Wl,-z,defs") if shared else ())]
    key = _digest(" ".join(map(str, [*link, *objects])).encode())
    target = BUILD / (f"lib{name}-{key}.so" if shared else f"{name}-{key}")
    if not target.exists():
        _run([*link, *map(str, objects)], target)
    return target


def _object(source: Path, options: Sequence[str]) -> Path:
    """The compiled source, named by all that it was compiled from: its preprocessed text.

    Where the text lies does not count, so that a changed copy of a folder of sources compiles
    what has changed.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [compiler(), *options]
    text = subprocess.run([*command, "-E", "-P", str(source)], capture_output=True, check=False)
    if text.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{text.stderr.decode()}")
    flags = [option for option in command if not option.startswith(("-I", "-isystem"))]
    key = _digest(" ".join(flags).encode() + text.stdout)
    target = BUILD / f"{source.stem}-{key}.o"
    if not target.exists():
        _run([*command, "-c", str(source)], target)
    return target


def _run(command: Sequence[str], target: Path) -> None:
    """Writes the target whole or not at all, for tests that run side by side."""
    part = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    part.replace(target)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
