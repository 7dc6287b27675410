"""How the kernels are timed: CUDA graphs of many calls, events around each replay; and the device.

A graph holds one call per copy of the operands, so many copies that they do not fit the L2 cache:
every call finds its operands in DRAM, as in a model, whose other layers ran in between. Replays are
queued behind a kernel that sleeps, so that the CPU is never what is measured. torch is imported
where it is used; nothing else but the standard library is.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from benchmarks.measure import Timing

Enqueue = Callable[[int | None], object]
"""Puts one call on a stream, given as `cudaStream_t`."""

REPLAYS = (5, 40)
"""Fewest and most replays of a graph."""
SECONDS = 0.05
"""Time that the replays of one graph are meant to take together."""
_SLEEP_CYCLES = 4_000_000
CACHE_MULTIPLE = 4
"""Copies of operands fill the L2 cache so many times."""


class Clock(Protocol):
    """Where the calls run and what tells their time."""

    device: str
    cache_bytes: int

    def time(self, calls: Sequence[Enqueue], before: Callable[[], None] | None = None) -> Timing:
        """Seconds per call of a graph of these; `before` runs ahead of each replay, untimed."""


class GraphClock:
    """The GPU's own clock."""

    device = "cuda"

    def __init__(self) -> None:
        import torch

        self._torch: Any = torch
        self._stream = self._torch.cuda.Stream()
        self.cache_bytes = int(torch.cuda.get_device_properties(0).L2_cache_size)

    def time(self, calls: Sequence[Enqueue], before: Callable[[], None] | None = None) -> Timing:
        """Captures the calls, replays them, and reads the events."""
        torch, stream = self._torch, self._stream
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # Loads kernels, and lets cuBLAS allocate what it cannot while a graph is captured.
            for call in calls[:2]:
                call(stream.cuda_stream)
            torch.cuda.synchronize()
            # Not `with torch.cuda.graph`, which collects garbage each time.
            graph.capture_begin()
            for call in calls:
                call(stream.cuda_stream)
            graph.capture_end()
        once = self._replay(graph, 2, before)[-1]
        replays = min(max(math.ceil(SECONDS / once), REPLAYS[0]), REPLAYS[1])
        seconds = self._replay(graph, replays + 1, before)[1:]
        return Timing(tuple(value / len(calls) for value in seconds))

    def _replay(self, graph: Any, count: int, before: Callable[[], None] | None) -> list[float]:
        torch, stream = self._torch, self._stream
        pairs = []
        with torch.cuda.stream(stream):
            torch.cuda._sleep(_SLEEP_CYCLES)
            for _ in range(count):
                if before is not None:
                    before()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record(stream)
                graph.replay()
                end.record(stream)
                pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


class RehearsalClock:
    """The CPU's clock, with the emulated library: the program runs, its figures mean nothing."""

    device = "cpu"
    cache_bytes = 2**14

    def time(self, calls: Sequence[Enqueue], before: Callable[[], None] | None = None) -> Timing:
        """Runs everything once."""
        seconds = []
        for _ in range(2):
            if before is not None:
                before()
            start = time.perf_counter()
            for call in calls[:2]:
                call(None)
            seconds.append((time.perf_counter() - start) / len(calls[:2]))
        return Timing(tuple(seconds))


def copies_for(clock: Clock, size: int, least: int = 4, most: int = 64) -> int:
    """How many copies of so many bytes are too many for the cache."""
    return min(max(math.ceil(CACHE_MULTIPLE * clock.cache_bytes / size), least), most)


def copy_rate(clock: Clock, size: int) -> tuple[Timing, float]:
    """Copies of `size` / 2 bytes each, device to device: their time, and bytes per second.

    Bytes are those read plus those written, `size` in all.
    """
    import torch

    half = max(size // 2, 1)
    count = copies_for(clock, size, most=64)
    source, target = (
        torch.zeros((count, half), dtype=torch.uint8, device=clock.device) for _ in range(2)
    )
    calls = [_copier(target[i], source[i]) for i in range(count)]
    timing = clock.time(calls)
    return timing, 2 * half / timing.median


def _copier(target: Any, source: Any) -> Enqueue:
    return lambda _: target.copy_(source)


_QUERIES = {
    "GPU": "name",
    "driver": "driver_version",
    "SM clock": "clocks.sm",
    "highest SM clock": "clocks.max.sm",
    "memory clock": "clocks.mem",
    "power limit": "power.limit",
    "temperature": "temperature.gpu",
}


def device_facts() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; a note where it is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {"nvidia-smi": "absent"}
    command = [
        program,
        "--id=0",
        f"--query-gpu={','.join(_QUERIES.values())}",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"nvidia-smi": str(error)}
    if done.returncode:
        return {"nvidia-smi": done.stdout.strip() + done.stderr.strip()}
    return dict(zip(_QUERIES, (part.strip() for part in done.stdout.split(",")), strict=False))


def highest_clock(facts: dict[str, str]) -> float | None:
    """Hertz of the highest SM clock, if known."""
    number = facts.get("highest SM clock", "").split(" ")[0]
    return float(number) * 1e6 if number.replace(".", "", 1).isdigit() else None
