"""The report as a few tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mmcompile.report.model import (
    EXACT_DB,
    CalibrationInfo,
    LayerError,
    LayerReport,
    Report,
    RestInfo,
    VerificationReport,
)
from mmcompile.report.summary import (
    REST_ALONE,
    Totals,
    bits_text,
    bytes_text,
    cosine_text,
    count_text,
    decibel_text,
    format_pair,
    gains_text,
    layer_kinds,
    layer_labels,
    layer_totals,
    nearest_reasons,
    original_sizes_text,
    output_figures,
    percent_text,
    plain_text,
    reason_groups,
    report_totals,
    rest_text,
    seconds_text,
    size_change,
    verdict,
    weights_text,
    worst_first,
)
from mmcompile.tables import Name, open_table

MOST_LAYERS = 40
"""Most layers that are listed one by one without `verbose`."""
WORST_LAYERS = 20
WIDE = 100
"""Columns from which on there is room for a layer's less important figures."""
NODES_SHOWN = 3


def print_summary(report: Report, console: Console, verbose: bool) -> None:
    """Prints what a reader needs to judge a run.

    Args:
        report: the report.
        console: where to print.
        verbose: list every layer, every node left alone and every stage.
    """
    totals = report_totals(report)
    _print_heading(report, console)
    if not report.calibration.fit:
        _print_unfit(report, console)
    _print_layers(report, console, verbose)
    _print_totals(report, totals, console)
    _print_left_alone(report, console, verbose)
    _print_nearest(report, console, verbose)
    if report.rest is not None:
        _print_islands(report.rest, console)
    if report.verification is not None:
        _print_verification(report.verification, console, verbose)
    _print_cost(report, console, verbose)
    if report.engine is not None:
        for said in (report.engine.summary, *report.engine.precision):
            line = plain_text(said)
            console.print(Text(line[0].upper() + line[1:] + "."), soft_wrap=True)


def _print_heading(report: Report, console: Console) -> None:
    line = Text.assemble(
        (plain_text(report.model.path), "bold"),
        f" for {plain_text(report.target.name)}, policy {plain_text(report.policy.name)}",
    )
    console.print(line, soft_wrap=True)
    if report.target.remark:
        console.print(Text(f"Note: {plain_text(report.target.remark)}.", "yellow"), soft_wrap=True)


def _print_unfit(report: Report, console: Console) -> None:
    text = Text.assemble(
        (plain_text(report.calibration.description), "bold"),
        "\nThe plan rests on data that says nothing about real use. Expect a less accurate model"
        " than these figures show, and calibrate with real inputs before you ship it.",
    )
    title = Text("CALIBRATION IS NOT FIT FOR USE", style="bold")
    console.print(Panel(text, title=title, style="red", box=box.HEAVY, expand=False))


def _print_layers(report: Report, console: Console, verbose: bool) -> None:
    if not report.layers:
        console.print(Text("No linear layer was rewritten.", style="bold yellow"))
        return
    labels = layer_labels(report.layers)
    if verbose or len(report.layers) <= MOST_LAYERS:
        wide = verbose and console.width >= WIDE
        console.print(_layer_table("Layers", report.layers, labels, wide))
        return
    console.print(_kind_table(report, labels))
    worst = worst_first(report.layers)[:WORST_LAYERS]
    title = f"The {len(worst)} layers with the lowest output SQNR, of {len(report.layers)}"
    console.print(_layer_table(title, worst, labels, wide=False))


