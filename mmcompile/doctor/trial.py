"""A check of the kernels: a named function of a trial, which keeps what it finds, part by part.

Like all that the tests on a GPU import, it needs nothing but numpy.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from mmcompile.cuda.calls import DeviceLayer
from mmcompile.cuda.driver import DriverError
from mmcompile.cuda.layers import Place
from mmcompile.kernels import KernelError

FAILURES = (AssertionError, KernelError, DriverError, MemoryError)


class Skipped(Exception):
    """A check that this place cannot run; the text is the reason."""


@dataclass(frozen=True)
class CheckResult:
    """A check, or a part of one.

    Attributes:
        name: `subject/case`, and the tile where there is one part for each.
        passed: whether the kernel agrees with the reference.
        seconds: time that it took.
        detail: sizes and launch; for a failure what is wrong.
        worst: largest error as a share of what is allowed.
    """

    name: str
    passed: bool
    seconds: float
    detail: str
    worst: float | None = None


class Part:
    """A part of a check, as a context: where it fails, the other parts still run.

    Attributes:
        tactic: of the GEMM, 0 for the automatic one.
        worst: see `CheckResult`.
    """

    def __init__(self, results: list[CheckResult], name: str, detail: str, tactic: int = 0) -> None:
        self._results, self._name, self._detail = results, name, detail
        self.tactic = tactic
        self.worst: float | None = None

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None and not isinstance(error, FAILURES):
            return False
        seconds = time.perf_counter() - self._start
        said = [str(error) or repr(error)] if error is not None else []
        detail = ": ".join([*filter(None, [self._detail]), *said])
        self._results.append(CheckResult(self._name, error is None, seconds, detail, self.worst))
        return True


class Trial:
    """A run of a check.

    Attributes:
        place: where the kernels run.
        random: numbers of its own, the same in every run.
        results: of the parts that are done.
    """

    def __init__(self, name: str, place: Place) -> None:
        self.place, self._name = place, name
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.results: list[CheckResult] = []

    def part(self, detail: str) -> Part:
        """A part under the check's own name."""
        return Part(self.results, self._name, detail)

    def reschedule(self) -> None:
        """Another order of threads, in the emulator; GPUs have one of their own every time."""
        self.place.reschedule(int(self.random.integers(2**32)))

    def tactics(self, layer: DeviceLayer) -> Iterator[Part]:
        """A part for every tactic, the automatic one first, each in another order of threads."""
        for tactic, tile in enumerate(("chosen", *self.place.tactics)):
            self.reschedule()
            yield Part(self.results, f"{self._name}/{tile}", layer.describe(tactic), tactic)


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: `subject/case`, also the source of its random numbers.
        function: what it does; what fails outside of all parts ends it.
        gpu_only: too much for the emulator, or about what it does not have.
    """

    name: str
    function: Callable[[Trial], None]
    gpu_only: bool = False

    def run(self, place: Place) -> tuple[CheckResult, ...]:
        """One result per part; one of the whole where there are no parts, or where it broke off.

        Raises:
            Skipped: this place cannot run it.
        """
        if self.gpu_only and place.emulated:
            raise Skipped("only on a GPU")
        trial = Trial(self.name, place)
        whole: list[CheckResult] = []
        with Part(whole, self.name, ""):
            self.function(trial)
        return (*trial.results, *(w for w in whole if not w.passed or not trial.results))
