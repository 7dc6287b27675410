"""`mmcompile calibrate`: the plan of a model, without compiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mmcompile.cli.config import config_option
from mmcompile.cli.generated import FILE, taken
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import (
    data_options,
    gpu_option,
    make_data,
    make_policy,
    make_progress,
    policy_options,
    refuse_of_other_policies,
    selection_options,
)
from mmcompile.model.selection import Selection
from mmcompile.pipeline.options import CompileOptions


@click.command(
    "calibrate", cls=SectionedCommand, short_help="Write the plan of a model, without compiling."
)
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
@gpu_option
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
    from mmcompile.pipeline.planning import PlanOptions, make_plan_file
    from mmcompile.pipeline.run import Settings
    from mmcompile.targets.names import parse_target

    refuse_of_other_policies(context)
    asked = taken(CompileOptions, values)
    options = PlanOptions(make_data(values), make_policy(values), asked.weights, stats, save_stats)
    selection, progress = taken(Selection, values), make_progress(quiet=False)
    settings = Settings(parse_target(asked.gpu), selection, asked.effort, progress)
    click.echo(make_plan_file(model, output, options, settings))