def _layer_table(
    title: str, layers: Sequence[LayerReport], labels: dict[str, str], wide: bool
) -> Table:
    """One row per layer, with its channels per pair of formats."""
    pairs = [(x.act_format, x.weight_format, x.label) for x in layer_totals(layers, 0).split]
    headings = ["K", "N", *(label.replace("_", "\n").replace(" / ", "\n") for *_, label in pairs)]
    headings += ["W\nbits", "A\nbits", "Output\nSQNR"]
    gains = wide and any(layer.rounding for layer in layers)
    headings += ["W SQNR", "Size"] if wide else []
    headings += ["GPTQ error\n(dB)"] if gains else []
    table = open_table(title, ("Layer",), headings)
    for layer in layers:
        channels = dict.fromkeys(pairs, 0)
        for segment in layer.segments:
            label = format_pair(segment.act_format, segment.weight_format)
            channels[segment.act_format, segment.weight_format, label] += segment.channels
        cells = [
            str(layer.in_channels),
            str(sum(layer.out_channels)),
            *(str(count or "") for count in channels.values()),
            bits_text(layer.weight_bits),
            bits_text(layer.act_bits),
            decibel_text(layer.output_sqnr_db),
        ]
        if wide:
            cells += [decibel_text(layer.weight_sqnr_db), bytes_text(layer.bytes_after)]
        if gains:
            cells.append(gains_text(layer))
        table.add_row(Name(labels[layer.name]), *cells)
    return table


def _kind_table(report: Report, labels: dict[str, str]) -> Table:
    headings = ("Layers", "W\nbits", "A\nbits", "Size", "Lowest\noutput SQNR")
    table = open_table("Layers by kind", ("Kind",), headings)
    for kind in layer_kinds(report.layers, labels):
        totals = kind.totals()
        table.add_row(
            Name(kind.name),
            count_text(len(kind.layers)),
            bits_text(totals.weight_bits),
            bits_text(totals.act_bits),
            bytes_text(totals.bytes_after),
            decibel_text(totals.worst.output_sqnr_db if totals.worst else None),
        )
    return table


def _print_totals(report: Report, totals: Totals, console: Console) -> None:
    model = report.model
    size = f"{bytes_text(model.bytes_after)}, {' '.join(size_change(model))}"
    size += ", estimated" if model.estimated else ""
    linears = f"{count_text(totals.linears)} of {count_text(totals.candidates)}"
    grid = Table.grid(padding=(0, 2))
    grid.add_row("Calibrated on", Text(_calibration_text(report.calibration)))
    grid.add_row("Model size", Text(size, style="bold"))
    grid.add_row("Original", original_sizes_text(model))
    grid.add_row("Linear layers rewritten", f"{linears} in {count_text(len(report.layers))} groups")
    grid.add_row("Mean bits per weight", bits_text(totals.weight_bits))
    grid.add_row("Mean bits per activation", bits_text(totals.act_bits))
    if totals.split:
        shares = ", ".join(f"{percent_text(part.share)} {part.label}" for part in totals.split)
        grid.add_row("Weights by format", Text(shares))
    if rounding := weights_text(report):
        grid.add_row("Weights rounded", Text(plain_text(rounding)))
    if report.rest is not None:
        grid.add_row("All else", Text(plain_text(rest_text(report.rest))))
    console.print(grid)


def _calibration_text(calibration: CalibrationInfo) -> str:
    text = plain_text(calibration.description)
    if calibration.tokens is not None:
        text += (
            f"; {count_text(calibration.samples)} samples, {count_text(calibration.tokens)} tokens"
        )
    return text + ("; statistics of an earlier run" if calibration.cached else "")


def _print_left_alone(report: Report, console: Console, verbose: bool) -> None:
    if not report.left_alone:
        return
    table = open_table("Left alone", ("Reason", "Nodes", "Count"))
    table.columns[2].justify = "right"
    for group in reason_groups(report.left_alone):
        for reason, nodes in group.reasons:
            cause = Text.assemble((plain_text(group.code), "bold"), f": {plain_text(reason)}")
            table.add_row(cause, _node_list(nodes, verbose), count_text(len(nodes)))
    console.print(table)


def _print_nearest(report: Report, console: Console, verbose: bool) -> None:
    """Where error feedback was asked for and rounding to nearest was kept, with the reasons."""
    reasons = nearest_reasons(report.layers)
    if not reasons:
        return
    table = open_table("Weights rounded to nearest", ("Reason", "Nodes", "Count"))
    table.columns[2].justify = "right"
    for reason, nodes in reasons.items():
        cause = Text(plain_text(reason))
        table.add_row(cause, _node_list(nodes, verbose), count_text(len(nodes)))
    console.print(table)


