"""Where the checks run: the kernel library and the device that the environment describes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from mmcompile.cuda.layers import Place, open_place
from mmcompile.cuda.machine import GpuMachine, HostMachine, Machine
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import KernelError, KernelLibrary
from mmcompile.libraries import KERNELS, MISSING, remedy

ROOT = Path(__file__).resolve().parents[2]


class Unavailable(Exception):
    """There is nothing to run on; the text is the reason."""


@cache
def find_place() -> Place:
    """The library of MMCOMPILE_KERNELS or `make plugin`, on the device of MMCOMPILE_DEVICE (0).

    Raises:
        Unavailable: there is no library, no GPU, or no kernels for it.
    """
    path = KERNELS.find()
    ordinal = int(os.environ.get("MMCOMPILE_DEVICE", "0"))
    if path is None or not path.is_file():
        raise Unavailable(f"{path or 'the kernel library'} is {MISSING}; {remedy(KERNELS)}")
    try:
        library = KernelLibrary(path)
        emulated = hasattr(library.functions, "mmc_emulator_configure")
        machine: Machine = HostMachine() if emulated else GpuMachine(ordinal)
        return open_place(machine, library, ordinal)
    except (OSError, EnvironmentProblem, KernelError) as error:
        raise Unavailable(f"{path}: {error}") from None


def describe(place: Place) -> str:
    """One line for the head of a report."""
    device = place.device
    return (
        f"{'emulated' if place.emulated else 'GPU'} device {device.ordinal}, "
        f"sm_{device.architecture}, {device.multiprocessors} multiprocessors; "
        f"tactics {', '.join(place.tactics)}; library for {place.library.architectures}"
    )
