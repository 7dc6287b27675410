"""The one family of errors that a user sees: a code, the place, the reason and the remedy.

Every error ends a run with the exit code of its class (see `ExitCode`) and is printed as one line.
A traceback reaches the terminal only for `INTERNAL`, that is, for a bug in mmcompile.
"""

from __future__ import annotations

import enum
import re

ARGUMENTS = {
    "--calib": "calibration",
    "--data": "data",
    "--lambda": "factor",
    "--no-verify": "verify.enabled=False",
    "--quantize-heads": "heads",
    "--stats": "shards",
    "--verify-data": "verification",
    "--verify-samples": "samples",
}
"""Arguments of the Python API by the options of the command line, where names differ."""
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


class ExitCode(enum.IntEnum):
    """Process exit codes of the command line."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    UNSUPPORTED_MODEL = 3
    ENVIRONMENT = 4
    VERIFICATION_FAILED = 5


class MMCompileError(Exception):
    """Base of all errors with a known cause.

    Args:
        code: short stable identifier in kebab case, e.g. `"model-truncated"`.
        where: the file, node, tensor or option concerned.
        reason: what is wrong, as one sentence without a full stop.
        remedy: what the user can do about it, as one sentence without a full stop.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, code: str, where: object, reason: str, remedy: str) -> None:
        self.code = code
        self.where = str(where)
        self.reason = reason
        self.remedy = remedy
        super().__init__(code, self.where, reason, remedy)

    def __str__(self) -> str:
        """The error as one line in Python's words: options are arguments."""
        return _OPTION.sub(lambda found: argument_of(found[0]), self.on_command_line())

    def on_command_line(self) -> str:
        """The error as one line: `where: reason; remedy [code]`, options as they are typed."""
        line = f"{self.where}: {self.reason}; {self.remedy} [{self.code}]"
        return " ".join(line.split())


def argument_of(option: str) -> str:
    """The argument that an option of the command line has in Python, e.g. `target_bits`."""
    return ARGUMENTS.get(option, option.removeprefix("--").replace("-", "_"))


class UsageError(MMCompileError):
    """Options, plans or calibration data that the user can correct."""

    exit_code = ExitCode.USAGE


class UnsupportedModelError(MMCompileError):
    """A model file that cannot be read or that mmcompile does not support."""

    exit_code = ExitCode.UNSUPPORTED_MODEL


class EnvironmentProblem(MMCompileError):
    """Something outside the model is missing or full: a package, a device, the disk."""

    exit_code = ExitCode.ENVIRONMENT


class VerificationError(MMCompileError):
    """A result is not what it has to be, in its answers, its interface or its precision."""

    exit_code = ExitCode.VERIFICATION_FAILED
