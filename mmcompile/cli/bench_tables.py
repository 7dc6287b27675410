"""The tables of `mmcompile bench`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from mmcompile.backends.engines.precision import counts_text
from mmcompile.bench.kernels import KernelBench, KernelTiming
from mmcompile.bench.limits import FP16, VARIANTS
from mmcompile.bench.modelled import ModelledBench, ModelledLayer, ModelledPoint
from mmcompile.bench.prepared import PreparedBench
from mmcompile.bench.profiles import linear_seconds
from mmcompile.bench.results import EngineBench, TimedPoint, TimedVariant, precision_problems
from mmcompile.cli.console import open_console
from mmcompile.cuda.clocks import Clocks
from mmcompile.report.summary import bytes_text, plain_text
from mmcompile.tables import Name, open_table

SLOWEST = 12
"""Layers of a profile that are shown unless all are asked for."""


def print_modelled(bench: ModelledBench, verbose: bool) -> None:
    """Limits per point: totals of all, layers by kind, or each one if `verbose`."""
    console = open_console()
    console.print(Text(bench.notice, style="bold yellow"))
    title = Text.assemble((plain_text(bench.model), "bold"), f" on {bench.gpu_title}")
    console.print(title, soft_wrap=True)
    console.print(Text(f"MicroMix: {bench.split}"))
    totals = open_table(
        "All linear layers, MODELLED µs, and speed over FP16",
        ("Batch × sequence",),
        ("Rows", *VARIANTS),
    )
    for point in bench.points:
        cells = [_with_ratio(point.totals[v], point.over_fp16[v], v == FP16) for v in VARIANTS]
        name = f"{point.batch} × {point.sequence}, {point.phase}"
        totals.add_row(name, str(point.rows), *cells)
    console.print(totals)
    for point in bench.points:
        _print_layers(point, console, verbose)
    for assumption in bench.assumptions:
        console.print(Text(f"assumed: {assumption}"))


def _print_layers(point: ModelledPoint, console: Console, verbose: bool) -> None:
    heading = "Layer" if verbose else "Layers of a kind"
    table = open_table(
        f"Each layer at {point.batch} × {point.sequence} ({point.phase}), MODELLED µs; "
        "m: memory bounds it, c: the tensor cores",
        (heading,),
        ("Count", "K", "N", *VARIANTS),
    )
    for layers in _kinds(point.layers, verbose):
        first = layers[0]
        limits = [first.limits[v] for v in VARIANTS]
        name = first.name if len(layers) == 1 else f"{first.name}, …"
        table.add_row(
            Name(plain_text(name + (" (stays FP16)" if first.kept else ""))),
            str(len(layers)),
            str(first.in_channels),
            str(first.out_channels),
            *(f"{_microseconds(limit.seconds)} {limit.bound[0]}" for limit in limits),
        )
    console.print(table)


def _kinds(layers: Iterable[ModelledLayer], verbose: bool) -> list[list[ModelledLayer]]:
    """Layers of equal size and bits together, or each alone."""
    kinds: dict[object, list[ModelledLayer]] = {}
    for layer in layers:
        key = (layer.in_channels, layer.out_channels, layer.kept, round(layer.weight_bits, 2))
        kinds.setdefault(layer.name if verbose else key, []).append(layer)
    return list(kinds.values())


def _with_ratio(seconds: float, ratio: float, is_reference: bool) -> str:
    text = _microseconds(seconds)
    return text if is_reference else f"{text} {ratio:.2f}×"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.3g}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"


def print_kernels(bench: KernelBench, verbose: bool) -> None:
    """Ours and the baselines, a table per shape; what was launched, too, if `verbose`."""
    console = open_console()
    _print_machine(console, bench.kind, bench.gpu.name if bench.gpu else None, bench.method)
    shapes = dict.fromkeys((t.in_channels, t.out_channels) for t in bench.timings)
    for k, n in shapes:
        of_shape = [t for t in bench.timings if (t.in_channels, t.out_channels) == (k, n)]
        kernels = list(dict.fromkeys(t.kernel for t in of_shape))
        table = open_table(f"{k} → {n}, µs ± spread", ("Rows",), (*kernels, "SM clock"))
        for rows in dict.fromkeys(t.rows for t in of_shape):
            row = {t.kernel: t for t in of_shape if t.rows == rows}
            reference = next(iter(row.values()))
            cells = [_kernel_cell(row[name], reference) for name in kernels]
            table.add_row(str(rows), *cells, _clock(t.clocks for t in row.values()))
        console.print(table)
        if verbose:
            for timing in of_shape:
                if timing.launch:
                    console.print(Text(f"{timing.kernel}, {timing.rows} rows: {timing.launch}"))
        for timing in of_shape:
            if timing.error:
                line = f"{timing.kernel}, {timing.rows} rows: {timing.error}"
                console.print(Text(line, style="yellow"))
    for note in bench.notes:
        console.print(Text(note, style="yellow"))


def _kernel_cell(timing: KernelTiming, reference: KernelTiming) -> str:
    if timing.seconds is None:
        return "failed"
    text = f"{_microseconds(timing.seconds)} ±{timing.spread or 0:.0%}"
    if timing is not reference and reference.seconds:
        text += f" {reference.seconds / timing.seconds:.2f}×"
    return text


def print_engines(bench: EngineBench, verbose: bool) -> None:
    """Times of all variants, their engines, and the slowest layers, or all if `verbose`."""
    console = open_console()
    _print_machine(console, bench.kind, bench.gpu.name if bench.gpu else None, bench.method)
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    console.print(Text(f"{plain_text(bench.model)}; {versions}"), soft_wrap=True)
    reference = bench.variants[0].name if bench.variants else ""
    ratios = bench.speed_over(reference)
    points = dict.fromkeys((p.batch, p.sequence, p.phase) for v in bench.variants for p in v.points)
    heads = [f"{batch} × {sequence}\n{phase}" for batch, sequence, phase in points]
    table = open_table(
        f"Time of a run, ms ± spread, and speed over {reference}",
        ("Engine", "Layers run in"),
        (*heads, "Engine size", "Device memory", "Build"),
    )
    for variant in bench.variants:
        timed = {(p.batch, p.sequence): p for p in variant.points}
        cells = []
        for batch, sequence, _ in points:
            ratio = ratios.get((variant.name, batch, sequence))
            cells.append(_engine_cell(timed.get((batch, sequence)), ratio, variant, reference))
        build = f"{variant.build_seconds:.0f} s" if variant.build_seconds is not None else "–"
        sizes = [bytes_text(variant.engine_bytes), bytes_text(variant.device_bytes)]
        name = variant.name if variant.is_realized else f"{variant.name}, not realized"
        runs = "–" if variant.precision is None else counts_text(variant.precision.realized)
        table.add_row(name, plain_text(runs), *cells, *sizes, build)
    console.print(table)
    _print_problems(bench.variants, console)
    for variant in bench.variants:
        for point in variant.points:
            _print_profile(variant, point, console, verbose)


def print_prepared(bench: PreparedBench) -> None:
    """Engines that were built and not timed: their sizes, and what their layers run."""
    console = open_console()
    line = f"PREPARED for {bench.target} by {bench.builder} {bench.builder_version}, not timed"
    console.print(Text(line, "bold"), soft_wrap=True)
    console.print(Text(bench.notice))
    sizes = {each.name: each.engine.bytes for each in bench.variants if each.engine is not None}
    reference = bench.variants[0].name
    table = open_table(
        plain_text(bench.model),
        ("Engine", "Layers run in"),
        ("Engine size", f"Size over {reference}'s"),
    )
    for variant in bench.variants:
        size, check = sizes.get(variant.name), variant.precision
        is_lost = check is not None and bool(check.lost)
        ratio = "–"
        if size is not None and reference in sizes:
            ratio = f"{size / sizes[reference]:.2f}"
        table.add_row(
            f"{variant.name}, not realized" if is_lost else variant.name,
            "–" if check is None else plain_text(counts_text(check.realized)),
            "failed" if size is None else f"{size / 1e6:.2f} MB",
            ratio,
        )
    console.print(table)
    for variant in bench.variants:
        if variant.error:
            console.print(Text(f"✗ {variant.name}: {plain_text(variant.error)}", style="bold red"))
        for line in precision_problems(variant.name, variant.precision):
            console.print(Text(plain_text(line), style="yellow"))
    points = ", ".join(f"{point.batch} × {point.sequence}" for point in bench.points)
    if sizes:
        console.print(Text(f"To be timed at {points}."))
    else:
        console.print(Text("No engine could be built: nothing was written.", style="bold red"))


def _engine_cell(
    point: TimedPoint | None, ratio: float | None, variant: TimedVariant, reference: str
) -> str:
    if point is None or point.seconds is None:
        return "failed"
    text = f"{1e3 * point.seconds:.3f} ±{point.spread or 0:.0%}"
    return text if ratio is None or variant.name == reference else f"{text} {ratio:.2f}×"


def _print_problems(variants: Sequence[TimedVariant], console: Console) -> None:
    for variant in variants:
        if variant.error:
            console.print(Text(f"✗ {variant.name}: {variant.error}", style="bold red"))
        for line in precision_problems(variant.name, variant.precision):
            console.print(Text(plain_text(line), style="yellow"))
        for point in variant.points:
            head = f"{variant.name} at {point.batch} × {point.sequence}"
            if point.error:
                console.print(Text(f"✗ {head}: {point.error}", style="bold red"))
            elif point.note:
                console.print(Text(f"{head}: {point.note}", style="yellow"))
            if point.before and point.during:
                console.print(Text(f"{head}: {_clock_text(point.before, point.during)}"))


def _print_profile(
    variant: TimedVariant, point: TimedPoint, console: Console, verbose: bool
) -> None:
    if not point.layers:
        return
    slowest = sorted(point.layers, key=lambda layer: -layer.seconds)
    shown = slowest if verbose else slowest[:SLOWEST]
    linear = linear_seconds(point.layers) / (sum(x.seconds for x in point.layers) or 1)
    console.print(
        Text(
            f"{variant.name} at {point.batch} × {point.sequence}: {linear:.0%} of the profiled "
            f"time in linear layers; {len(shown)} of {len(slowest)} layers, the slowest first"
        ),
        soft_wrap=True,
    )
    table = open_table("Profile", ("ONNX nodes", "Kind"), ("µs", "Share", "Types"))
    for layer in shown:
        nodes = ", ".join(layer.linears or layer.nodes) or layer.name
        table.add_row(
            Name(plain_text(nodes)),
            plain_text(layer.kind),
            _microseconds(layer.seconds),
            f"{layer.share:.1%}",
            layer.precision,
        )
    console.print(table)


def _print_machine(console: Console, kind: str, gpu: str | None, method: str) -> None:
    console.print(Text(f"{kind.upper()} on {gpu or 'the CPU; no figure means anything'}", "bold"))
    console.print(Text(method))


def _clock(readings: Iterable[Clocks | None]) -> str:
    found = [reading.sm_mhz for reading in readings if reading and reading.sm_mhz]
    if not found:
        return "–"
    low, high = min(found), max(found)
    return f"{low:.0f} MHz" if low == high else f"{low:.0f}–{high:.0f} MHz"


def _clock_text(before: Clocks, during: Clocks) -> str:
    if during.sm_mhz is None:
        return f"clocks {during.source}"
    return (
        f"SM {before.sm_mhz or 0:.0f} MHz before, {during.sm_mhz:.0f} MHz while running (at most "
        f"{during.highest_sm_mhz or 0:.0f}), memory {during.memory_mhz or 0:.0f} MHz, "
        f"{during.power_w or 0:.0f} W, {during.temperature_c or 0:.0f} °C, by {during.source}"
    )
