"""Standard output: a console as wide as it should be, and JSON.

Nothing heavy is imported here, since `mmcompile doctor` has to work where much is missing.
"""

from __future__ import annotations

import os
import sys

import click
import msgspec
from rich.console import Console

PIPE_WIDTH = 1000
"""Columns where no terminal is: files and pipes take lines of any length."""


def open_console() -> Console:
    """Standard output as wide as its terminal, or as wide as need be."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPE_WIDTH if wide else None)


def print_json(document: object) -> None:
    """One JSON document in UTF-8, whatever the terminal's encoding."""
    click.echo(msgspec.json.encode(document))