def _print_islands(rest: RestInfo, console: Console) -> None:
    """The nodes that stay in float32, by reason, and what else is to be known of the rest."""
    if rest.islands:
        title = "Nodes outside of the rewritten layers that stay in float32"
        table = open_table(title, ("Reason",), ("Nodes",))
        for island in rest.islands:
            cause = Text.assemble(
                (plain_text(island.code), "bold"), f": {plain_text(island.reason)}"
            )
            table.add_row(cause, count_text(island.nodes))
        console.print(table)
    for note in rest.notes:
        console.print(Text(plain_text(note)))


def _node_list(nodes: Sequence[str], verbose: bool) -> Group:
    shown = nodes if verbose else nodes[:NODES_SHOWN]
    lines: list[Name | Text] = [Name(plain_text(node)) for node in shown]
    if len(nodes) > len(shown):
        lines.append(Text(f"and {len(nodes) - len(shown)} more"))
    return Group(*lines)


def _print_verification(result: VerificationReport, console: Console, verbose: bool) -> None:
    headings = ["Mean\ncosine", "Min\ncosine", "SQNR", "Max\n|error|"]
    logits = any(output.is_logits for output in result.outputs)
    headings += ["KL\n(nats)", "Top-1"] if logits else []
    title = "Verification: compiled model against the original"
    table = open_table(title, ("Output", "Type"), headings)
    for output in result.outputs:
        figures = output_figures(output, logits=logits)
        table.add_row(Name(plain_text(output.name)), Text(plain_text(output.dtype)), *figures)
    for output in result.rest_alone:
        figures = output_figures(output, logits=logits)
        label = Name(plain_text(f"{output.name}{REST_ALONE}"))
        table.add_row(label, Text(plain_text(output.dtype)), *figures)
    if result.outputs:
        console.print(table)
    found = verdict(result)
    style = {"good": "bold green", "bad": "bold red", "open": "bold"}[found.state]
    demand = f" ({plain_text(result.threshold)})" if result.threshold else ""
    outcome = Text.assemble("Verification: ", (found.text, style), demand)
    if result.outputs:
        outcome.append(f"; {result.samples} samples, {plain_text(result.inputs)}")
        outcome.append(f"; {plain_text(result.measured_on)}")
    console.print(outcome)
    if result.first_bad_layer is not None:
        name = plain_text(result.first_bad_layer)
        console.print(Text(f"First layer out of bounds: {name}", style="red"))
    if result.note:
        console.print(Text(plain_text(result.note)))
    if result.layers:
        _print_layer_errors(result.layers, console, verbose)


def _print_layer_errors(layers: Sequence[LayerError], console: Console, verbose: bool) -> None:
    shown, title = layers, "Layers inside the compiled model"
    if len(layers) > MOST_LAYERS and not verbose:
        lowest = sorted(layers, key=lambda x: -EXACT_DB if x.sqnr_db is None else x.sqnr_db)
        shown = lowest[:WORST_LAYERS]
        title = f"The {len(shown)} layers with the lowest SQNR inside the compiled model"
    table = open_table(title, ("Layer",), ("Cosine", "SQNR"))
    for layer in shown:
        label = Name(plain_text(layer.name))
        table.add_row(label, cosine_text(layer.cosine), decibel_text(layer.sqnr_db))
    console.print(table)


def _print_cost(report: Report, console: Console, verbose: bool) -> None:
    if verbose and report.stages:
        table = open_table("Stages", ("Stage",), ("Time",))
        for stage in report.stages:
            table.add_row(Text(plain_text(stage.name)), seconds_text(stage.seconds))
        console.print(table)
    parts = []
    if report.stages:
        parts.append(f"{seconds_text(sum(stage.seconds for stage in report.stages))} in all")
    if report.peak_memory_bytes is not None:
        parts.append(f"peak memory {bytes_text(report.peak_memory_bytes)}")
    if not report.target.executed:
        parts.append(f"nothing was run on {plain_text(report.target.name)}")
    if parts:
        line = ", ".join(parts)
        console.print(Text(line[0].upper() + line[1:] + "."))
