"""How the benchmarks measure: interleaved timing, memory of a subprocess, and tables of results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

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
    def best(self) -> float:
        """The fastest run."""
        return min(self.seconds)


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
        self._path = Path(f"/proc/{pid}/status")
        self.peaks = {"VmHWM": 0, "RssAnon": 0, "RssFile": 0}

    def run(self) -> None:
        """Samples; ends when the process has given its memory back."""
        while True:
            try:
                lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
            except (OSError, ProcessLookupError):
                return
            found = {key: value for key, _, value in (line.partition(":") for line in lines)}
            if "VmHWM" not in found:
                return
            for key in self.peaks:
                self.peaks[key] = max(self.peaks[key], 1024 * int(found[key].split()[0]))
            time.sleep(_SAMPLE_SECONDS)


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


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False
) -> None:
    """Prints a table; the first column is text, the others are figures.

    Args:
        title: stands above it.
        columns: their heads.
        rows: the cells.
        markdown: print it as docs/measurements has it.
    """
    if markdown:
        print(f"\n{title}\n")
        print(f"| {' | '.join(columns)} |")
        print(f"|---|{'---:|' * (len(columns) - 1)}")
        for row in rows:
            print(f"| {' | '.join(row)} |")
        sys.stdout.flush()
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
