"""`mmcompile diff`: what two plans decide differently."""

from __future__ import annotations

from pathlib import Path

import click

from mmcompile.cli.generated import FILE
from mmcompile.cli.help import SectionedCommand


@click.command(
    "diff", cls=SectionedCommand, short_help="Compare two plans; exit code 1 if they differ."
)
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
def diff_command(old: Path, new: Path) -> int:
    """Show what differs between two plans; exit code 1 if anything does."""
    from mmcompile.plan import diff_plans, load_plan

    lines = diff_plans(load_plan(old), load_plan(new))
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("the plans decide alike")
    return 1 if lines else 0
