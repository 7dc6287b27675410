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

import click

from mmcompile.errors import ExitCode, MMCompileError

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 128 + signal.SIGPIPE
"""Exit codes of processes that these signals end, as shells report them."""


class _Terminated(BaseException):
    """SIGTERM arrived; an exception so that what is half written is removed."""


def main() -> None:
    """Entry point: runs the command line and exits."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what a terminal cannot
    signal.signal(signal.SIGTERM, _terminate)
    # ONNX Runtime would otherwise keep a database in the user's cache folder and upload it.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        where = error.filename or "standard output"
        reason = error.strerror or str(error)
        line = f"{where}: {reason}; check the disk and its free space [input-output]"
        return _fail(line, ExitCode.ENVIRONMENT)
    return code


def _run(arguments: list[str]) -> int:
    try:
        from mmcompile.cli.commands import cli

        result = cli.main(arguments, prog_name="mmcompile", standalone_mode=False)
    except MMCompileError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        return _fail(_usage_line(error), ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; earlier output is as it was", INTERRUPTED)
    except _Terminated:
        return _fail("terminated; earlier output is as it was", TERMINATED)
    except SystemExit as stop:
        # Shell completion is done, or nobody reads standard output any more (click and rich).
        _drop_output()
        return PIPE_CLOSED if stop.code else ExitCode.OK
    except MemoryError:
        line = "memory: there is too little; close other programs, or use fewer, shorter samples"
        return _fail(f"{line} [out-of-memory]", ExitCode.ENVIRONMENT)
    except ImportError as error:
        reason = " ".join(str(error).split())
        line = f"{error.name or 'a package'}: {reason}; see mmcompile doctor [package-missing]"
        return _fail(line, ExitCode.ENVIRONMENT)
    except OSError:
        raise
    except Exception as error:
        error.add_note("mmcompile: error: this is a bug; please report it with the lines above")
        raise
    return result if isinstance(result, int) else ExitCode.OK


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


def _terminate(*_: object) -> None:
    raise _Terminated


def _drop_output() -> None:
    """Sends what is left for standard output nowhere, so that exiting does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
