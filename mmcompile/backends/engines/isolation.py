"""Builds or loads an engine in a process of its own, which a builder that dies cannot leave.

TensorRT-RTX looks for a library of its own in a function that must not throw, and deserializing
without a driver is a fault of memory: either ends the process. Here that is one line for the user.
A request goes to the process's standard input, the answer comes from its standard output, and what
libraries print goes to its standard error. The process ends with its parent, whatever ends that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from typing import NoReturn, TypeVar

import msgspec

from mmcompile import errors
from mmcompile.backends.engines.building import (
    BuildAnswer,
    BuildRequest,
    LoadAnswer,
    LoadRequest,
    build,
    load,
)
from mmcompile.errors import EnvironmentProblem, MMCompileError

# With this process's path, wherever it came from; and the kernel ends it with this process.
_START = """
import sys
sys.path[:] = sys.argv[2:]
from mmcompile.backends.engines.isolation import serve
serve(int(sys.argv[1]))
"""
_DIE_WITH_PARENT = 1
"""prctl's PR_SET_PDEATHSIG (linux/prctl.h)."""
_TOLD = 2000
"""Characters of what a dead process has printed that are looked at."""
_LINES = 2
"""The last lines of them that are told: an error of the builder's, and what ended it."""
_WORD = {BuildRequest: "building", LoadRequest: "loading"}

Answer = TypeVar("Answer", BuildAnswer, LoadAnswer)


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """An `MMCompileError`: the name of its class, and its parts."""

    kind: str
    code: str
    where: str
    reason: str
    remedy: str


def build_isolated(request: BuildRequest) -> BuildAnswer:
    """`building.build` in a process of its own.

    Raises:
        MMCompileError: as there.
        EnvironmentProblem: the process died.
    """
    return _ask(request, BuildAnswer)


def load_isolated(request: LoadRequest) -> LoadAnswer:
    """`building.load` in a process of its own.

    Raises:
        MMCompileError: as there.
        EnvironmentProblem: the process died.
    """
    return _ask(request, LoadAnswer)


def _ask(request: BuildRequest | LoadRequest, kind: type[Answer]) -> Answer:
    with tempfile.TemporaryFile() as told:
        # In a session of its own: Ctrl-C reaches the parent alone, which ends the process.
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(os.getpid()), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            start_new_session=True,
        )
        with process:
            try:
                content, _ = process.communicate(msgspec.msgpack.encode(request))
            except BaseException:
                process.kill()
                raise
        told.seek(0)
        printed = told.read()[-_TOLD:].decode("utf-8", "replace")
    try:
        answer = msgspec.msgpack.decode(content, type=kind | Failure)
    except msgspec.DecodeError:
        raise _dead(request, process.returncode, printed) from None
    if isinstance(answer, Failure):
        raised: type[MMCompileError] = getattr(errors, answer.kind)
        raise raised(answer.code, answer.where, answer.reason, answer.remedy)
    return answer


def _dead(request: BuildRequest | LoadRequest, code: int, printed: str) -> EnvironmentProblem:
    """What became of a process that gave no answer."""
    title = request.product.title
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    last = f": {'; '.join(lines[-_LINES:])}" if lines else ""
    if code == -signal.SIGKILL:
        reason = f"{title} was killed while {_WORD[type(request)]}, mostly for lack of memory"
        remedy = "free memory, or build smaller --shapes"
        return EnvironmentProblem("build-out-of-memory", title, reason, remedy)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
    reason = f"its process ended with {how} while {_WORD[type(request)]}{last}"
    remedy = "see `mmcompile doctor`; please report it if all is well there"
    return EnvironmentProblem("builder-died", title, reason, remedy)


def serve(parent: int) -> NoReturn:
    """Answers one request: standard input and output of a process that `_ask` has started.

    Args:
        parent: the process that asks.
    """
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker
        os._exit(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for the answer
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=BuildRequest | LoadRequest)
    answer: BuildAnswer | LoadAnswer | Failure
    try:
        answer = build(request) if isinstance(request, BuildRequest) else load(request)
    except MMCompileError as error:
        kind = type(error).__name__
        answer = Failure(kind, error.code, error.where, error.reason, error.remedy)
    answers.write(msgspec.msgpack.encode(answer))
    answers.flush()
    os._exit(0)  # all is written; the destructors of libraries can only do harm
