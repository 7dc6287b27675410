"""The commands, each a thin layer over the pipeline."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mmcompile import __version__
from mmcompile.cli.analyze import analyze_command
from mmcompile.cli.bench import bench_command
from mmcompile.cli.config import config_option
from mmcompile.cli.help import DefaultGroup, SectionedCommand
from mmcompile.cli.options import (
    FILE,
    data_options,
    engine_options,
    json_option,
    make_build,
    make_data,
    make_policy,
    make_selection,
    make_verify,
    policy_options,
    refuse_beside_plan,
    refuse_of_other_policies,
    selection_options,
    text_options,
    verbose_option,
    verify_options,
)


@click.group(
    cls=DefaultGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="mmcompile %(version)s")
def cli() -> None:
    """Compiles the linear layers of an ONNX model to mixed NVFP4, MXFP4, MXFP6 and MXFP8.

    The result is an ONNX model with the same inputs and outputs, its plan and a report. It runs in
    ONNX Runtime as it is. `mmcompile COMMAND --help` tells more about a command.
    """


cli.command_class = SectionedCommand


@cli.command("compile", short_help="Compile MODEL.onnx; the word 'compile' may be left out.")
@click.argument("model", type=FILE)
@click.option(
    "--gpu",
    metavar="GPU",
    default="sm_120",
    show_default=True,
    help="Target, e.g. sm_120 or rtx5090; an unknown one lists all.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FOLDER",
    default=Path("out"),
    show_default=True,
    help="Folder of the results.",
)
@data_options
@click.option(
    "--verify-data",
    metavar="DATA",
    help="Inputs for verification, like --calib; by default every fifth sample of --calib.",
)
@policy_options
@click.option(
    "--plan", type=FILE, metavar="FILE", help="A plan.json to use instead of calibrating."
)
@selection_options
@click.option("--verify/--no-verify", default=True, help="Compare the result with the original.")
@verify_options
@click.option(
    "--engine/--no-engine",
    default=None,
    help="Fail where no engine can be built, or build none; by default one is built where "
    "TensorRT and the GPU are present.",
)
@engine_options
@click.option("--html/--no-html", default=True, help="Write report.html, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, with sizes; write nothing.")
@config_option
@json_option
@verbose_option
@click.pass_context
def compile_command(
    context: click.Context, /, model: Path, as_json: bool, verbose: bool, **values: Any
) -> None:
    """Compile MODEL: calibrate, split, rewrite, pack, verify and report.

    The word 'compile' may be left out. Without --calib and --plan, only the policies of one MX
    format (mxfp4, mxfp6, mxfp8) can be compiled, and --dry-run gives sizes for each format.
    """
    from mmcompile.calib.effort import Effort, Weights
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import print_forecast, print_outcome, print_report
    from mmcompile.pipeline.compile import compile_model
    from mmcompile.pipeline.forecast import forecast
    from mmcompile.pipeline.options import CompileOptions
    from mmcompile.pipeline.uncalibrated import decides_without_data

    if values["plan"] is not None:
        refuse_beside_plan(context)
    refuse_of_other_policies(context)
    options = CompileOptions(
        gpu=values["gpu"],
        output=values["output"],
        data=make_data(values),
        policy=make_policy(values),
        plan=values["plan"],
        effort=Effort(values["effort"]),
        weights=None if values["weights"] is None else Weights(values["weights"]),
        selection=make_selection(values),
        verify=make_verify(values),
        build=make_build(values),
        html=values["html"],
        dry_run=values["dry_run"],
        command=shlex.join(["mmcompile", *sys.argv[1:]]),
    )
    blind = options.plan is None and options.data.calibration is None
    if options.dry_run and blind and not decides_without_data(options.policy):
        expected = forecast(model, options)
        print_json(expected) if as_json else print_forecast(expected, verbose)
        return
    result = compile_model(model, options, _progress(as_json))
    if as_json:
        print_json(result.report)
    else:
        print_report(result.report, verbose)
        print_outcome(result, options)


@cli.command("build", short_help="Build the engine of an output folder, where TensorRT is.")
@click.argument("folder", type=FILE)
@engine_options
def build_command(folder: Path, **values: Any) -> None:
    """Build the engine of FOLDER, which mmcompile wrote, on a machine with TensorRT and the GPU.

    Options that are given win over those of the compilation. An earlier engine stays until the
    new one is complete.
    """
    from mmcompile.pipeline.delivery import build_bundle

    built, files = build_bundle(folder, make_build(values))
    click.echo(f"engine for {built.device.name}, TensorRT {built.tensorrt}")
    for file in files:
        click.echo(f"wrote {file}")


@cli.command("export", short_help="Export a PyTorch model to ONNX.")
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    default=Path("model.onnx"),
    show_default=True,
    help="The .onnx file, or a folder for model.onnx.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Type of weights and activations.",
)
@click.option(
    "--opset", type=int, metavar="N", default=20, show_default=True, help="ONNX opset, 18 to 20."
)
@click.option(
    "--task",
    metavar="TASK",
    help="Task of a Hugging Face model; by default what its config says.",
)
def export_command(source: str, output: Path, dtype: Any, opset: int, task: str | None) -> None:
    """Export SOURCE to ONNX: a local Hugging Face folder, or script.py:factory.

    The factory returns a module, its example inputs and their dynamic shapes.
    """
    from mmcompile.export import export_model

    say = _say if sys.stderr.isatty() else None
    written = export_model(source, output, dtype=dtype, opset=opset, task=task, progress=say)
    click.echo(f"wrote {written}")


@cli.command("inspect", short_help="List a model's linear layers, and why others are none.")
@click.argument("model", type=FILE)
@selection_options
@json_option
@verbose_option
def inspect_command(model: Path, as_json: bool, verbose: bool, **values: Any) -> None:
    """List MODEL's linear layers and, for all other candidates, why they are none."""
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import inspection, print_inspection
    from mmcompile.pipeline.prepare import prepare

    prepared = prepare(model, make_selection(values))
    if as_json:
        print_json(inspection(prepared))
    else:
        print_inspection(prepared, verbose)


