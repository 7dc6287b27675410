"""`mmcompile analyze`: how a model's accuracy depends on formats, data and inputs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mmcompile.cli.config import config_option
from mmcompile.cli.generated import FILE, options, taken
from mmcompile.cli.help import SectionedCommand
from mmcompile.cli.options import (
    comparison_options,
    data_options,
    gpu_option,
    json_option,
    make_data,
    make_policy,
    make_progress,
    policy_options,
    selection_options,
    verbose_option,
    verify_data_option,
)
from mmcompile.errors import UsageError
from mmcompile.model.selection import Selection
from mmcompile.options import option_fields
from mmcompile.pipeline.options import CompileOptions
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy

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
    verify_data_option,
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
@gpu_option
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

    policy = make_policy(values)
    for name in ("target_speed", "target_bits", "max_error"):
        if values[name] is not None and not hasattr(policy, name):
            option = f"--{name.replace('_', '-')}"
            reason = f"it has no effect on --policy {policy.name}"
            remedy = f"use --policy {CostPolicy.NAME}"
            raise UsageError("option-without-effect", option, reason, remedy)
    work = taken(CompileOptions, {key: values[key] for key in ("gpu", "weights", "effort")})
    asked = AnalyzeOptions(
        gpu=work.gpu,
        output=values["output"],
        data=make_data(values),
        policy=policy,
        cost=_known(taken(CostPolicy, values)),
        micromix=_known(taken(MicroMixPolicy, values)),
        effort=work.effort,
        weights=work.weights,
        selection=taken(Selection, values),
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
    result = analyze_model(model, asked, make_progress(as_json))
    if as_json:
        print_json(result.analysis)
    else:
        print_analysis(result.analysis, verbose)
    for file in result.files:
        click.echo(f"wrote {file}", err=as_json)


def _known(policy: Any) -> dict[str, Any]:
    """A policy's options by name."""
    return {field.name: getattr(policy, field.name) for field in option_fields(type(policy))}


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
