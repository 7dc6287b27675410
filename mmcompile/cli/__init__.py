"""The command line: `mmcompile model.onnx --gpu sm_120` and the commands beside it.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Every error of
a known cause is one line on standard error and an exit code of `errors.ExitCode`.
"""

from __future__ import annotations

import os
import sys
import traceback

import click

from mmcompile.errors import ExitCode, MMCompileError

INTERRUPTED = 130


def main() -> None:
    """Entry point: runs the command line and exits."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    from mmcompile.cli.commands import cli

    try:
        result = cli.main(arguments, prog_name="mmcompile", standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except MMCompileError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else "; see mmcompile --help"
        return _fail(" ".join(error.format_message().split()) + hint, ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; earlier output is as it was", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except MemoryError:
        return _fail("out of memory; close other programs or use fewer, shorter samples", 4)
    except Exception:
        traceback.print_exc()
        return _fail("this is a bug in mmcompile; please report it", ExitCode.INTERNAL)


def _fail(message: str, code: int) -> int:
    print(f"mmcompile: error: {message}", file=sys.stderr)
    return int(code)
