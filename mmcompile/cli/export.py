"""`mmcompile export`: PyTorch models to ONNX."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mmcompile.cli.generated import FILE, options_from, taken
from mmcompile.cli.help import SectionedCommand
from mmcompile.exporting.options import ExportOptions


@click.command("export", cls=SectionedCommand, short_help="Export a PyTorch model to ONNX.")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    default=Path("model.onnx"),
    show_default=True,
    help="The .onnx file, or a folder for model.onnx.",
)
@options_from(ExportOptions)
def export_command(source: str, output: Path, **values: Any) -> None:
    """Export SOURCE to ONNX: a local Hugging Face folder, or script.py:factory.

    The factory returns a module, its example inputs and their dynamic shapes.
    """
    from mmcompile.exporting import export_model

    say = _say if sys.stderr.isatty() else None
    written = export_model(source, output, taken(ExportOptions, values), say)
    click.echo(f"wrote {written}")


def _say(line: str) -> None:
    click.echo(line, err=True)
