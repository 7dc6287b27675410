"""Standard output: a console as wide as it should be, tables, names that fold, and JSON.

Nothing heavy is imported here, since `mmcompile doctor` has to work where much is missing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import click
import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 1000
"""Columns where no terminal is: files and pipes take lines of any length."""


class Name:
    """A name of a node or tensor; in a narrow column it folds after its separators."""

    def __init__(self, name: str) -> None:
        self._parts = re.findall(r"[^/._:+]*[/._:+]?", name)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """The longest part is the least width."""
        lengths = [cell_len(part) for part in self._parts]
        return Measurement(max(lengths), sum(lengths))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many parts per line as fit."""
        lines = [""]
        for part in self._parts:
            if lines[-1] and cell_len(lines[-1] + part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")


def open_console() -> Console:
    """Standard output as wide as its terminal, or as wide as need be."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPE_WIDTH if wide else None)


def print_json(document: object) -> None:
    """One JSON document in UTF-8, whatever the terminal's encoding."""
    click.echo(msgspec.json.encode(document))


def open_table(title: str, left: Sequence[str]) -> Table:
    """A table with a title and its first columns; figures get columns of their own."""
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in left:
        table.add_column(heading)
    return table
