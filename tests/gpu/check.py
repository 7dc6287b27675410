"""A check: a named function of a machine. They need no pytest, which may be absent beside a GPU."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.gpu.machine import Machine, Skipped


@dataclass(frozen=True)
class Check:
    """One test.

    Attributes:
        name: subject/case, also the source of its seed.
        function: what it does; raises AssertionError or Skipped.
        gpu_only: too much for the emulator, or about what it does not have.
    """

    name: str
    function: Callable[[Machine, np.random.Generator], None]
    gpu_only: bool = False

    def run(self, machine: Machine) -> None:
        """Runs it.

        Raises:
            AssertionError: it failed.
            Skipped: this machine cannot run it.
        """
        if self.gpu_only and machine.emulated:
            raise Skipped("only on a GPU")
        self.function(machine, np.random.default_rng(zlib.crc32(self.name.encode())))