@cli.command("calibrate", short_help="Write the plan of a model, without compiling.")
@click.argument("model", type=FILE)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    default=Path("plan.json"),
    show_default=True,
    help="The plan to write.",
)
@data_options
@click.option(
    "--stats",
    type=FILE,
    metavar="FILE",
    multiple=True,
    help="Statistics of an earlier --save-stats instead of data; several are merged.",
)
@click.option(
    "--save-stats", type=FILE, metavar="FILE", help="Also write the statistics, for merging."
)
@policy_options
@selection_options
@config_option
@click.pass_context
def calibrate_command(
    context: click.Context,
    /,
    model: Path,
    output: Path,
    stats: tuple[Path, ...],
    save_stats: Path | None,
    **values: Any,
) -> None:
    """Calibrate MODEL and write its plan, without compiling.

    Parts of the data can be calibrated apart with --save-stats and merged with --stats, but not
    for the policy cost, which needs the data itself. A plan does not depend on how weights are
    rounded: --weights says what --max-error is measured with.
    """
    from mmcompile.calib.effort import Effort, Weights
    from mmcompile.pipeline.planning import make_plan_file

    refuse_of_other_policies(context)
    summary = make_plan_file(
        model,
        output,
        data=make_data(values),
        policy=make_policy(values),
        effort=Effort(values["effort"]),
        weights=None if values["weights"] is None else Weights(values["weights"]),
        selection=make_selection(values),
        shards=stats,
        save_stats=save_stats,
        progress=_progress(quiet=False),
    )
    click.echo(summary)


@cli.command("diff", short_help="Compare two plans; exit code 1 if they differ.")
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
def diff_command(old: Path, new: Path) -> int:
    """Show what differs between two plans; exit code 1 if anything does."""
    from mmcompile.plan import diff_plans, load_plan

    lines = diff_plans(load_plan(old), load_plan(new))
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo("the plans decide alike")
    return 1 if lines else 0


