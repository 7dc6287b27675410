"""A benchmark's document as the page that the report draws."""

from __future__ import annotations

from pathlib import Path

from mmcompile.backends.engines.precision import counts_text
from mmcompile.bench.kernels import KernelBench
from mmcompile.bench.limits import VARIANTS
from mmcompile.bench.modelled import ModelledBench
from mmcompile.bench.results import EngineBench, TimedVariant, precision_problems
from mmcompile.report.bench import BenchPage, Chart, PageTable
from mmcompile.report.summary import bytes_text


def bench_page(document: ModelledBench | KernelBench | EngineBench) -> BenchPage:
    """The page of any of the three."""
    if isinstance(document, ModelledBench):
        return _modelled(document)
    if isinstance(document, KernelBench):
        return _kernels(document)
    return _engines(document)


def _modelled(bench: ModelledBench) -> BenchPage:
    labels = [f"{p.batch}×{p.sequence} {p.phase}" for p in bench.points]
    series = [(v, [point.over_fp16[v] for point in bench.points]) for v in VARIANTS]
    totals = [
        [label, str(point.rows), *(_us(point.totals[v]) for v in VARIANTS)]
        for label, point in zip(labels, bench.points, strict=True)
    ]
    layers = [
        [
            layer.name,
            label,
            "FP16" if layer.kept else f"{layer.weight_bits:.2f}",
            str(layer.in_channels),
            str(layer.out_channels),
            *(f"{_us(layer.limits[v].seconds)} {layer.limits[v].bound[0]}" for v in VARIANTS),
        ]
        for label, point in zip(labels, bench.points, strict=True)
        for layer in point.layers
    ]
    figures = [
        [name, "not known" if figure.value is None else f"{figure.value:,.6g}", figure.source]
        for name, figure in bench.figures.items()
    ]
    return BenchPage(
        kind=bench.kind,
        title=f"{Path(bench.model).name} on {bench.gpu_title}",
        notice=bench.notice,
        facts=[("GPU", bench.gpu_title), ("MicroMix", bench.split)],
        charts=[Chart("Modelled limit over FP16, all linear layers", labels, series)],
        tables=[
            PageTable("All linear layers, modelled µs", ["Size", "Rows", *VARIANTS], totals),
            PageTable(
                "Every layer, modelled µs; m: memory bounds it, c: the tensor cores",
                ["Layer", "Size", "Bits", "K", "N", *VARIANTS],
                layers,
                text_columns=2,
            ),
            PageTable(
                "What is known of the GPU", ["Figure", "Value", "Source"], figures, text_columns=3
            ),
        ],
        notes=bench.assumptions,
    )


def _kernels(bench: KernelBench) -> BenchPage:
    charts = []
    rows = []
    for k, n in dict.fromkeys((t.in_channels, t.out_channels) for t in bench.timings):
        of_shape = [t for t in bench.timings if (t.in_channels, t.out_channels) == (k, n)]
        counts = list(dict.fromkeys(t.rows for t in of_shape))
        times = {(t.kernel, t.rows): t.seconds for t in of_shape}
        names = list(dict.fromkeys(t.kernel for t in of_shape))
        speed = [(name, [_over(times, names[0], name, m) for m in counts]) for name in names]
        groups = [f"{m} rows" for m in counts]
        charts.append(Chart(f"{k} → {n}: speed over {names[0]}", groups, speed))
        rows += [
            [
                t.kernel,
                f"{k} → {n}",
                str(t.rows),
                _us(t.seconds) if t.seconds else t.error or "–",
                f"±{t.spread or 0:.0%}",
                t.launch,
            ]
            for t in of_shape
        ]
    columns = ["Kernel", "Shape", "Rows", "µs", "Spread", "Launch"]
    return BenchPage(
        kind=bench.kind,
        title="Kernels on layer shapes",
        notice=bench.method,
        facts=[("GPU", bench.gpu.name if bench.gpu else "none: the CPU emulates it")],
        charts=charts,
        tables=[PageTable("Every kernel", columns, rows, text_columns=2)],
        notes=bench.notes,
    )


def _over(
    times: dict[tuple[str, int], float | None], reference: str, name: str, rows: int
) -> float | None:
    ours, theirs = times.get((name, rows)), times.get((reference, rows))
    return theirs / ours if ours and theirs else None


def _engines(bench: EngineBench) -> BenchPage:
    reference = bench.variants[0].name if bench.variants else ""
    ratios = bench.speed_over(reference)
    points = list(dict.fromkeys((p.batch, p.sequence) for v in bench.variants for p in v.points))
    labels = [f"{batch}×{sequence}" for batch, sequence in points]
    series = [(v.name, [ratios.get((v.name, *point)) for point in points]) for v in bench.variants]
    engines = [
        [
            v.name,
            v.error or ("built" if v.is_realized else "precision not realized"),
            "–" if v.precision is None else counts_text(v.precision.realized),
            f"{v.build_seconds:.0f} s" if v.build_seconds is not None else "–",
            bytes_text(v.engine_bytes),
            bytes_text(v.device_bytes),
        ]
        for v in bench.variants
    ]
    return BenchPage(
        kind=bench.kind,
        title=f"{Path(bench.model).name}: engines",
        notice=bench.method,
        facts=[("GPU", bench.gpu.name if bench.gpu else "–"), *bench.versions.items()],
        charts=[Chart(f"Speed over {reference}", labels, series)],
        tables=[
            PageTable(
                "Engines",
                ["Engine", "State", "Layers run in", "Build", "Size", "Device memory"],
                engines,
                text_columns=3,
            ),
            _times(bench),
            *(_profile(variant) for variant in bench.variants if variant.points),
        ],
        notes=[
            line
            for variant in bench.variants
            for line in precision_problems(variant.name, variant.precision)
        ],
    )


def _times(bench: EngineBench) -> PageTable:
    rows = [
        [
            v.name,
            f"{p.batch}×{p.sequence} {p.phase}",
            p.error or p.note or ("CUDA graph" if p.graph else ""),
            f"{1e3 * p.seconds:.3f}" if p.seconds else "–",
            f"±{p.spread or 0:.0%}",
            f"{p.during.sm_mhz:.0f} MHz" if p.during and p.during.sm_mhz else "–",
        ]
        for v in bench.variants
        for p in v.points
    ]
    columns = ["Engine", "Size", "How", "ms", "Spread", "SM clock"]
    return PageTable("Time of a run", columns, rows, text_columns=3)


def _profile(variant: TimedVariant) -> PageTable:
    rows = [
        [
            ", ".join(layer.linears or layer.nodes) or layer.name,
            f"{point.batch}×{point.sequence}",
            layer.precision,
            _us(layer.seconds),
            f"{layer.share:.1%}",
        ]
        for point in variant.points
        for layer in point.layers
    ]
    columns = ["ONNX nodes", "Size", "Types", "µs", "Share"]
    return PageTable(f"{variant.name}: profile", columns, rows, text_columns=3)


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.3g}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"
