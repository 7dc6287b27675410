"""How calls are timed: a CUDA graph of one call per copy of the operands, events around replays.

Operands that do not fit the L2 cache together are found in DRAM by every call, as in a model whose
other layers ran in between. Replays are enqueued without waiting, behind those that warm up, so
that while one runs the next is already queued: what is measured is the GPU, not the CPU that
launches. Where a call cannot be
captured, the calls are launched one by one and the result says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmcompile.cuda.driver import DriverError
from mmcompile.cuda.machine import Enqueue, Machine

REPLAYS = (7, 50)
"""Fewest and most replays that count."""
SECONDS = 0.2
"""Time that the replays of one measurement are meant to take together."""
WARM_SECONDS = 0.1
"""Time of calls before the first that counts: clocks rise, caches and lazy loading settle."""
MOST_WARM_ROUNDS = 200
CACHE_MULTIPLE = 4
"""Copies of operands fill the L2 cache so many times."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
        seconds: one figure per replay, each the mean of the calls in it.
        calls: calls in a replay.
        graph: whether a CUDA graph was replayed.
        note: why none was.
    """

    seconds: tuple[float, ...]
    calls: int = 1
    graph: bool = True
    note: str = ""

    @property
    def median(self) -> float:
        """The middle replay."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """The fastest replay."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 4 or not self.median:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def time_calls(
    machine: Machine,
    calls: Sequence[Enqueue],
    *,
    before: Sequence[Enqueue] = (),
    during: Callable[[], object] | None = None,
    seconds: float = SECONDS,
    warm_seconds: float = WARM_SECONDS,
) -> Timing:
    """Times calls.

    Args:
        machine: where they run.
        calls: one per copy of the operands; each replay runs them all, in this order.
        before: run ahead of every replay, untimed.
        during: called once, while the replays run: to read the clocks under load.
        seconds: how long the replays take together, about.
        warm_seconds: how long to warm up.

    Raises:
        DriverError: a kernel failed.
    """
    stream = machine.stream()

    def plainly() -> None:
        for call in calls:
            call(stream)

    def prepare() -> None:
        for call in before:
            call(stream)

    def timed() -> Callable[[], float]:
        prepare()
        return machine.timed(stream, launch)

    # Loads kernels, and lets libraries allocate what they cannot while a graph is captured.
    prepare()
    plainly()
    machine.synchronize()
    launch, note = plainly, ""
    try:
        graph = machine.capture(stream, plainly)
    except DriverError as error:
        note = f"launched one by one: no CUDA graph ({error})"
    else:

        def launch() -> None:
            graph.launch(stream)

    first = timed()
    machine.synchronize()
    once = max(first(), 1e-7)
    for _ in range(min(math.ceil(warm_seconds / once), MOST_WARM_ROUNDS)):
        prepare()
        launch()
    count = min(max(math.ceil(seconds / once), REPLAYS[0]), REPLAYS[1])
    readings = [timed() for _ in range(count)]
    if during is not None:
        during()
    machine.synchronize()
    return Timing(tuple(read() / len(calls) for read in readings), len(calls), not note, note)


def copies_for(cache_bytes: int, size: int, least: int = 2, most: int = 64) -> int:
    """How many copies of so many bytes are too many for the cache."""
    return min(max(math.ceil(CACHE_MULTIPLE * cache_bytes / max(size, 1)), least), most)