@cli.command("verify", short_help="Compare a compiled model with its original.")
@click.argument("original", type=FILE)
@click.argument("compiled", type=FILE)
@click.option(
    "--data", "verify_data", metavar="DATA", required=True, help="Inputs, like compile's --calib."
)
@click.option(
    "--against",
    type=FILE,
    metavar="ENGINE",
    help="Also run this engine.plan on the GPU and compare it with both models.",
)
@text_options
@verify_options
@json_option
def verify_command(
    original: Path, compiled: Path, against: Path | None, as_json: bool, **values: Any
) -> int:
    """Compare COMPILED with ORIGINAL in ONNX Runtime; exit code 5 if --fail-below is missed.

    With --against, an engine is compared with both, on the GPU that it was built for; --layers
    then builds a second engine that gives out every layer.
    """
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import print_verification
    from mmcompile.errors import ExitCode
    from mmcompile.pipeline.verification import verify_files

    data = make_data({**values, "samples": values["verify_samples"]})
    options, progress = make_verify(values), _progress(as_json)
    if against is None:
        reports = [verify_files(original, compiled, data, options, progress)]
    else:
        from mmcompile.pipeline.against import verify_engine

        reports = list(verify_engine(original, compiled, against, data, options, progress))
    if as_json:
        print_json(reports[0] if against is None else reports)
    else:
        for report in reports:
            print_verification(report)
    passed = all(report.passed for report in reports)
    return ExitCode.OK if passed else ExitCode.VERIFICATION_FAILED


@cli.command("report", short_help="Show the report of an output folder.")
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


cli.add_command(analyze_command)
cli.add_command(bench_command)


@cli.command("doctor", short_help="Say what this machine has, lacks, and what that costs.")
@click.option(
    "--selftest",
    is_flag=True,
    help="Run every kernel against the CPU tables: on the GPU, else in the emulator.",
)
@click.option("--quick", is_flag=True, help="With --selftest: leave out the rates.")
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="With --selftest: write the results as JSON, to send in.",
)
@json_option
def doctor_command(selftest: bool, quick: bool, output: Path | None, as_json: bool) -> int:
    """Say what this machine has and lacks, what that costs and what to do about it.

    The exit code is 4 if something is missing that nothing works without. With --selftest it is 5
    if a kernel disagrees with the CPU tables, 4 if nothing could be run.
    """
    from mmcompile.cli.console import print_json
    from mmcompile.cli.diagnosis import print_findings
    from mmcompile.doctor.environment import examine
    from mmcompile.errors import ExitCode

    if selftest:
        return _self_test(as_json, output, quick)
    if output is not None or quick:
        option = "--output" if output is not None else "--quick"
        raise click.UsageError(f"{option} needs --selftest")
    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print_findings(findings)
    complete = all(finding.present or not finding.required for finding in findings)
    return ExitCode.OK if complete else ExitCode.ENVIRONMENT


def _self_test(as_json: bool, output: Path | None, quick: bool) -> int:
    import msgspec

    from mmcompile.cli.console import print_json
    from mmcompile.cli.selftest import print_self_test
    from mmcompile.doctor.selftest import self_test
    from mmcompile.errors import ExitCode
    from mmcompile.pipeline.files import check_target, write_text

    if output is not None:
        check_target(output)
    result = self_test(_progress(as_json), quick=quick)
    if output is not None:
        packed = msgspec.json.format(msgspec.json.encode(result), indent=1)
        write_text(output, packed.decode() + "\n")
    if as_json:
        print_json(result)
    else:
        print_self_test(result)
    if output is not None:
        click.echo(f"wrote {output}", err=as_json)
    if result.passed:
        return ExitCode.OK
    ran = any(part.checks for part in result.parts)
    return ExitCode.VERIFICATION_FAILED if ran else ExitCode.ENVIRONMENT


def _progress(quiet: bool) -> Any:
    from mmcompile.progress import Silent, Terminal

    return Silent() if quiet or not sys.stderr.isatty() else Terminal()


def _say(line: str) -> None:
    click.echo(line, err=True)
