"""A run of the kernels' benchmark: the machine, its sizes, its time limit, and what is timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.tables import FigureTable
from mmcompile.cuda import timing
from mmcompile.cuda.calls import (
    Constants,
    DeviceLayer,
    Inputs,
    copy_calls,
    random_constants,
    random_inputs,
)
from mmcompile.cuda.clocks import Clocks, read_clocks
from mmcompile.cuda.cublas import Product, cublas
from mmcompile.cuda.layers import LayerShape, Place, open_place
from mmcompile.cuda.machine import Enqueue, GpuMachine, HostMachine, Machine
from mmcompile.cuda.timing import Timing, copies_for, time_calls
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import KernelError, KernelLibrary

LLAMA = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
"""K and N of Llama-3.1-8B's linears: q, k and v; output; gate and up; down."""
SECONDS, WARM_SECONDS = 0.05, 0.02
"""Of the replays of one measurement together, and of warming up."""


class Run:
    """A run of the benchmark: its machine, its sizes and its time limit."""

    def __init__(self, place: Place, seconds: float) -> None:
        self.place = place
        self.machine: Machine = place.machine
        self.facts = place.machine.facts if isinstance(place.machine, GpuMachine) else None
        self.rehearsal = self.facts is None
        self.native = place.device.architecture // 10 == 12
        self.bf16: Product | None = cublas().get("bf16")
        self._random = np.random.default_rng(0)
        self._end = time.monotonic() + seconds

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """K and N of the layers."""
        return ((256, 96), (320, 64)) if self.rehearsal else LLAMA

    def rows(self, *wanted: int) -> list[int]:
        """Numbers of rows; a rehearsal takes the first two, made small."""
        return [min(rows, 20) for rows in wanted[:2]] if self.rehearsal else list(wanted)

    def late(self, table: FigureTable) -> bool:
        """Whether the time is over; the table gets a note of it."""
        if time.monotonic() < self._end:
            return False
        note = "Cut short: the time limit of the run was reached."
        if note not in table.notes:
            table.notes.append(note)
        return True

    def time(self, calls: Sequence[Enqueue], before: Sequence[Enqueue] = ()) -> Timing:
        """Seconds per call."""
        return time_calls(
            self.machine, calls, before=before, seconds=SECONDS, warm_seconds=WARM_SECONDS
        )

    def copies(self, size: int) -> int:
        """How many copies of operands of so many bytes outgrow the cache."""
        return copies_for(self.facts.l2_bytes if self.facts else 0, size)

    def constants(self, shape: LayerShape) -> Constants:
        """Weights, whose values are of no matter to the time."""
        return random_constants(self._random, shape, shape.create(self.place.library).info)

    def layer(self, shape: LayerShape, constants: Constants, rows: int) -> DeviceLayer:
        """A layer in bf16, with copies of all its operands."""
        inputs = random_inputs(self._random, shape, rows)
        return self.layer_on(shape, constants, inputs)

    def layer_on(self, shape: LayerShape, constants: Constants, inputs: Inputs) -> DeviceLayer:
        """A layer on a given x, with copies of all its operands."""
        size = constants.weight.nbytes + constants.scales.nbytes + inputs.x.nbytes
        return DeviceLayer(self.place, shape, constants, inputs, self.copies(size))

    def baseline(self, channels: int, out_channels: int, rows: int) -> Timing | None:
        """BF16 by cuBLAS on operands of that size, where there is torch."""
        if self.bf16 is None:
            return None
        size = 2 * channels * (out_channels + rows)
        return self.time(self.bf16(channels, out_channels, rows, self.copies(size)))

    def copy(self, size: int) -> tuple[Timing, float]:
        """Copies that read and write `size` bytes together: their time, and bytes per second."""
        half = max(size // 2, 1)
        found = self.time(copy_calls(self.machine, half, self.copies(size)))
        return found, 2 * half / found.median


def open_run(path: Path, *, rehearsal: bool, seconds: float) -> Run:
    """The machine that there is.

    Raises:
        SystemExit: something is missing; says what.
    """
    if rehearsal:
        # The program runs, its figures mean nothing.
        timing.REPLAYS, timing.MOST_WARM_ROUNDS = (1, 1), 0
    try:
        machine: Machine = HostMachine() if rehearsal else GpuMachine()
        return Run(open_place(machine, KernelLibrary(path)), seconds)
    except EnvironmentProblem as problem:
        raise SystemExit(f"{problem}; --rehearse runs on the emulated library") from None
    except (OSError, KernelError) as error:
        remedy = "name the emulated library in MMCOMPILE_KERNELS" if rehearsal else "`make plugin`"
        raise SystemExit(f"{path}: {error}; remedy: {remedy}") from None


def clocks_of(run: Run) -> Clocks:
    """Clocks now; unknown ones in a rehearsal."""
    return read_clocks(run.facts.uuid) if run.facts else Clocks()


def state(run: Run) -> dict[str, str]:
    """Clocks, power and temperature now."""
    return {
        k: f"{v:g}" if isinstance(v, float) else str(v)
        for k, v in dataclasses.asdict(clocks_of(run)).items()
        if v is not None
    }


def environment(run: Run) -> list[str]:
    """Date, device, clocks, versions."""
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **(dataclasses.asdict(run.facts) if run.facts else {}),
        "architecture": f"sm_{run.place.device.architecture}",
        "multiprocessors": str(run.place.device.multiprocessors),
        "library for": run.place.library.architectures,
        "cuBLAS": "by torch" if run.bf16 else "absent: torch with CUDA is not installed",
        **state(run),
    }
    if run.rehearsal:
        facts["REHEARSAL"] = "on the CPU; no figure means anything"
    return [f"{name}: {value}" for name, value in facts.items()]
