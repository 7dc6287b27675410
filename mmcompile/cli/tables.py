"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console, Group
from rich.text import Text

from mmcompile.cli.console import open_console
from mmcompile.model.sites import SiteGroup
from mmcompile.pipeline.forecast import Forecast
from mmcompile.pipeline.options import CompileOptions, CompileResult
from mmcompile.pipeline.prepare import Prepared
from mmcompile.plan import LeftAlone
from mmcompile.report.model import Report, VerificationReport
from mmcompile.report.summary import (
    bits_text,
    bytes_text,
    change_text,
    cosine_text,
    count_text,
    decibel_text,
    output_figures,
    plain_text,
    reason_groups,
    verdict,
)
from mmcompile.tables import Name, open_table


def print_report(report: Report, verbose: bool) -> None:
    """The report of a run."""
    from mmcompile.report.terminal import print_summary

    print_summary(report, open_console(), verbose)


def print_outcome(result: CompileResult, options: CompileOptions) -> None:
    """The files that were written; for a dry run, those that would be."""
    if options.dry_run:
        click.echo(f"dry run: nothing was written to {options.output}")
    for file in result.files:
        click.echo(f"wrote {file}")


def print_forecast(expected: Forecast, verbose: bool) -> None:
    """What a dry run without data can say."""
    console = open_console()
    console.print(
        Text.assemble(
            (plain_text(expected.model), "bold"),
            f" for {expected.target}, policy {expected.policy}: {count_text(expected.linears)}"
            f" linear layers in {count_text(expected.groups)} groups,"
            f" {count_text(expected.weights)} weights",
        ),
        soft_wrap=True,
    )
    table = open_table(
        "Model size if all channels had one format",
        ("Format",),
        ("Size", "Against\nFP16", "Bits per\nweight", "Limit over FP16\n(modelled)"),
    )
    table.add_row("original", bytes_text(expected.model_bytes))
    table.add_row("FP16", bytes_text(expected.fp16_bytes))
    for row in expected.formats:
        table.add_row(
            row.format,
            bytes_text(row.model_bytes),
            " ".join(change_text(expected.fp16_bytes, row.model_bytes)),
            bits_text(row.weight_bits),
            f"{row.compute_limit:.1f}×",
        )
    console.print(table)
    _print_left_alone(expected.left_alone, console, verbose)
    console.print(Text(expected.note))
    console.print("dry run: nothing was written")


def print_inspection(prepared: Prepared, verbose: bool) -> None:
    """The linears of a model by kind (each one if `verbose`), and why other candidates are none."""
    console = open_console()
    groups = prepared.groups
    linears = sum(len(group.sites) for group in groups)
    console.print(
        Text.assemble(
            (plain_text(str(prepared.source.path)), "bold"),
            f": opset {prepared.opset}, {bytes_text(prepared.source.size_bytes)}",
        ),
        soft_wrap=True,
    )
    table = open_table(
        f"{count_text(linears)} linear layers in {count_text(len(groups))} groups that read one"
        " tensor each",
        ("Group", "Reads") if verbose else ("Groups of a kind",),
        ("K", "N", "Weights") if verbose else ("Count", "K", "N", "Weights"),
    )
    for alike in [[group] for group in groups] if verbose else _kinds(groups):
        first = alike[0]
        name = first.name if len(alike) == 1 else _kind(first.name)
        weights = sum(group.in_channels * group.out_channels for group in alike)
        cells = [str(first.in_channels), _rows(first), count_text(weights)]
        if verbose:
            table.add_row(_name(name), _name(first.input), *cells)
        else:
            table.add_row(_name(name), count_text(len(alike)), *cells)
    if groups:
        console.print(table)
    else:
        console.print(Text("There is no linear layer to rewrite.", style="bold yellow"))
    _print_left_alone(prepared.left_alone, console, verbose)


def inspection(prepared: Prepared) -> dict[str, Any]:
    """The same for programs: `groups` and `left_alone`."""
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
    return {"groups": groups, "left_alone": prepared.left_alone}


def print_verification(report: VerificationReport) -> None:
    """Agreement per output and per layer, and the verdict."""
    console = open_console()
    title = f"{report.samples} samples, {plain_text(report.inputs)}"
    logits = any(output.is_logits for output in report.outputs)
    headings = ["Mean cosine", "Min cosine", "SQNR", "Max |error|"]
    headings += ["KL (nats)", "Top-1"] if logits else []
    table = open_table(title, ("Output",), headings)
    for output in report.outputs:
        table.add_row(_name(output.name), *output_figures(output, logits=logits))
    if report.outputs:
        console.print(table)
    if report.layers:
        title = "Layers, errors of earlier layers included"
        layers = open_table(title, ("Layer",), ("Cosine", "SQNR", ""))
        for layer in report.layers:
            mark = "← first bad" if layer.name == report.first_bad_layer else ""
            figures = [cosine_text(layer.cosine), decibel_text(layer.sqnr_db), mark]
            layers.add_row(_name(layer.name), *figures)
        console.print(layers)
    if report.note:
        console.print(Text(plain_text(report.note)))
    found = verdict(report)
    demand = f" ({report.threshold})" if report.threshold else ""
    style = {"good": "bold green", "bad": "bold red", "open": "bold"}[found.state]
    console.print(Text.assemble("Verification: ", (found.text, style), demand))


def _print_left_alone(left_alone: Sequence[LeftAlone], console: Console, verbose: bool) -> None:
    if not left_alone:
        return
    title = f"{count_text(len(left_alone))} candidates left alone"
    headings = ("Code", "Count", "Because it", "Node" if verbose else "For example")
    table = open_table(title, headings)
    table.columns[1].justify = "right"
    for group in reason_groups(left_alone):
        for reason, nodes in group.reasons:
            names = [_name(node) for node in (nodes if verbose else nodes[:1])]
            count = count_text(len(nodes))
            table.add_row(group.code, count, plain_text(reason), Group(*names))
    console.print(table)


def _kinds(groups: Sequence[SiteGroup]) -> list[list[SiteGroup]]:
    """Groups that differ in the numbers in their names only, as the blocks of a transformer do."""
    kinds: dict[object, list[SiteGroup]] = {}
    for group in groups:
        key = (_kind(group.name), group.in_channels, _rows(group))
        kinds.setdefault(key, []).append(group)
    return list(kinds.values())


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _rows(group: SiteGroup) -> str:
    return "+".join(str(site.out_channels) for site in group.sites)


def _name(name: str) -> Name:
    return Name(plain_text(name))
