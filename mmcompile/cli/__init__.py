"""The command line: `mmcompile model.onnx --gpu sm_120` and the commands beside it.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Every error of
a known cause is one line on standard error and an exit code of `errors.ExitCode`.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

import click

from mmcompile.errors import ExitCode, MMCompileError

SIGNALLED = 128
"""Exit codes of processes that a signal ends are its number above this, as shells report them."""


def main() -> None:
    """Entry point: runs the command line and exits."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what a terminal cannot
    # ONNX Runtime would otherwise keep a database in the user's cache folder and upload it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # numpy's BLAS threads would wait busily for 2^26 cycles after a product, in the way of ours.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    arrived: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        arrived.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    code = run(sys.argv[1:], arrived)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: list[str], signals: Sequence[int] = ()) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name.
        signals: the signals that have arrived so far, where somebody notes them.

    Returns:
        The exit code.
    """
    try:
        from mmcompile.cli.commands import cli

        result = cli.main(arguments, prog_name="mmcompile", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(signals)
    except SystemExit as stop:
        # Shell completion is done, or nobody reads standard output any more (click and rich).
        return SIGNALLED + signal.SIGPIPE if stop.code else ExitCode.OK
    except Exception as error:
        if signals:  # some libraries and imports answer an interrupt with an error of their own
            return _interrupted(signals)
        known = _explanation(error)
        if known is not None:
            return _fail(*known)
        error.add_note("mmcompile: error: this is a bug; please report it with the lines above")
        raise
    return result if isinstance(result, int) else ExitCode.OK


def _explanation(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code of an error whose cause is known."""
    if isinstance(error, MMCompileError):
        return error.on_command_line(), error.exit_code
    if isinstance(error, click.ClickException):
        return _usage_line(error), ExitCode.USAGE
    if isinstance(error, MemoryError):
        line = "memory: there is too little; close other programs, or use fewer, shorter samples"
        return f"{line} [out-of-memory]", ExitCode.ENVIRONMENT
    if isinstance(error, ImportError):
        reason = " ".join(str(error).split())
        line = f"{error.name or 'a package'}: {reason}; see mmcompile doctor [package-missing]"
        return line, ExitCode.ENVIRONMENT
    if isinstance(error, OSError):
        where, reason = error.filename or "standard output", error.strerror or str(error)
        line = f"{where}: {reason}; check the disk and its free space [input-output]"
        return line, ExitCode.ENVIRONMENT
    return None


def _interrupted(signals: Sequence[int]) -> int:
    number = signals[0] if signals else signal.SIGINT
    name = signal.Signals(number).name
    return _fail(f"interrupted by {name}; no file is half written", SIGNALLED + number)


def _usage_line(error: click.ClickException) -> str:
    """What click says about a mistake, and the help that tells more, as one line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mmcompile"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}; see {command} --help"


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        click.echo(f"mmcompile: error: {message}", err=True)
    return int(code)
