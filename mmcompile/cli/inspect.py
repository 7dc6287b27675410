"""`mmcompile inspect`: the linear layers of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmcompile.cli.generated import FILE, taken
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import json_option, selection_options, verbose_option
from mmcompile.model.selection import Selection


@click.command(
    "inspect",
    cls=SectionedCommand,
    short_help="List a model's linear layers, and why others are none.",
)
@click.argument("model", type=FILE)
@selection_options
@json_option
@verbose_option
def inspect_command(model: Path, as_json: bool, verbose: bool, **values: Any) -> None:
    """List MODEL's linear layers and, for all other candidates, why they are none."""
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import inspection, print_inspection
    from mmcompile.pipeline.prepare import prepare

    prepared = prepare(model, taken(Selection, values))
    if as_json:
        print_json(inspection(prepared))
    else:
        print_inspection(prepared, verbose)
