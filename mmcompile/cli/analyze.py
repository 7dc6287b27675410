"""`mmcompile analyze`: how a model's accuracy depends on formats, data and inputs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mmcompile.cli.config import config_option
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import (
    FILE,
    comparison_options,
    data_options,
    json_option,
    make_data,
    make_policy,
    make_selection,
    options,
    policy_options,
    selection_options,
    verbose_option,
)
from mmcompile.errors import UsageError

ALL_SECTIONS = "pareto,stability,stress,layers"

analysis_options = options(
    click.option(
        "--sections",
        metavar="NAMES",
        default=ALL_SECTIONS,
        show_default=True,
        help="What to analyse: error against cost, other calibration data, stress inputs, layers.",
    ),
    click.option(
        "--budgets",
        metavar="X,X,…",
        help="Budgets of the policy cost to compare: tensor-core cost, or bits for the objectives "
        "decode and memory. Default: six from all FP4 to MXFP8.",
    ),
    click.option(
        "--other-calib",
        multiple=True,
        metavar="DATA",
        help="Other calibration inputs to plan from, like --calib; may be repeated.",
    ),
    click.option(
        "--stress-data",
        multiple=True,
        metavar="DATA",
        help="Inputs of another domain to measure on, like --calib; may be repeated.",
    ),
    click.option(
        "--layers",
        "measured_layers",
        type=click.IntRange(min=0),
        metavar="N",
        default=32,
        show_default=True,
        help="Layers that are compiled alone and measured at most, the most damaging first.",
    ),
    click.option(
        "--verify-data",
        metavar="DATA",
        help="Inputs to measure on, like --calib; by default every fifth sample of --calib.",
    ),
    comparison_options,
)


@click.command(
    "analyze",
    cls=SectionedCommand,
    context_settings={"default_map": {"weights": "nearest"}},
    short_help="Show how a model's accuracy depends on formats, data and inputs.",
)
@click.argument("model", type=FILE)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FOLDER",
    default=Path("analysis"),
    show_default=True,
    help="Folder of analysis.json and analysis.html.",
)
@data_options
@analysis_options
@policy_options
@selection_options
@click.option("--html/--no-html", default=True, help="Write analysis.html, too.")
@config_option
@json_option
@verbose_option
def analyze_command(model: Path, as_json: bool, verbose: bool, **values: Any) -> None:
    """Show how the accuracy of MODEL depends on what its engineer may choose.

    Trial models are packed and run in ONNX Runtime beside the original, on inputs that calibration
    did not see. The policy's options say which plan is the chosen one; nothing is compiled.
    Weights of all plans are rounded to nearest unless --weights gptq asks for error feedback,
    which takes much longer.
    """
    from mmcompile.analysis.options import AnalyzeOptions
    from mmcompile.analysis.run import analyze_model
    from mmcompile.cli.analysis_tables import print_analysis
    from mmcompile.cli.console import print_json
    from mmcompile.effort import Effort, Weights
    from mmcompile.progress import Silent, Terminal

    asked = AnalyzeOptions(
        output=values["output"],
        data=make_data(values),
        policy=make_policy(values),
        effort=Effort(values["effort"]),
        weights=Weights(values["weights"]) if values["weights"] else None,
        selection=make_selection(values),
        sections=_names(values["sections"]),
        budgets=_budgets(values["budgets"]),
        other_calibration=values["other_calib"],
        stress_data=values["stress_data"],
        samples=values["verify_samples"],
        layers=values["measured_layers"],
        logits=values["logits"],
        html=values["html"],
        command=shlex.join(["mmcompile", *sys.argv[1:]]),
    )
    quiet = as_json or not sys.stderr.isatty()
    result = analyze_model(model, asked, Silent() if quiet else Terminal())
    if as_json:
        print_json(result.analysis)
    else:
        print_analysis(result.analysis, verbose)
    for file in result.files:
        click.echo(f"wrote {file}", err=as_json)


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _budgets(text: str | None) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        UsageError: one is no number.
    """
    found = []
    for part in (text or "").split(",") if text is not None else ():
        try:
            found.append(float(part))
        except ValueError:
            remedy = "give numbers with commas, such as 1,1.25,1.5,2"
            reason = f"'{part.strip()}' is no number"
            raise UsageError("bad-budget", "--budgets", reason, remedy) from None
    return tuple(found)
