"""The kernel library on the CPU: the kernels' own source, run by the block emulator."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from mmcompile.doctor import emulation
from mmcompile.kernels import KernelLibrary
from tests.kernels.build import FLAGS, PLUGINS, WARNINGS, Recipe, compile_shared_library

NATIVE, PORTABLE, OLDEST = 0, 1, 2
"""Devices of the emulated library: sm_120; sm_90 and sm_80, whose atoms are the portable ones."""
EARLY, LATE, RANDOM = 0, 1, 2
"""When asynchronous copies land."""


def compile_library(
    plugins: Path = PLUGINS,
    tiles: tuple[int, ...] = (),
    flags: tuple[str, ...] = (*FLAGS, *WARNINGS),
) -> Path:
    """Compiles the library from the sources in a `plugins` folder, which may be a changed copy.

    `tiles` are the tiles of the GEMM to compile; none stands for all.
    """

    recipe = Recipe(
        defines={"MMCOMPILE_EMULATED_TILES": ",".join(map(str, tiles))} if tiles else {},
        includes=[plugins / folder for folder in emulation.FOLDERS],
        flags=(*flags, "-DMMCOMPILE_EMULATE", "-Wno-unknown-pragmas"),
    )
    sources = [plugins / file for file in emulation.FILES]
    return compile_shared_library("mmcompile_emulated", sources, recipe)


@cache
def emulated_library() -> KernelLibrary:
    """The library, compiled once."""
    return KernelLibrary(compile_library())


def configure(
    library: KernelLibrary, *, seed: int = 0, copies: int = RANDOM, multiprocessors: int = 4
) -> None:
    """Sets the emulator's schedule, and the size of devices that are opened from now on."""
    library.functions.mmc_emulator_configure(ctypes.c_uint64(seed), copies, multiprocessors)
