"""The machine under test: a kernel library, a device of it, and that device's memory."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mmcompile.cuda import machine as cuda
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import Device, KernelError, KernelLibrary

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_LIBRARY = ROOT / "build" / "cuda" / "libmmcompile_kernels.so"


class Unavailable(Exception):
    """There is nothing to run on; the text is the reason."""


class Skipped(Exception):
    """A check that this machine cannot run; the text is the reason."""


@dataclass(frozen=True)
class Machine:
    """What every check gets.

    Attributes:
        library: the loaded library.
        device: the device, opened.
        memory: its memory, streams and graphs.
        emulated: whether the device is the CPU, a thousand times slower.
    """

    library: KernelLibrary
    device: Device
    memory: cuda.Machine
    emulated: bool

    @property
    def tactics(self) -> range:
        """All tactics, the automatic one (0) first."""
        return range(len(self.library.tactics(self.device)) + 1)

    def reschedule(self, seed: int) -> None:
        """Lets the emulator run threads in another order; GPUs do so by themselves."""
        if self.emulated:
            self.library.functions.mmc_emulator_configure(
                ctypes.c_uint64(seed), 2, self.device.multiprocessors
            )

    def describe(self) -> str:
        """One line for the head of a report."""
        kind = "emulated" if self.emulated else "GPU"
        return (
            f"{kind} device {self.device.ordinal}, sm_{self.device.architecture}, "
            f"{self.device.multiprocessors} multiprocessors; tactics "
            f"{', '.join(self.library.tactics(self.device))}; "
            f"library for {self.library.architectures}"
        )


def library_path() -> Path:
    """Where the library is looked for."""
    return Path(os.environ.get("MMCOMPILE_KERNELS") or DEFAULT_LIBRARY)


@cache
def open_machine() -> Machine:
    """The machine that the environment describes.

    Raises:
        Unavailable: there is no library, no GPU, or no kernels for it.
    """
    path = library_path()
    ordinal = int(os.environ.get("MMCOMPILE_DEVICE", "0"))
    if not path.is_file():
        raise Unavailable(f"no {path}; build it with `make plugin` or set MMCOMPILE_KERNELS")
    try:
        library = KernelLibrary(path)
    except OSError as error:
        raise Unavailable(f"{path} does not load: {error}") from None
    emulated = hasattr(library.functions, "mmc_emulator_configure")
    try:
        memory: cuda.Machine = cuda.HostMachine() if emulated else cuda.GpuMachine(ordinal)
        device = library.open_device(ordinal)
    except (EnvironmentProblem, KernelError) as error:
        raise Unavailable(str(error)) from None
    return Machine(library, device, memory, emulated)
