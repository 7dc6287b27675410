"""`mmcompile report`: the report of an output folder."""

from __future__ import annotations

from pathlib import Path

import click

from mmcompile.cli.generated import FILE
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import json_option, verbose_option


@click.command("report", cls=SectionedCommand, short_help="Show the report of an output folder.")
@click.argument("source", type=FILE)
@click.option("--html", type=FILE, metavar="FILE", help="Write the page to this file.")
@json_option
@verbose_option
def report_command(source: Path, html: Path | None, as_json: bool, verbose: bool) -> None:
    """Show the report of SOURCE, an output folder or a report.json."""
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import print_report
    from mmcompile.pipeline.files import REPORT_JSON, check_target, write_text
    from mmcompile.report.html import render_html
    from mmcompile.report.model import load_report

    file = source / REPORT_JSON if source.is_dir() else source
    report = load_report(file)
    if html is not None:
        check_target(html, [file])
        write_text(html, render_html(report))
    if as_json:
        print_json(report)
    else:
        print_report(report, verbose)
    if html is not None:
        click.echo(f"wrote {html}", err=as_json)
