"""The tables of `mmcompile analyze`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mmcompile.cli.console import open_console
from mmcompile.report.analysis import (
    Analysis,
    FormatShare,
    Layers,
    Pareto,
    PlanFigures,
    Stability,
    Stress,
)
from mmcompile.report.analysis_page import factor_text, layer_labels, order_verdict
from mmcompile.report.summary import (
    bits_text,
    count_text,
    decibel_text,
    figure_text,
    format_pair,
    percent_text,
    plain_text,
    seconds_text,
)
from mmcompile.tables import Name, open_table

WORST_LAYERS = 10
"""Layers that are shown unless all are asked for."""
NAMED_CHANNELS = 5


def print_analysis(analysis: Analysis, verbose: bool) -> None:
    """All sections; every layer if `verbose`."""
    console = open_console()
    data, chosen = analysis.data, analysis.chosen
    console.print(
        Text.assemble(
            (plain_text(analysis.model), "bold"),
            f": chosen plan {chosen.name}, error {figure_text(chosen.error)} on"
            f" {data.held_back_samples} samples, cost {chosen.speed_cost:.3f},"
            f" {bits_text(chosen.weight_bits)} bits per weight, weights"
            f" {'rounded to nearest' if analysis.weights == 'nearest' else 'with error feedback'}",
        ),
        soft_wrap=True,
    )
    console.print(Text(f"calibrated on {plain_text(data.calibration)}"), soft_wrap=True)
    if not data.fit:
        console.print(Text("UNFIT: random calibration data says nothing", style="bold red"))
    if not data.disjoint:
        line = "Too few samples to hold any back: errors are on what calibration saw."
        console.print(Text(line, style="bold red"))
    if analysis.pareto is not None:
        _print_pareto(analysis.pareto, console)
    if analysis.stability is not None:
        _print_stability(analysis.stability, console)
    if analysis.stress is not None:
        _print_stress(analysis.stress, console)
    if analysis.layers is not None:
        _print_layers(analysis.layers, console, verbose)
    slowest = max(analysis.stages, key=lambda stage: stage.seconds, default=None)
    if slowest is not None:
        total = seconds_text(sum(stage.seconds for stage in analysis.stages))
        line = f"{total} in all, {seconds_text(slowest.seconds)} of it for {slowest.name}"
        console.print(Text(line))


def _print_pareto(pareto: Pareto, console: Console) -> None:
    table = open_table(
        "Error against cost; ● on the front",
        ("Plan",),
        ("Cost", "", "Bits per\nweight", "", "Predicted\ndamage", "Error", "Worst\nsample"),
    )
    table.add_column("Formats", vertical="bottom")
    for point in pareto.points:
        plan = point.plan
        table.add_row(
            Text(plan.name, style="bold" if point.chosen else ""),
            f"{plan.speed_cost:.3f}",
            "●" if point.on_speed_front else "",
            bits_text(plan.weight_bits),
            "●" if point.on_bits_front else "",
            figure_text(plan.predicted_damage),
            figure_text(plan.error),
            figure_text(plan.error_of_worst_sample),
            _shares(plan.shares),
        )
    console.print(table)
    for point in pareto.points:
        if point.plan.note is not None:
            console.print(Text(f"{point.plan.name}: {plain_text(point.plan.note)}", style="red"))
    verdict = order_verdict(pareto.rank_correlation)
    console.print(Text(verdict[0].upper() + verdict[1:] + "."))


def _print_stability(stability: Stability, console: Console) -> None:
    table = open_table(
        "The same policy, calibrated on other data",
        ("Calibrated on",),
        ("Samples", "Agreement\nof formats", "By\nchance", "Cost", "Error", "Against\nchosen"),
    )
    table.add_column("Formats", vertical="bottom")
    table.add_row("all of it", "", "", "", *_cost_and_error(stability.chosen, None))
    for variant in stability.variants:
        table.add_row(
            Name(plain_text(variant.name) + ("" if variant.fit else " (unfit)")),
            count_text(variant.samples),
            percent_text(variant.agreement),
            percent_text(variant.agreement_by_chance),
            *_cost_and_error(variant.plan, stability.chosen.error),
        )
    console.print(table)


def _cost_and_error(plan: PlanFigures, reference: float | None) -> tuple[str, ...]:
    against = "" if reference is None else factor_text(plan.error, reference)
    return f"{plan.speed_cost:.3f}", figure_text(plan.error), against, _shares(plan.shares)


def _print_stress(stress: Stress, console: Console) -> None:
    names = [plan.plan for plan in stress.plans]
    table = open_table("Error on inputs far from calibration", ("Input",), ("Samples", *names))
    for place, given in enumerate(stress.inputs):
        cells = []
        for plan in stress.plans:
            error, reference = plan.errors[place], plan.errors[0]
            growth = f" {factor_text(error, reference)}" if place else ""
            cells.append(figure_text(error) + growth)
        table.add_row(Name(plain_text(given.name)), str(given.samples), *cells)
    console.print(table)
    title = "Layers alone on changed rows: output SQNR, and what the change costs"
    layers = open_table(
        title, ("Plan", "Rows"), ("Median", "Worst", "Median\nloss", "Worst\nloss", "Worst layer")
    )
    for entry in stress.layers:
        layers.add_row(
            entry.plan,
            entry.case,
            decibel_text(entry.median_sqnr_db),
            decibel_text(entry.worst_sqnr_db),
            decibel_text(entry.median_loss_db),
            decibel_text(entry.worst_loss_db),
            plain_text(entry.worst_layer or ""),
        )
    if stress.layers:
        console.print(layers)


def _print_layers(layers: Layers, console: Console, verbose: bool) -> None:
    ranked = sorted(layers.layers, key=lambda layer: -layer.damage)
    shown = ranked if verbose else ranked[:WORST_LAYERS]
    labels = layer_labels(layers.layers)
    table = open_table(
        f"The {len(shown)} of {len(ranked)} layers with the most predicted damage",
        ("Layer",),
        ("Damage", "Share", "Error\nalone", "Output\nSQNR", "Worst channels"),
    )
    for layer in shown:
        channels = ", ".join(str(c.channel) for c in layer.channels[:NAMED_CHANNELS])
        table.add_row(
            Name(labels[layer.name]),
            figure_text(layer.damage),
            percent_text(layer.damage_share),
            figure_text(layer.error_alone),
            decibel_text(layer.output_sqnr_db),
            channels,
        )
    console.print(table)
    alone, together = figure_text(layers.sum_of_errors_alone), figure_text(layers.error)
    line = f"{layers.measured} layers compiled alone: their errors sum to {alone}"
    console.print(Text(f"{line}; all together give {together}."))


def _shares(shares: Sequence[FormatShare]) -> str:
    """Shares in words, e.g. `75 % nvfp4, 25 % mxfp8`."""
    return ", ".join(
        f"{100 * share.share:.0f} % {format_pair(share.act_format, share.weight_format)}"
        for share in shares
    )
