"""Command-line options that several commands share, and how they become option objects."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mmcompile.errors import UsageError

if TYPE_CHECKING:
    from mmcompile.calib.policy import Policy
    from mmcompile.passes.find_linears import Selection
    from mmcompile.pipeline.options import DataOptions, VerifyOptions

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)

POLICIES = ("micromix", "mxfp4", "nvfp4", "mxfp6", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8")


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order in which help shows them."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


data_options = options(
    click.option(
        "--calib",
        metavar="DATA",
        help="Calibration inputs: .npz, .npy, polygraphy .json, a folder of these, "
        "script.py[:function], a text file with --tokenizer, or 'random' (unfit for use).",
    ),
    click.option("--tokenizer", type=FILE, help="tokenizer.json, for text."),
    click.option(
        "--samples", type=click.IntRange(min=1), default=128, show_default=True,
        help="Samples to read at most.",
    ),
    click.option(
        "--max-length", type=click.IntRange(min=1), default=512, show_default=True,
        help="Tokens per text sample at most.",
    ),
    click.option("--chunk", is_flag=True, help="Cut running text into samples of --max-length."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of random choices."),
)

policy_options = options(
    click.option(
        "--policy", type=click.Choice(POLICIES), default="micromix", show_default=True,
        help="How precision is assigned: MicroMix's split, or one format for all channels.",
    ),
    click.option(
        "--thresholds", type=click.Choice(["paper", "code"]), default="code", show_default=True,
        help="MicroMix's threshold setting: as in the paper, or as in its authors' code.",
    ),
    click.option(
        "--lambda", "factor", type=float, default=1.0, show_default=True,
        help="Factor on MicroMix's thresholds; larger gives fewer bits.",
    ),
    click.option(
        "--granularity", type=click.Choice(["32", "64", "128"]), default="128",
        show_default=True, help="Channels that a segment is a multiple of.",
    ),
    click.option(
        "--order", type=click.Choice(["sorted", "reversed", "random", "natural"]), default=None,
        help="Channel order; by default sorted for micromix, natural for one format.",
    ),
    click.option(
        "--scale-rule", type=click.Choice(["balanced", "ocp", "saturation_free"]),
        default="balanced", show_default=True, help="Rule of the block exponents (docs/spec.md).",
    ),
)

selection_options = options(
    click.option(
        "--include", multiple=True, metavar="PATTERN",
        help="Take only linears whose node or weight name matches; may be repeated.",
    ),
    click.option(
        "--exclude", multiple=True, metavar="PATTERN",
        help="Leave linears alone whose node or weight name matches; may be repeated.",
    ),
    click.option("--quantize-heads", is_flag=True, help="Also take layers that give an output."),
)

verify_options = options(
    click.option("--layers", is_flag=True, help="Also compare every layer within the models."),
    click.option(
        "--nodes", is_flag=True, help="Also hold every compiled node against the specification."
    ),
    click.option(
        "--fail-below", type=click.FloatRange(-1, 1), metavar="COSINE",
        help="Exit with code 5 if an output's mean cosine similarity is lower.",
    ),
    click.option(
        "--verify-samples", type=click.IntRange(min=1), default=8, show_default=True,
        help="Held-back samples to compare at most.",
    ),
    click.option("--logits", multiple=True, metavar="OUTPUT", help="An output that is logits."),
)


def config_option(command: Command) -> Command:
    """`--config`: defaults for a command's options from a TOML file."""
    return click.option(
        "--config", type=FILE, is_eager=True, expose_value=False, callback=_read_config,
        help="TOML file with defaults for these options, by their long names.",
    )(command)


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    del parameter
    if path is None:
        return
    remedy = "give a TOML file with option names as keys, e.g. policy = \"mxfp8\""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError("config-unreadable", path, reason, remedy) from error
    names = {
        option.removeprefix("--"): parameter.name
        for parameter in context.command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    }
    defaults = {}
    for key, value in settings.items():
        name = names.get(key.replace("_", "-"))
        if name is None:
            known = ", ".join(sorted(names))
            raise UsageError("config-unknown-key", path, f"no option '{key}'", f"use {known}")
        if isinstance(value, dict):
            raise UsageError("config-unreadable", path, f"'{key}' is a table", remedy)
        defaults[name] = value if isinstance(value, list | bool) else str(value)
    context.default_map = {**(context.default_map or {}), **defaults}


def make_policy(values: dict[str, Any]) -> Policy:
    """The policy that the options ask for."""
    from mmcompile.calib.order import Order
    from mmcompile.calib.policy import Policy
    from mmcompile.calib.split import Thresholds

    return Policy(
        name=values["policy"],
        thresholds=Thresholds(values["thresholds"]),
        factor=values["factor"],
        granularity=int(values["granularity"]),
        order=Order(values["order"]) if values["order"] else None,
        scale_rule=values["scale_rule"],
    )


def make_selection(values: dict[str, Any]) -> Selection:
    """The selection that the options ask for."""
    from mmcompile.passes.find_linears import Selection

    return Selection(
        tuple(values["include"]), tuple(values["exclude"]), values["quantize_heads"]
    )


def make_data(values: dict[str, Any]) -> DataOptions:
    """The data that the options name."""
    from mmcompile.pipeline.options import DataOptions

    return DataOptions(
        calibration=values.get("calib"),
        verification=values.get("verify_data"),
        tokenizer=values["tokenizer"],
        samples=values["samples"],
        max_length=values["max_length"],
        chunk=values["chunk"],
        seed=values["seed"],
    )


def make_verify(values: dict[str, Any]) -> VerifyOptions:
    """How the options want the result verified."""
    from mmcompile.pipeline.options import VerifyOptions

    return VerifyOptions(
        enabled=values.get("verify", True),
        samples=values["verify_samples"],
        layers=values["layers"],
        nodes=values["nodes"],
        fail_below=values["fail_below"],
        logits=tuple(values["logits"]),
    )
