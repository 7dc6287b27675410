"""The benchmarks' tables: aligned columns on the terminal, Markdown for docs/measurements.

rich draws them where it is installed; a machine that lends a GPU may have nothing but torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field


def command_line(doc: str) -> argparse.ArgumentParser:
    """The command line of a benchmark: its first line as help, and `--markdown`."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--markdown", action="store_true", help="print the tables for docs")
    return made


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool = False
) -> None:
    """Prints a table; see `FigureTable`."""
    FigureTable(title, columns, [list(row) for row in rows]).show(markdown=markdown)


@dataclass
class FigureTable:
    """A table and what is to be known about it; the first column is text, others are figures."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, *, markdown: bool = False) -> None:
        """Prints it."""
        print()
        if markdown:
            print(self.markdown(), flush=True)
            return
        try:
            self._draw()
        except ImportError:
            print("\n".join([self.title, *self._aligned()]))
        for note in self.notes:
            print(f"  {note}")
        print(end="", flush=True)

    def _draw(self) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        (Console() if sys.stdout.isatty() else Console(width=170)).print(table)

    def _aligned(self) -> list[str]:
        lines = [list(self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        found = []
        for line in lines:
            cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
            cells[0] = line[0].ljust(widths[0])
            found.append("  " + "  ".join(cells).rstrip())
        return found

    def markdown(self) -> str:
        """As docs/measurements has tables."""
        lines = [f"**{self.title}**", "", f"| {' | '.join(self.columns)} |"]
        lines.append(f"|---|{'---:|' * (len(self.columns) - 1)}")
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)
