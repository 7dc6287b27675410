"""`mmcompile inspect`: the linear layers of a model, or the precision of an engine's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmcompile.cli.generated import FILE, taken
from mmcompile.cli.help import SectionedCommand, sections
from mmcompile.cli.options import (
    json_option,
    refuse_without_effect,
    selection_options,
    verbose_option,
)
from mmcompile.model.selection import Selection


@click.command(
    "inspect",
    cls=SectionedCommand,
    short_help="List a model's linear layers, or an engine's precision.",
)
@click.argument("file", type=FILE)
@selection_options
@json_option
@verbose_option
@click.pass_context
def inspect_command(
    context: click.Context, /, file: Path, as_json: bool, verbose: bool, **values: Any
) -> None:
    """List a model's linear layers and, for all other candidates, why they are none.

    FILE may also be an engine, or the JSON of `trtexec --exportLayerInfo`: then it lists the
    precision of every layer that multiplies, and compares it with the model beside the engine. No
    GPU and no TensorRT is needed for it.
    """
    from mmcompile.backends.engines.engine_file import engine_report, is_engine
    from mmcompile.cli.console import print_json

    if is_engine(file):
        from mmcompile.cli.precision_tables import print_engine

        refuse_without_effect(context, sections()["Layers"], "an engine, whose layers are settled")
        report = engine_report(file)
        print_json(report) if as_json else print_engine(report, verbose)
        return
    from mmcompile.cli.tables import inspection, print_inspection
    from mmcompile.pipeline.prepare import prepare

    prepared = prepare(file, taken(Selection, values))
    if as_json:
        print_json(inspection(prepared))
    else:
        print_inspection(prepared, verbose)
