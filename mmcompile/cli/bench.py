"""`mmcompile bench`: modelled limits, engines side by side, also prepared ones, and kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mmcompile.cli.generated import FILE, options, taken
from mmcompile.cli.options import (
    backend_option,
    data_options,
    destinations,
    json_option,
    make_data,
    make_progress,
    refuse_without_effect,
    selection_options,
    verbose_option,
)
from mmcompile.data.options import DataOptions
from mmcompile.errors import ExitCode, UsageError
from mmcompile.model.selection import Selection
from mmcompile.targets.table import DEFAULT_GPU, DEFAULT_TARGET

MODES = ("modelled", "kernels", "prepare", "run")
_OF_ENGINES = (*destinations(DataOptions), "backend", "variants")
WITHOUT_EFFECT = {
    "--modelled": _OF_ENGINES,
    "--kernels": (*_OF_ENGINES, "plan"),
    "--prepare": ("html", "verbose"),
    "--run": (*_OF_ENGINES, *destinations(Selection), "plan", "points", "gpu"),
}
"""Python names of the options that change nothing, by what is to be done."""

bench_options = options(
    click.option("--modelled", is_flag=True, help="Limits by the roofline; needs no GPU."),
    click.option("--kernels", is_flag=True, help="The plugin's kernels beside cuBLAS, on a GPU."),
    click.option(
        "--prepare",
        type=FILE,
        metavar="FOLDER",
        help="Only build the engines, for a GPU that need not be here, into a folder for --run.",
    ),
    click.option(
        "--run",
        type=FILE,
        metavar="FOLDER",
        help="Time the engines of a folder that --prepare has written, on the GPU they are for.",
    ),
    click.option(
        "--gpu",
        metavar="GPU",
        help=f"GPU of --modelled, by default {DEFAULT_GPU}, or of --prepare, by default "
        f"{DEFAULT_TARGET}; an unknown one lists all. Else: refuse to measure on another.",
    ),
    click.option(
        "--point",
        "points",
        multiple=True,
        metavar="BxS",
        help="Batch × sequence, e.g. 1x512, or 8x1 for decoding; may be repeated.",
    ),
    click.option("--plan", type=FILE, metavar="FILE", help="The plan.json that MicroMix follows."),
    backend_option,
    click.option(
        "--engine",
        "variants",
        multiple=True,
        metavar="NAME=FILE",
        help="A model to build and time beside the stock variants, e.g. MicroMix=out/model.onnx.",
    ),
    data_options,
    selection_options,
    click.option(
        "-o", "--output", type=FILE, metavar="FILE", help="Also write the results as JSON."
    ),
    click.option("--html", type=FILE, metavar="FILE", help="Also write a page with plots."),
    json_option,
    verbose_option,
)


@click.command("bench", short_help="Model or measure the speed of a model's variants.")
@click.argument("model", type=FILE, required=False)
@bench_options
@click.pass_context
def bench_command(
    context: click.Context, /, model: Path | None, as_json: bool, **values: Any
) -> int:
    """Compare the speed of FP16, FP8, MXFP8, NVFP4 and MicroMix variants of MODEL.

    With --modelled: limits of every linear layer from the GPU's published figures; no measurement.
    With --kernels: the plugin's kernels on MODEL's layers, or without MODEL on Llama-3.1-8B's.
    Else builds and times engines: stock FP16 and MXFP8, with --calib FP8, NVFP4 and
    MicroMix, and the models that --engine names. Exit code 4 if none could be timed.
    --prepare builds the same engines without their GPU and times nothing; --run FOLDER times them
    where the GPU is, and needs neither MODEL nor data.
    """
    from mmcompile.bench.points import DEFAULT_POINTS, parse_point
    from mmcompile.cli.console import print_json
    from mmcompile.pipeline.files import check_target

    mode = _mode(values)
    refuse_without_effect(context, WITHOUT_EFFECT.get(mode, ()), mode)
    if mode == "--run" and model is not None:
        raise click.UsageError("--run takes no MODEL: the folder holds its engines")
    if model is None and mode not in ("--run", "--kernels"):
        raise click.UsageError("Missing argument 'MODEL'")
    sources = [path for path in (model, values["plan"]) if path is not None]
    for target in (values["output"], values["html"]):
        if target is not None:
            check_target(target, sources)
    points = tuple(map(parse_point, values["points"])) or DEFAULT_POINTS
    if mode == "--run":
        result = _run(values, as_json)
    elif mode == "--kernels":
        result = _kernels(model, points if values["points"] else (), values, as_json)
    else:
        assert model is not None
        make = _modelled if mode == "--modelled" else _engines
        result = make(model, points, values, as_json)
    _write(result, values)
    if as_json:
        print_json(result)
    else:
        _print(result, values["verbose"])
    code = _exit_code(result)
    folder = values["prepare"] if code == ExitCode.OK else None
    for target in (folder, values["output"], values["html"]):
        if target is not None:
            click.echo(f"wrote {target}", err=as_json)
    return code


def _mode(values: dict[str, Any]) -> str:
    """Which of the options that say what to do is given; empty for none.

    Raises:
        click.UsageError: several are.
    """
    modes = [f"--{name}" for name in MODES if values[name]]
    if len(modes) > 1:
        raise click.UsageError(f"{' and '.join(modes)} exclude each other")
    return modes[0] if modes else ""


def _modelled(model: Path, points: Sequence[Any], values: dict[str, Any], quiet: bool) -> Any:
    del quiet
    from mmcompile.bench.model import modelled_bench
    from mmcompile.targets.names import parse_gpu

    gpu = parse_gpu(values["gpu"] or DEFAULT_GPU)
    return modelled_bench(model, gpu, points, values["plan"], taken(Selection, values))


def _kernels(model: Path | None, points: Sequence[Any], values: dict[str, Any], quiet: bool) -> Any:
    from mmcompile.bench.kernel_bench import kernel_bench

    rows = tuple(dict.fromkeys(point.rows for point in points))
    selection = taken(Selection, values)
    return kernel_bench(model, rows, values["gpu"], selection, make_progress(quiet))


def _engines(model: Path, points: Sequence[Any], values: dict[str, Any], quiet: bool) -> Any:
    from mmcompile.bench.engine_bench import engine_bench
    from mmcompile.bench.preparing import prepare_bench
    from mmcompile.bench.variants import EngineBenchOptions

    options = EngineBenchOptions(
        points=points,
        named=[_variant(text) for text in values["variants"]],
        data=make_data(values),
        selection=taken(Selection, values),
        plan=values["plan"],
        gpu=values["gpu"],
        backend=values["backend"],
    )
    if values["prepare"] is not None:
        return prepare_bench(model, options, values["prepare"], make_progress(quiet))
    return engine_bench(model, options, make_progress(quiet))


def _run(values: dict[str, Any], quiet: bool) -> Any:
    from mmcompile.bench.prepared import run_prepared

    return run_prepared(values["run"], make_progress(quiet))


def _variant(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        remedy = "write a name and an ONNX file, such as FP8=fp8.onnx"
        raise UsageError("variant-malformed", "--engine", f"'{text}' names no variant", remedy)
    return name, Path(path)


def _write(result: Any, values: dict[str, Any]) -> None:
    import msgspec

    from mmcompile.pipeline.files import write_text

    if values["output"] is not None:
        packed = msgspec.json.format(msgspec.json.encode(result), indent=1)
        write_text(values["output"], packed.decode() + "\n")
    if values["html"] is not None:
        from mmcompile.bench.page import bench_page
        from mmcompile.report.bench import render_bench

        write_text(values["html"], render_bench(bench_page(result)))


def _print(result: Any, verbose: bool) -> None:
    from mmcompile.bench.kernels import KernelBench
    from mmcompile.bench.modelled import ModelledBench
    from mmcompile.bench.prepared import PreparedBench
    from mmcompile.cli.bench_tables import (
        print_engines,
        print_kernels,
        print_modelled,
        print_prepared,
    )

    if isinstance(result, ModelledBench):
        print_modelled(result, verbose)
    elif isinstance(result, KernelBench):
        print_kernels(result, verbose)
    elif isinstance(result, PreparedBench):
        print_prepared(result)
    else:
        print_engines(result, verbose)


def _exit_code(result: Any) -> int:
    """Nothing that could be measured, or built for it, is a problem of the environment."""
    from mmcompile.bench.kernels import KernelBench
    from mmcompile.bench.prepared import PreparedBench
    from mmcompile.bench.results import EngineBench

    timed = True
    if isinstance(result, EngineBench):
        timed = any(point.seconds for each in result.variants for point in each.points)
    elif isinstance(result, KernelBench):
        timed = any(timing.seconds for timing in result.timings)
    elif isinstance(result, PreparedBench):
        timed = any(variant.engine for variant in result.variants)
    return ExitCode.OK if timed else ExitCode.ENVIRONMENT
