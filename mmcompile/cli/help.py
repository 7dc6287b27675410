"""Help texts: what a user who types `mmcompile --help` first has to see.

The top level shows the commands and, since compiling needs no command's name, the options of
`compile`. Options stand in sections.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from mmcompile.options import destination_of, option_fields
from mmcompile.policy.registry import POLICIES, options_of

SECTIONS = {
    "Target and output": ("gpu", "output", "dry_run", "html", "as_json", "verbose", "config"),
    "Inputs": ("calib", "verify_data", "tokenizer", "max_length", "chunk", "samples", "seed"),
    "Statistics": ("stats", "save_stats"),
    "Precision": (
        "policy",
        "objective",
        "target_speed",
        "target_bits",
        "max_error",
        "classes",
        "thresholds",
        "lambda",
        "granularity",
        "order",
        "scale_rule",
        "weight_scales",
        "weights",
        "effort",
        "plan",
    ),
    "Layers": ("include", "exclude", "quantize_heads", "rest"),
    "Engine": (
        "backend",
        "engine",
        "shapes",
        "optimization_level",
        "workspace",
        "embed_plugin",
        "weight_streaming",
        "allow_fallback",
        "triton",
    ),
    "Analysis": ("sections", "budgets", "other_calib", "stress_data", "measured_layers"),
    "Verification": ("verify", "verify_samples", "fail_below", "layers", "nodes", "logits"),
}
"""The options' Python names by section, in the order in which help shows them."""

DEFAULT = "compile"


def sections() -> dict[str, tuple[str, ...]]:
    """`SECTIONS`, with the options of other packages' policies under Precision."""
    known = {name for names in SECTIONS.values() for name in names}
    kinds = dict.fromkeys(options_of(kind) for kind in POLICIES.values())
    fields = (destination_of(field) for kind in kinds for field in option_fields(kind))
    added = tuple(dict.fromkeys(name for name in fields if name not in known))
    return SECTIONS | {"Precision": SECTIONS["Precision"] + added}


class SectionedCommand(click.Command):
    """A command whose help shows its options in `SECTIONS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections, then the options that stand in none."""
        write_sections(self, ctx, formatter)
        sectioned = {name for names in sections().values() for name in names}
        others = [p for p in self.get_params(ctx) if p.name not in sectioned]
        _write("Others", others, ctx, formatter)


class DefaultGroup(click.Group):
    """A group in which `mmcompile model.onnx …` means `mmcompile compile model.onnx …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `compile` in front of what starts with a file or an option, not with a word."""
        args = args or ["--help"]
        first = args[0]
        own = {option for p in self.get_params(ctx) for option in p.opts}
        if first not in (*own, *self.commands) and not (
            first.isidentifier() and not Path(first).exists()
        ):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the two ways of calling."""
        formatter.write_usage(ctx.command_path, "MODEL.onnx --gpu GPU --calib DATA [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands, each with its whole line, and the options of `compile`."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(999)) for name, command in self.commands.items()]
            )
        command = self.commands[DEFAULT]
        write_sections(command, click.Context(command, ctx, DEFAULT), formatter)
        _write("Others", self.get_params(ctx), ctx, formatter)


def write_sections(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    """Writes the options of a command that stand in `SECTIONS`."""
    parameters = {parameter.name: parameter for parameter in command.get_params(ctx)}
    for title, names in sections().items():
        _write(title, [parameters[n] for n in names if n in parameters], ctx, formatter)


def _write(
    title: str,
    parameters: Iterable[click.Parameter],
    ctx: click.Context,
    formatter: click.HelpFormatter,
) -> None:
    options = [p for p in parameters if isinstance(p, click.Option)]
    records = [record for p in options if (record := p.get_help_record(ctx)) is not None]
    if records:
        with formatter.section(title):
            formatter.write_dl(records)
