"""The commands, each a thin layer over the pipeline."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mmcompile import __version__
from mmcompile.cli.options import (
    FILE,
    config_option,
    data_options,
    make_data,
    make_policy,
    make_selection,
    make_verify,
    policy_options,
    selection_options,
    verify_options,
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="List every layer and node.")


class DefaultGroup(click.Group):
    """A group in which `mmcompile model.onnx …` means `mmcompile compile model.onnx …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `compile` in front of arguments that start with no command."""
        own = ("--help", "-h", "--version")
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["compile", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=DefaultGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, message="mmcompile %(version)s")
def cli() -> None:
    """Compile transformer models to mixed MXFP4/MXFP6/MXFP8 linear layers.

    \b
    mmcompile MODEL.onnx --gpu sm_120 --calib DATA     compile a model
    mmcompile COMMAND --help                           options of a command
    """


@cli.command("compile")
@click.argument("model", type=FILE)
@click.option("--gpu", default="sm_120", show_default=True, help="Target GPU, e.g. sm_120, rtx5090.")
@click.option("-o", "--output", type=FILE, default=Path("out"), show_default=True, help="Folder.")
@data_options
@click.option("--verify-data", metavar="DATA", help="Inputs for verification, like --calib.")
@policy_options
@click.option("--plan", type=FILE, help="A plan.json to use instead of calibrating.")
@selection_options
@click.option("--verify/--no-verify", default=True, help="Compare the result with the original.")
@verify_options
@click.option("--html/--no-html", default=True, help="Write report.html, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and the sizes; write nothing.")
@config_option
@json_option
@verbose_option
def compile_command(model: Path, as_json: bool, verbose: bool, **values: Any) -> None:
    """Compile MODEL: calibrate, split, rewrite, pack, verify and report."""
    from mmcompile.pipeline.compile import compile_model
    from mmcompile.pipeline.options import CompileOptions

    options = CompileOptions(
        gpu=values["gpu"],
        output=values["output"],
        data=make_data(values),
        policy=make_policy(values),
        plan=values["plan"],
        selection=make_selection(values),
        verify=make_verify(values),
        html=values["html"],
        dry_run=values["dry_run"],
        command=shlex.join(["mmcompile", *sys.argv[1:]]),
    )
    result = compile_model(model, options, _progress(as_json))
    _show_report(result.report, as_json, verbose)
    if not as_json:
        for file in result.files:
            click.echo(f"wrote {file}")
        if values["dry_run"]:
            click.echo("dry run: nothing was written")


@cli.command("export")
@click.argument("source")
@click.option("-o", "--output", type=FILE, default=Path("model.onnx"), show_default=True)
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32")
@click.option("--opset", type=int, default=20, show_default=True)
@click.option("--task", help="Task of a Hugging Face model; by default what its config says.")
def export_command(source: str, output: Path, dtype: Any, opset: int, task: str | None) -> None:
    """Export SOURCE, a Hugging Face folder or script.py:factory, to ONNX."""
    from mmcompile.export import export_model

    written = export_model(
        source, output, dtype=dtype, opset=opset, task=task, progress=_say
    )
    click.echo(f"wrote {written}")


@cli.command("inspect")
@click.argument("model", type=FILE)
@selection_options
@json_option
def inspect_command(model: Path, as_json: bool, **values: Any) -> None:
    """List MODEL's linear layers and, for all others, why they are none."""
    from mmcompile.cli.tables import inspection_json, print_inspection
    from mmcompile.pipeline.prepare import prepare

    prepared = prepare(model, make_selection(values))
    if as_json:
        click.echo(inspection_json(prepared))
    else:
        print_inspection(prepared)


@cli.command("calibrate")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, default=Path("plan.json"), show_default=True)
@data_options
@click.option(
    "--stats", type=FILE, multiple=True,
    help="Statistics of an earlier --save-stats instead of data; several are merged.",
)
@click.option("--save-stats", type=FILE, help="Also write the statistics, for merging.")
@policy_options
@selection_options
@config_option
def calibrate_command(
    model: Path, output: Path, stats: tuple[Path, ...], save_stats: Path | None, **values: Any
) -> None:
    """Calibrate MODEL and write its plan, without compiling."""
    from mmcompile.pipeline.planning import make_plan_file

    summary = make_plan_file(
        model,
        output,
        make_data(values),
        make_policy(values),
        make_selection(values),
        stats,
        save_stats,
        _progress(quiet=False),
    )
    click.echo(summary)


@cli.command("diff")
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


@cli.command("verify")
@click.argument("original", type=FILE)
@click.argument("compiled", type=FILE)
@click.option("--data", "verify_data", metavar="DATA", required=True, help="Inputs, like --calib.")
@click.option("--tokenizer", type=FILE, help="tokenizer.json, for text.")
@click.option("--max-length", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--chunk", is_flag=True, help="Cut running text into samples of --max-length.")
@click.option("--seed", type=int, default=0, show_default=True)
@verify_options
@json_option
def verify_command(original: Path, compiled: Path, as_json: bool, **values: Any) -> int:
    """Compare COMPILED with ORIGINAL in ONNX Runtime."""
    import msgspec

    from mmcompile.cli.tables import print_verification
    from mmcompile.errors import ExitCode
    from mmcompile.pipeline.verification import verify_files

    data = make_data({**values, "samples": values["verify_samples"]})
    report = verify_files(original, compiled, data, make_verify(values), _progress(as_json))
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        print_verification(report)
    return ExitCode.OK if report.passed else ExitCode.VERIFICATION_FAILED


@cli.command("report")
@click.argument("source", type=FILE)
@click.option("--html", type=FILE, help="Write the page to this file.")
@json_option
@verbose_option
def report_command(source: Path, html: Path | None, as_json: bool, verbose: bool) -> None:
    """Show the report of an output folder or a report.json."""
    from mmcompile.output import disk_errors
    from mmcompile.report.html import render_html
    from mmcompile.report.model import load_report

    report = load_report(source / "report.json" if source.is_dir() else source)
    _show_report(report, as_json, verbose)
    if html is not None:
        page = render_html(report)
        with disk_errors(html):
            partial = html.with_name(f"{html.name}.partial")
            partial.write_text(page, encoding="utf-8")
            partial.replace(html)
        click.echo(f"wrote {html}", err=as_json)


@cli.command("doctor")
@json_option
def doctor_command(as_json: bool) -> int:
    """Say what of the environment is here, what is missing and what it costs."""
    from mmcompile.cli.tables import print_findings
    from mmcompile.doctor import examine, findings_json

    findings = examine()
    if as_json:
        click.echo(findings_json(findings))
    else:
        print_findings(findings)
    return 0 if all(f.present or not f.required for f in findings) else 4


def _show_report(report: Any, as_json: bool, verbose: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report).decode())
        return
    from rich.console import Console

    from mmcompile.report.terminal import print_summary

    print_summary(report, Console(), verbose)


def _progress(quiet: bool) -> Any:
    from mmcompile.progress import Silent, Terminal

    return Silent() if quiet or not sys.stderr.isatty() else Terminal()


def _say(line: str) -> None:
    click.echo(line, err=True)
