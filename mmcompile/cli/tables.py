"""Terminal tables of the commands that make no full report."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmcompile.doctor import Finding
from mmcompile.pipeline.prepare import Prepared
from mmcompile.report.model import VerificationReport


def print_inspection(prepared: Prepared) -> None:
    """The linears of a model, group by group, and the candidates that are left alone."""
    console = Console()
    table = Table(title=f"{len(prepared.groups)} groups of linear layers", title_justify="left")
    for heading in ("Group", "Reads"):
        table.add_column(heading, overflow="fold")
    for heading in ("K", "N", "Weights"):
        table.add_column(heading, justify="right")
    for group in prepared.groups:
        rows = " + ".join(str(site.out_channels) for site in group.sites)
        weights = group.in_channels * group.out_channels
        table.add_row(
            escape(group.name), escape(group.input), str(group.in_channels), rows, f"{weights:,}"
        )
    console.print(table)
    left = Table(title=f"{len(prepared.left_alone)} left alone", title_justify="left")
    for heading in ("Node", "Code", "Because it"):
        left.add_column(heading, overflow="fold")
    for entry in prepared.left_alone:
        left.add_row(escape(entry.node), entry.code, escape(entry.reason))
    console.print(left)


def inspection_json(prepared: Prepared) -> str:
    """The same as JSON: `groups` and `left_alone`."""
    groups = [
        {
            "name": group.name,
            "input": group.input,
            "in_channels": group.in_channels,
            "linears": [
                {
                    "node": site.node,
                    "weight": site.weight.name,
                    "out_channels": site.out_channels,
                    "bias": site.bias is not None,
                    "output": site.output,
                }
                for site in group.sites
            ],
        }
        for group in prepared.groups
    ]
    found = {"groups": groups, "left_alone": prepared.left_alone}
    return msgspec.json.encode(found).decode()


def print_verification(report: VerificationReport) -> None:
    """Agreement per output and per layer, and the verdict."""
    console = Console()
    table = Table(title=f"{report.samples} samples, {escape(report.inputs)}", title_justify="left")
    table.add_column("Output")
    for heading in ("Mean cosine", "Min cosine", "SQNR dB", "Max error", "KL nats", "Top-1"):
        table.add_column(heading, justify="right")
    for output in report.outputs:
        figures = (
            output.cosine_mean,
            output.cosine_min,
            output.sqnr_db,
            output.max_abs_error,
            output.kl_divergence_nats,
            output.top1_agreement,
        )
        table.add_row(escape(output.name), *map(_figure, figures))
    if report.outputs:
        console.print(table)
    if report.layers:
        layers = Table(title="Layers, errors of earlier layers included", title_justify="left")
        layers.add_column("Layer", overflow="fold")
        layers.add_column("Cosine", justify="right")
        layers.add_column("SQNR dB", justify="right")
        for layer in report.layers:
            mark = "  ← first bad layer" if layer.name == report.first_bad_layer else ""
            row = (escape(layer.name) + mark, _figure(layer.cosine), _figure(layer.sqnr_db))
            layers.add_row(*row)
        console.print(layers)
    if report.note:
        console.print(escape(report.note))
    verdict = "passed" if report.passed else "FAILED"
    demand = f" ({report.threshold})" if report.threshold else ""
    console.print(f"{verdict}{demand}", style="green" if report.passed else "bold red")


def print_findings(findings: Sequence[Finding]) -> None:
    """What is here and what is missing, with what it costs and the remedy."""
    table = Table(show_edge=False)
    for heading in ("", "What", "Found", "Without it", "Remedy"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = "[green]✓[/]" if finding.present else ("[red]✗[/]" if finding.required else "–")
        missing = ("", "") if finding.present else (finding.cost, finding.remedy)
        table.add_row(mark, finding.name, escape(finding.found), *map(escape, missing))
    Console().print(table)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"
