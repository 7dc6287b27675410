"""Command-line options that several commands share, and how they become option objects."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from mmcompile.backends.engines.options import AUTO, BuildOptions
from mmcompile.backends.registry import NOTHING, backend_names
from mmcompile.cli.generated import options, options_from, taken
from mmcompile.cli.help import sections
from mmcompile.data.options import DataOptions
from mmcompile.errors import UsageError
from mmcompile.model.selection import Selection
from mmcompile.options import destination_of, option_fields
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.policy.protocol import Policy
from mmcompile.policy.registry import DEFAULT, POLICIES, options_of
from mmcompile.policy.uniform import UNIFORM
from mmcompile.progress import Progress, Silent, Terminal


class BackendName(click.ParamType):  # type: ignore[type-arg]  # plain in click 8.1
    """The name of a back end, of those that there are when somebody asks."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name.

        Raises:
            click.BadParameter: there is no such back end.
        """
        known = backend_names()
        if value not in known:
            self.fail(f"'{value}' is none of {', '.join(known)}.", param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin so."""
        del ctx, param
        return [CompletionItem(name) for name in backend_names() if name.startswith(incomplete)]


class BackendOption(click.Option):
    """The option; its help lists the back ends that there are."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        record = super().get_help_record(ctx)
        return record and (record[0], record[1].format(names=", ".join(backend_names())))


KINDS = tuple(dict.fromkeys(options_of(POLICIES[name]) for name in POLICIES))
"""The dataclasses that have the policies' options."""

text_options = options_from(DataOptions, only=("tokenizer", "max_length", "chunk", "seed"))
data_options = options_from(DataOptions, leave_out=("verification",))
verify_data_option = options_from(DataOptions, only=("verification",))
work_options = options_from(CompileOptions, only=("weights", "effort"))
policy_options = options(
    click.option(
        "--policy",
        type=click.Choice(list(POLICIES)),
        metavar="NAME",
        default=DEFAULT,
        show_default=True,
        help="cost chooses the formats that change the model's output least for a budget; "
        "micromix is the paper's: each layer's channels split into MXFP4, MXFP6 and MXFP8 by size; "
        f"{', '.join(UNIFORM)} give all channels one format.",
    ),
    options_from(*KINDS),
    work_options,
)
selection_options = options_from(Selection)
comparison_options = options_from(VerifyOptions, only=("samples", "logits"))
verify_options = options_from(VerifyOptions)
backend_option = click.option(
    "--backend",
    cls=BackendOption,
    type=BackendName(),
    metavar="NAME",
    default=AUTO,
    show_default=True,
    help=f"What builds the engine: {{names}}. {AUTO} takes the first that is installed and can "
    "build for the target, if any.",
)
engine_options = options(backend_option, options_from(BuildOptions))
gpu_option = options_from(CompileOptions, only=("gpu",))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="List every layer and node.")

ROUNDING = ("weights", "effort")
"""Options of section Precision that say how weights are rounded, which no plan holds."""


def refuse_beside_plan(context: click.Context) -> None:
    """Refuses options of the policy on the command line beside --plan, which they cannot change.

    How weights are rounded is not in a plan: that may be asked for where there is data for it.

    Raises:
        UsageError: there is one.
    """
    for name in sections()["Precision"]:
        if name != "plan" and name not in ROUNDING and _was_given(context, name):
            reason = "it has no effect beside --plan, which holds the decision already"
            remedy = "leave one of the two out"
            raise UsageError("option-beside-plan", _flag(context, name), reason, remedy)
    if _was_given(context, "effort") and context.params["calib"] is None:
        reason = "it has no effect beside --plan without data to round weights with"
        raise UsageError("option-without-effect", "--effort", reason, "add --calib")


def refuse_of_other_policies(context: click.Context) -> None:
    """Refuses options on the command line that the policy in force does not have.

    Raises:
        UsageError: there is one.
    """
    policy = context.params["policy"]
    own = destinations(options_of(POLICIES[policy]))
    for kind in KINDS:
        for name in destinations(kind):
            if name not in own and _was_given(context, name):
                owners = [p for p in POLICIES if name in destinations(options_of(POLICIES[p]))]
                reason = f"it has no effect on --policy {policy}"
                remedy = f"use --policy {' or '.join(owners)}"
                raise UsageError("option-without-effect", _flag(context, name), reason, remedy)


def destinations(kind: type) -> tuple[str, ...]:
    """Python names of the options that are made of a dataclass."""
    return tuple(destination_of(field) for field in option_fields(kind))


def refuse_without_effect(context: click.Context, names: Iterable[str], what: str) -> None:
    """Refuses options on the command line that change nothing.

    Args:
        context: of the command.
        names: their Python names; those that the command does not have do not matter.
        what: what they have no effect on.

    Raises:
        UsageError: there is one.
    """
    for name in names:
        if _was_given(context, name):
            reason = f"it has no effect on {what}"
            raise UsageError("option-without-effect", _flag(context, name), reason, "leave it out")


def _was_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, not in a file or by default."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _flag(context: click.Context, name: str) -> str:
    """An option as users write it, by its Python name."""
    return next(p.opts[0] for p in context.command.params if p.name == name)


def make_policy(values: dict[str, Any]) -> Policy:
    """The policy that the options ask for.

    Raises:
        UsageError: options contradict each other, or a value is impossible.
    """
    kind = POLICIES[values["policy"]]
    return taken(kind, values, options_of(kind))


def make_data(values: dict[str, Any], **changes: Any) -> DataOptions:
    """The data that the options name."""
    return dataclasses.replace(taken(DataOptions, values), **changes)


def make_verify(values: dict[str, Any]) -> VerifyOptions:
    """How the options want the result verified."""
    enabled = values.get("verify", True)
    return dataclasses.replace(taken(VerifyOptions, values), enabled=enabled)


def make_build(values: dict[str, Any]) -> BuildOptions:
    """How the options want the engine built.

    Raises:
        UsageError: a size is none, or --engine or --no-engine contradicts --backend.
    """
    backend, engine = values["backend"], values.get("engine")
    if engine is False:
        if backend not in (AUTO, NOTHING):
            raise _contradiction("--no-engine", backend)
        backend = NOTHING
    elif engine and backend == NOTHING:
        raise _contradiction("--engine", backend)
    asked = dataclasses.replace(taken(BuildOptions, values), backend=backend, required=bool(engine))
    assert asked.workspace is None or asked.workspace_bytes is not None  # refuses what is none
    return asked


def _contradiction(option: str, backend: str) -> UsageError:
    reason = f"it contradicts --backend {backend}"
    return UsageError("options-contradict", option, reason, "leave one of them out")


def make_progress(quiet: bool) -> Progress:
    """A bar where somebody looks at standard error."""
    return Silent() if quiet or not sys.stderr.isatty() else Terminal()
