"""Tables in the terminal: their look, and names that fold where a column is narrow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


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


def open_table(title: str, left: Sequence[str], figures: Sequence[str] = ()) -> Table:
    """A table with a title.

    Args:
        title: what it shows.
        left: headings of the first columns, which hold text and may fold.
        figures: headings of the columns after them, which never do.
    """
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in left:
        table.add_column(heading, vertical="bottom" if figures else "top")
    for heading in figures:
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    return table
