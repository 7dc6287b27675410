"""The tables of `mmcompile doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from mmcompile.cli.console import open_console
from mmcompile.finding import Finding
from mmcompile.tables import Name, open_table


def print_findings(findings: Sequence[Finding]) -> None:
    """What is here and what is missing, with what that costs and the remedy."""
    console = open_console()
    here = open_table("Here", ("What", "Found"))
    for finding in findings:
        if finding.present:
            here.add_row(Text("✓ " + finding.name, style="green"), Name(finding.found))
    console.print(here)
    absent = [finding for finding in findings if not finding.present]
    missing = open_table("Missing", ("What", "Found", "Without it", "Remedy"))
    for finding in absent:
        name = Text("✗ " + finding.name, style="bold red") if finding.required else finding.name
        cells = (finding.found, finding.cost, finding.remedy)
        missing.add_row(name, *map(Text, cells))
    if absent:
        console.print(missing)
    if any(finding.required for finding in absent):
        console.print(Text("mmcompile does not work here: see ✗", style="bold red"))
