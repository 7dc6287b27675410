"""`mmcompile build`: the engine of an output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmcompile.cli.generated import FILE
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import engine_options, make_build


@click.command("build", cls=SectionedCommand, short_help="Build the engine of an output folder.")
@click.argument("folder", type=FILE)
@engine_options
def build_command(folder: Path, **values: Any) -> None:
    """Build the engine of FOLDER, which mmcompile wrote.

    TensorRT builds on the GPU that the engine is for, TensorRT-RTX without any. Options that are
    given win over those of the compilation. An earlier engine stays until the new one is complete.
    """
    from mmcompile.backends.engines.precision import precision_lines
    from mmcompile.pipeline.delivery import build_bundle

    built, files = build_bundle(folder, make_build(values))
    click.echo(str(built))
    for line in precision_lines(built.precision):
        click.echo(line)
    for file in files:
        click.echo(f"wrote {file}")
