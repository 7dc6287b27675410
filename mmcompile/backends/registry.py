"""Which back ends there are, by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmcompile.backends import none, tensorrt, tensorrt_rtx
from mmcompile.backends.engines.api import MISSING
from mmcompile.backends.engines.options import AUTO
from mmcompile.backends.protocol import Backend
from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.registry import Registry

BACKENDS: Registry[Backend] = Registry("mmcompile.backends")
for _module in (tensorrt, tensorrt_rtx, none):
    BACKENDS.add(_module.BACKEND.name, _module.BACKEND)

NOTHING = none.BACKEND.name
"""Builds no engine."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a back end.

    Attributes:
        name: its name, or `AUTO`.
        target: the architecture to build for, e.g. `sm_120`.
        triton: the Triton server has to run its engines.
        ahead_of_time: it has to build for a GPU that is not here.
        library: why there is no plugin library; None where there is one.
    """

    name: str
    target: str
    triton: bool = False
    ahead_of_time: bool = False
    library: EnvironmentProblem | None = None


@dataclass(frozen=True)
class Choice:
    """A back end that can do what is asked, or why none can.

    Attributes:
        backend: the back end; None where none can.
        problems: why those before it cannot, or all of them.
    """

    backend: Backend | None
    problems: tuple[EnvironmentProblem, ...] = ()

    @property
    def reasons(self) -> str:
        """All problems' reasons, each once."""
        return "; ".join(dict.fromkeys(problem.reason for problem in self.problems))

    def demand(self) -> Backend:
        """The back end.

        Raises:
            EnvironmentProblem: none can; what is more than a missing package leads.
        """
        if self.backend is not None:
            return self.backend
        more = [each for each in self.problems if each.code != MISSING]
        first = (*more, *self.problems)[0]
        raise EnvironmentProblem(first.code, first.where, self.reasons, first.remedy)


def backend_names() -> tuple[str, ...]:
    """What `--backend` takes."""
    return (AUTO, *BACKENDS)


def find_backend(name: str, where: object = "--backend") -> Backend:
    """The back end of that name.

    Args:
        name: its name.
        where: what names it, for the error.

    Raises:
        UsageError: there is none; it lists those that there are.
    """
    if name not in BACKENDS:
        remedy = f"use one of {', '.join(backend_names())}"
        raise UsageError("unknown-backend", where, f"there is no back end '{name}'", remedy)
    return BACKENDS[name]


def candidates(wanted: Wanted) -> Sequence[Backend]:
    """The back ends that come into question, in order.

    Raises:
        UsageError: there is none of that name, Triton does not run its engines, or it builds
            nothing ahead of time.
    """
    if wanted.name == AUTO:
        automatic = [each for each in BACKENDS.values() if each.automatic]
        return [each for each in automatic if each.ahead_of_time or not wanted.ahead_of_time]
    backend = find_backend(wanted.name)
    if wanted.ahead_of_time and not backend.ahead_of_time:
        reason = f"{backend.title} builds nothing for a GPU that is not here"
        raise UsageError("not-ahead-of-time", "--backend", reason, "leave it out")
    if wanted.triton and backend.file is not None and not backend.triton:
        reason = f"Triton's TensorRT back end does not run engines by {backend.title}"
        raise UsageError("triton-backend", "--triton", reason, "leave it out, or --backend")
    return [backend]


def choose(wanted: Wanted) -> Choice:
    """The first back end that can build.

    Raises:
        UsageError: there is none of that name, Triton does not run its engines, or it builds
            nothing ahead of time.
    """
    problems: list[EnvironmentProblem] = []
    for backend in candidates(wanted):
        problem = _obstacle(backend, wanted)
        if problem is None:
            return Choice(backend, tuple(problems))
        problems.append(problem)
    if wanted.library is not None and any(each.needs_plugin for each in candidates(wanted)):
        problems.append(wanted.library)
    return Choice(None, tuple(problems))


def _obstacle(backend: Backend, wanted: Wanted) -> EnvironmentProblem | None:
    if wanted.triton and backend.file is not None and not backend.triton:
        reason = f"Triton's TensorRT back end does not run engines by {backend.title}"
        return EnvironmentProblem("triton-backend", "--triton", reason, "leave it out")
    problem = backend.missing(wanted.target)
    if problem is None and backend.needs_plugin:
        problem = wanted.library
    return problem
