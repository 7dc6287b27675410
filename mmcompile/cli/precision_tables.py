"""What an engine runs, as a table and as lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mmcompile.backends.engines.engine_file import EngineReport
from mmcompile.backends.engines.layer_precision import PLUGIN, UNKNOWN, LayerPrecision, Realized
from mmcompile.backends.engines.precision import Lost, lost_text
from mmcompile.cli.console import open_console
from mmcompile.report.summary import bytes_text, count_text, plain_text
from mmcompile.tables import Name, open_table

_KINDS = {"attention": "attention, fused", "generated": "generated kernel"}


def print_engine(report: EngineReport, verbose: bool) -> None:
    """An engine's layers by precision, each one if `verbose`, and what it lost."""
    console = open_console()
    title = Text.assemble((plain_text(report.engine), "bold"), f": {bytes_text(report.bytes)}")
    console.print(title, soft_wrap=True)
    print_layers(report.realized, console, verbose)
    print_verdict(report, console)


def print_layers(found: Realized, console: Console, verbose: bool) -> None:
    """The table, and where it comes from."""
    table = open_table(
        f"{count_text(len(found.layers))} layers that multiply",
        ("Layer", "Kind") if verbose else ("Layers", "Kind"),
        ("x", "Weight", "Sums", "Output", "Precision")
        if verbose
        else ("Count", "x", "Weight", "Sums", "Output", "Precision"),
    )
    for alike in [[layer] for layer in found.layers] if verbose else _alike(found.layers):
        first = alike[0]
        name = first.nodes[0] if first.nodes else first.name
        cells = [first.x, first.weight, first.accumulation, first.output]
        table.add_row(
            Name(plain_text(name if len(alike) == 1 else f"{name}, …")),
            _KINDS.get(first.kind, first.kind),
            *([] if verbose else [count_text(len(alike))]),
            *("–" if cell == UNKNOWN else cell for cell in cells),
            plain_text(first.description),
        )
    if found.layers:
        console.print(table)
    console.print(Text(f"Source: {found.source}: {found.note}."))


def print_verdict(report: EngineReport, console: Console) -> None:
    """Whether the engine runs what its model asks for."""
    if not report.compared_with:
        console.print(Text("There is no model beside it to compare it with."))
        return
    for line, style in precision_lines(report.lost, report.unverified):
        console.print(Text(line, style=style))
    if not report.lost and not report.unverified:
        line = f"Every layer has the precision that {report.compared_with} asks for."
        console.print(Text(line, style="bold green"))


def precision_lines(missing: Sequence[Lost], unverified: Sequence[str]) -> list[tuple[str, str]]:
    """What was lost and what cannot be told, a line each, with its style."""
    lines = []
    if missing:
        lines.append((f"✗ precision lost: {lost_text(missing)}", "bold red"))
    if unverified:
        more = ", …" if len(unverified) > 1 else ""
        text = f"not verified ({count_text(len(unverified))}): {unverified[0]}{more}"
        lines.append((text, "yellow"))
    return lines


def counts_text(counts: dict[str, int]) -> str:
    """Layers by precision in a line, e.g. `36 FP8; 6 FP16`."""
    named = {PLUGIN: "MicroMix", UNKNOWN: "unknown"}
    return "; ".join(f"{count} {named.get(name, name)}" for name, count in counts.items())


def _alike(layers: Sequence[LayerPrecision]) -> list[list[LayerPrecision]]:
    """Layers of one kind, with the same types, together."""
    groups: dict[object, list[LayerPrecision]] = {}
    for layer in layers:
        key = (layer.kind, layer.x, layer.weight, layer.output, layer.description)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())
