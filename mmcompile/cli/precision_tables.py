"""What an engine runs, as a table and as lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mmcompile.backends.engines.engine_file import EngineReport
from mmcompile.backends.engines.layer_precision import UNKNOWN, LayerPrecision, Realized
from mmcompile.backends.engines.precision import precision_lines
from mmcompile.cli.console import open_console
from mmcompile.report.summary import bytes_text, count_text, plain_text
from mmcompile.tables import Name, open_table

_KINDS = {"attention": "attention, fused", "generated": "generated kernel", "absent": "not found"}


def print_engine(report: EngineReport, verbose: bool) -> None:
    """An engine's layers by precision, each one if `verbose`, and what it lost."""
    console = open_console()
    title = Text.assemble((plain_text(report.engine), "bold"), f": {bytes_text(report.bytes)}")
    console.print(title, soft_wrap=True)
    print_layers(report.precision.realized, console, verbose)
    if not report.compared_with:
        console.print(Text("There is no model beside it to compare it with."))
    elif report.precision.lost or report.precision.unverified:
        for line in precision_lines(report.precision)[1:]:
            console.print(Text(plain_text(line), style="bold red"))
    else:
        line = f"Every layer has the precision that {report.compared_with} asks for."
        console.print(Text(plain_text(line), style="bold green"))


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
    console.print(Text(f"Source: {found.source}: {found.note}."), soft_wrap=True)


def _alike(layers: Sequence[LayerPrecision]) -> list[list[LayerPrecision]]:
    """Layers of one kind, with the same types, together."""
    groups: dict[object, list[LayerPrecision]] = {}
    for layer in layers:
        key = (layer.kind, layer.x, layer.weight, layer.output, layer.description)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())
