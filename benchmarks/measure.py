"""How the benchmarks measure: interleaved timing, memory of a process, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
_SAMPLE_SECONDS = 0.004
"""How often a process's memory is looked at; its high-water mark misses nothing between."""
_PACKAGES = ("mmcompile", "numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "polygraphy")


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median

    def __str__(self) -> str:
        """Microseconds and spread."""
        return f"{self.median * 1e6:.1f} ±{self.spread:.0%}"


@dataclass(frozen=True)
class ProcessFigures:
    """What one run of a command took.

    Attributes:
        wall: seconds from start to exit.
        cpu: seconds of user and system time.
        peak: bytes of the resident set at its high-water mark (VmHWM); mapped file pages count.
        peak_anonymous: bytes of the largest anonymous part seen (RssAnon): what is not a file's.
        peak_file: bytes of the largest file-backed part seen (RssFile).
        output: standard output.
    """

    wall: float
    cpu: float
    peak: int
    peak_anonymous: int
    peak_file: int
    output: str


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, Timing]:
    """Times every candidate once per round, so that a noisy moment hits them all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm_up + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if number >= warm_up:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def median_ratio(value: Timing, reference: Timing) -> float:
    """Median over the rounds of value / reference, each pair measured side by side."""
    pairs = zip(value.seconds, reference.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def run_process(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> ProcessFigures:
    """Runs a command to its end and watches its memory in /proc.

    Raises:
        RuntimeError: the command fails; with what it wrote to standard error.
    """
    arguments = [str(part) for part in command]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            arguments, stdout=output, stderr=errors, env={**os.environ, **(environment or {})}
        )
        watch = _MemoryWatch(process.pid)
        watch.start()
        status = process.wait()
        wall = time.perf_counter() - start
        watch.join()
        output.seek(0)
        errors.seek(0)
        if status:
            raise RuntimeError(f"{' '.join(arguments)}\nexit code {status}\n{errors.read()}")
        printed = output.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peaks = watch.peaks
    return ProcessFigures(wall, cpu, peaks["VmHWM"], peaks["RssAnon"], peaks["RssFile"], printed)


class _MemoryWatch(threading.Thread):
    """Samples /proc/PID/status until the process is gone; `peaks` are the largest values seen.

    A process's own ru_maxrss would not do: what a fork copies from its parent counts in it.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.peaks = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}

    def run(self) -> None:
        """Samples; ends when the process has given its memory back."""
        while True:
            try:
                found = process_memory(self._pid)
            except (OSError, ProcessLookupError):
                return
            if "VmHWM" not in found:
                return
            for key in self.peaks:
                self.peaks[key] = max(self.peaks[key], found[key])
            time.sleep(_SAMPLE_SECONDS)


def process_memory(process: int | str = "self") -> dict[str, int]:
    """Bytes by the names that /proc/PID/status gives them, `VmRSS` and `VmHWM` among them.

    Empty where the process has ended and nobody has waited for it yet.

    Raises:
        OSError: there is no such process.
    """
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    rows = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.removesuffix(":"): 1024 * int(kibibytes) for name, kibibytes, _ in rows}


def environment() -> str:
    """Machine and versions, for the head of a table."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    busy = f"load average {os.getloadavg()[0]:.1f} before the run"
    return f"{_processor()}, {os.cpu_count()} cores, {busy}; {', '.join(versions)}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
