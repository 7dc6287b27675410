"""`mmcompile compile`: the whole way from a model to a verified, packed one."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mmcompile.cli.config import config_option
from mmcompile.cli.generated import FILE, options_from, taken
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import (
    data_options,
    engine_options,
    gpu_option,
    json_option,
    make_build,
    make_data,
    make_policy,
    make_progress,
    make_verify,
    policy_options,
    refuse_beside_plan,
    refuse_of_other_policies,
    selection_options,
    verbose_option,
    verify_data_option,
    verify_options,
)
from mmcompile.model.selection import Selection
from mmcompile.pipeline.options import CompileOptions
from mmcompile.policy.protocol import Needs


@click.command(
    "compile",
    cls=SectionedCommand,
    short_help="Compile MODEL.onnx; the word 'compile' may be left out.",
)
@click.argument("model", type=FILE)
@gpu_option
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
@verify_data_option
@policy_options
@options_from(CompileOptions, only=("plan",))
@selection_options
@options_from(CompileOptions, only=("rest",))
@click.option("--verify/--no-verify", default=True, help="Compare the result with the original.")
@verify_options
@click.option(
    "--engine/--no-engine",
    default=None,
    help="Fail where no engine can be built, or build none at all.",
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
    from mmcompile.cli.console import print_json
    from mmcompile.cli.tables import print_forecast, print_outcome, print_report
    from mmcompile.pipeline.compile import compile_model
    from mmcompile.pipeline.forecast import forecast

    if values["plan"] is not None:
        refuse_beside_plan(context)
    refuse_of_other_policies(context)
    options = dataclasses.replace(
        taken(CompileOptions, values),
        data=make_data(values),
        policy=make_policy(values),
        selection=taken(Selection, values),
        verify=make_verify(values),
        build=make_build(values),
        html=values["html"],
        dry_run=values["dry_run"],
        command=shlex.join(["mmcompile", *sys.argv[1:]]),
    )
    blind = options.plan is None and options.data.calibration is None
    if options.dry_run and blind and options.policy.needs is not Needs.NOTHING:
        expected = forecast(model, options)
        print_json(expected) if as_json else print_forecast(expected, verbose)
        return
    result = compile_model(model, options, make_progress(as_json))
    if as_json:
        print_json(result.report)
    else:
        print_report(result.report, verbose)
        print_outcome(result, options)
