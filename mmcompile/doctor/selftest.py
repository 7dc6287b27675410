"""`mmcompile doctor --selftest`: runs the kernels here and writes a document to send in.

On a GPU: every kernel, format and tactic against the CPU tables, and the rates that the cost model
assumes. Without one: the same kernels' source in the emulator, where it can be compiled; what
remains to be done on a GPU is said.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from mmcompile import __version__
from mmcompile.cuda.clocks import Clocks, read_clocks
from mmcompile.cuda.driver import DriverError, GpuFacts
from mmcompile.cuda.layers import Place, open_place
from mmcompile.cuda.machine import GpuMachine, HostMachine
from mmcompile.doctor.checks import emulated_checks, gpu_checks
from mmcompile.doctor.emulation import DEVICES, emulated_library
from mmcompile.doctor.rates import Rate, measure_rates
from mmcompile.doctor.trial import Check, CheckResult
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import KernelError, KernelLibrary
from mmcompile.libraries import KERNELS, MISSING, digest, remedy
from mmcompile.progress import Progress, Silent

ON_A_GPU = (
    "the kernels compiled for a GPU, on it: instructions, memory, streams",
    "the rates of instructions and memory that the cost model assumes",
)
RATES_REMAIN = "the rates that the cost model assumes (leave out --quick)"
NOT_BLACKWELL = (
    "the block-scaled instructions of sm_120: this GPU ran the portable implementation of the "
    "same mathematics"
)


class LibraryInfo(msgspec.Struct, frozen=True):
    """The library that ran: its place, SHA-256 and architectures."""

    path: str
    sha256: str
    architectures: str


class Part(msgspec.Struct, frozen=True):
    """The checks on one device.

    Attributes:
        device: what ran them.
        tactics: tiles of the GEMM.
        checks: every check.
        error: why there are none, or no more.
    """

    device: str
    tactics: tuple[str, ...] = ()
    checks: tuple[CheckResult, ...] = ()
    error: str | None = None

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)


class SelfTest(msgspec.Struct, frozen=True):
    """The document.

    Attributes:
        kind: `selftest`.
        created: date and time, ISO 8601.
        mmcompile: its version.
        platform: operating system and processor.
        on_gpu: whether a GPU ran the kernels, or the emulator.
        gpu: what the driver says of it.
        clocks: before the run.
        library: what ran.
        parts: one per device; the emulator has several.
        rates: what was reached.
        remaining: what this run does not show.
        passed: all checks passed, and there were some.
    """

    kind: str
    created: str
    mmcompile: str
    platform: str
    on_gpu: bool
    gpu: GpuFacts | None
    clocks: Clocks | None
    library: LibraryInfo | None
    parts: tuple[Part, ...]
    rates: tuple[Rate, ...]
    remaining: tuple[str, ...]
    passed: bool


def self_test(progress: Progress | None = None, *, quick: bool = False) -> SelfTest:
    """Runs all that this machine can.

    Args:
        progress: told how far it is.
        quick: leave out the rates.
    """
    progress = progress or Silent()
    try:
        machine = GpuMachine()
    except (EnvironmentProblem, DriverError) as problem:
        reason = problem.reason if isinstance(problem, EnvironmentProblem) else str(problem)
        return _emulated(reason, progress)
    return _on_gpu(machine, progress, quick=quick)


def _on_gpu(machine: GpuMachine, progress: Progress, *, quick: bool) -> SelfTest:
    facts = machine.facts
    clocks = read_clocks(facts.uuid)
    device = f"{facts.name}, sm_{facts.architecture}"
    path = KERNELS.find()
    if path is None:
        part = Part(device, error=f"the kernel library is {MISSING}; {remedy(KERNELS)}")
        return _document((part,), gpu=facts, clocks=clocks, remaining=ON_A_GPU)
    try:
        library = KernelLibrary(path)
        place = open_place(machine, library)
    except (OSError, AttributeError, KernelError) as error:
        part = Part(device, error=f"{path}: {error}")
        return _document((part,), gpu=facts, clocks=clocks, remaining=ON_A_GPU)
    info = LibraryInfo(str(path), digest(path), library.architectures)
    part = _checked(device, place, tuple(gpu_checks()), progress)
    rates: tuple[Rate, ...] = ()
    remaining: tuple[str, ...] = () if facts.architecture // 10 == 12 else (NOT_BLACKWELL,)
    if quick:
        remaining += (RATES_REMAIN,)
    elif part.error is None:
        rates = tuple(progress.track(measure_rates(place, machine), "measuring rates"))
    return _document(
        (part,), gpu=facts, clocks=clocks, library=info, rates=rates, remaining=remaining
    )


def _emulated(reason: str, progress: Progress) -> SelfTest:
    remaining = [f"{what} ({reason})" for what in ON_A_GPU]
    try:
        library = emulated_library()
    except EnvironmentProblem as problem:
        remaining.insert(0, f"the kernels in the emulator: {problem.reason}; {problem.remedy}")
        return _document((), remaining=remaining)
    parts = []
    for number, name in DEVICES.items():
        place = open_place(HostMachine(), library, number)
        parts.append(_checked(f"emulator: {name}", place, tuple(emulated_checks()), progress))
    return _document(parts, remaining=remaining)


def _checked(device: str, place: Place, checks: Sequence[Check], progress: Progress) -> Part:
    """All checks; what a kernel that breaks the GPU leaves is kept."""
    done: list[CheckResult] = []
    error = None
    try:
        for check in progress.track(checks, f"checking kernels on {device}", len(checks)):
            done += check.run(place)
            if silence := _silence(place):
                error = f"the GPU does not answer after {check.name}: {silence}"
                break
    except DriverError as failure:
        error = str(failure)
    return Part(device, place.tactics, tuple(done), error)


def _silence(place: Place) -> str:
    """What the driver says after a kernel has touched what it must not: every call fails then."""
    try:
        place.machine.synchronize()
    except DriverError as error:
        return str(error)
    return ""


def _document(
    parts: Iterable[Part],
    *,
    remaining: Sequence[str],
    gpu: GpuFacts | None = None,
    clocks: Clocks | None = None,
    library: LibraryInfo | None = None,
    rates: tuple[Rate, ...] = (),
) -> SelfTest:
    parts = tuple(parts)
    return SelfTest(
        kind="selftest",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        mmcompile=__version__,
        platform=f"{platform.platform()}, {platform.machine()}",
        on_gpu=gpu is not None,
        gpu=gpu,
        clocks=clocks,
        library=library,
        parts=parts,
        rates=rates,
        remaining=tuple(remaining),
        passed=bool(parts) and all(p.checks and not p.failed and not p.error for p in parts),
    )


def kinds_of(checks: Iterable[CheckResult]) -> Iterator[tuple[str, int, int, float]]:
    """Per kind and formats: the name, how many checks passed, of how many, and the worst error."""
    groups: dict[str, list[CheckResult]] = {}
    for check in checks:
        groups.setdefault("/".join(check.name.split("/")[:2]), []).append(check)
    for name, group in groups.items():
        passed = sum(check.passed for check in group)
        yield name, passed, len(group), max((check.worst or 0.0 for check in group), default=0.0)
