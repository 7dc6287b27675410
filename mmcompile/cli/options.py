"""Command-line options that several commands share, and how they become option objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from mmcompile.backends.engines.options import AUTO
from mmcompile.cli.help import SECTIONS
from mmcompile.errors import UsageError

if TYPE_CHECKING:
    from mmcompile.backends.engines.options import BuildOptions
    from mmcompile.model.passes.find_linears import Selection
    from mmcompile.pipeline.options import DataOptions, VerifyOptions
    from mmcompile.policy.options import Policy

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)

POLICIES = ("cost", "micromix", "mxfp4", "nvfp4", "mxfp6", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8")


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order in which help shows them."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


text_options = options(
    click.option("--tokenizer", type=FILE, metavar="FILE", help="tokenizer.json, for text."),
    click.option(
        "--max-length",
        type=click.IntRange(min=1),
        metavar="N",
        default=512,
        show_default=True,
        help="Tokens per text sample at most.",
    ),
    click.option("--chunk", is_flag=True, help="Cut running text into samples of --max-length."),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="N",
        default=0,
        show_default=True,
        help="Of random choices.",
    ),
)

data_options = options(
    click.option(
        "--calib",
        metavar="DATA",
        help="Calibration inputs: .npz, .npy, polygraphy .json, a folder of these, "
        "script.py[:function], a text file with --tokenizer, or 'random' (unfit for use).",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        default=128,
        show_default=True,
        help="Samples to read at most.",
    ),
    text_options,
)

policy_options = options(
    click.option(
        "--policy",
        type=click.Choice(POLICIES),
        metavar="NAME",
        default="cost",
        show_default=True,
        help="cost chooses the formats that change the model's output least for a budget; "
        "micromix is the paper's: each layer's channels split into MXFP4, MXFP6 and MXFP8 by size; "
        f"{', '.join(POLICIES[2:])} give all channels one format.",
    ),
    click.option(
        "--objective",
        type=click.Choice(["prefill", "decode", "memory"]),
        metavar="WHAT",
        default="prefill",
        show_default=True,
        help="What cost saves: prefill (tensor-core time), decode (bytes of weights, activations "
        "wider) or memory (bytes of weights).",
    ),
    click.option(
        "--target-speed",
        type=float,
        metavar="X",
        help="Budget of cost: mean tensor-core cost, from 1 (all FP4) to 2 (no FP4). "
        "Default: 1.25 for prefill.",
    ),
    click.option(
        "--target-bits",
        type=float,
        metavar="X",
        help="Budget of cost: mean bits per weight, scales included. "
        "Default: 4.75 for decode, 5 for memory.",
    ),
    click.option(
        "--max-error",
        type=float,
        metavar="X",
        help="Instead of a budget: cost finds the smallest one with which 1 − mean cosine of every "
        "output, measured, is at most this.",
    ),
    click.option(
        "--classes",
        metavar="FORMATS",
        help="Formats that cost chooses from, with commas; default: all.",
    ),
    click.option(
        "--thresholds",
        type=click.Choice(["paper", "code"]),
        default="code",
        show_default=True,
        help="MicroMix's thresholds, as in the paper or in its authors' code.",
    ),
    click.option(
        "--lambda",
        "factor",
        type=float,
        metavar="X",
        default=1.0,
        show_default=True,
        help="Factor on MicroMix's thresholds; larger gives fewer bits.",
    ),
    click.option(
        "--granularity",
        type=click.Choice(["32", "64", "128"]),
        default="128",
        show_default=True,
        help="Channels of cost's runs, and that micromix's segments are multiples of.",
    ),
    click.option(
        "--order",
        type=click.Choice(["sorted", "reversed", "random", "natural"]),
        metavar="ORDER",
        help="Channel order: sorted (cost, micromix), natural (one format), reversed or random.",
    ),
    click.option(
        "--scale-rule",
        type=click.Choice(["balanced", "ocp", "saturation_free"]),
        metavar="RULE",
        default="balanced",
        show_default=True,
        help="Block exponents: balanced, ocp or saturation_free.",
    ),
    click.option(
        "--weight-scales",
        type=click.Choice(["rule", "searched"]),
        metavar="HOW",
        help="Block scales of weights: by the rule (micromix), or searched: the better of two "
        "(all others).",
    ),
    click.option(
        "--weights",
        type=click.Choice(["nearest", "gptq"]),
        metavar="HOW",
        help="Round weights to nearest, or with error feedback on calibration inputs (gptq, the "
        "default of cost).",
    ),
    click.option(
        "--effort",
        type=click.Choice(["fast", "balanced", "best"]),
        default="balanced",
        show_default=True,
        help="Computing time of cost and gptq; fast rounds to nearest, best looks at more data.",
    ),
)

selection_options = options(
    click.option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Take only linears whose node or weight name matches; may be repeated.",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Leave linears alone whose node or weight name matches; may be repeated.",
    ),
    click.option("--quantize-heads", is_flag=True, help="Also take layers that give an output."),
)

comparison_options = options(
    click.option(
        "--verify-samples",
        type=click.IntRange(min=1),
        metavar="N",
        default=8,
        show_default=True,
        help="Samples to compare at most.",
    ),
    click.option(
        "--logits",
        multiple=True,
        metavar="OUTPUT",
        help="An output that is logits; those with 'logits' in their name always are.",
    ),
)

verify_options = options(
    click.option("--layers", is_flag=True, help="Also compare every layer within the models."),
    click.option(
        "--nodes", is_flag=True, help="Also hold every compiled node against the specification."
    ),
    click.option(
        "--fail-below",
        type=click.FloatRange(-1, 1),
        metavar="COSINE",
        help="Exit with code 5 if an output's mean cosine similarity is lower.",
    ),
    comparison_options,
)


class BackendName(click.ParamType):  # type: ignore[type-arg]  # plain in click 8.1
    """The name of a back end, one of the registry's, which is read when somebody asks."""

    name = "backend"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name.

        Raises:
            click.BadParameter: there is no such back end.
        """
        from mmcompile.backends.registry import backend_names

        known = backend_names()
        if value not in known:
            self.fail(f"'{value}' is none of {', '.join(known)}.", param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that begin so."""
        del ctx, param
        from mmcompile.backends.registry import backend_names

        return [CompletionItem(name) for name in backend_names() if name.startswith(incomplete)]


class BackendOption(click.Option):
    """The option; its help lists the back ends that there are."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        from mmcompile.backends.registry import backend_names

        record = super().get_help_record(ctx)
        return record and (record[0], record[1].format(names=", ".join(backend_names())))


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

engine_options = options(
    backend_option,
    click.option(
        "--shapes",
        multiple=True,
        metavar="NAME:[MIN,OPT,MAX]",
        help="Shapes of an input, as in input_ids:[1x1,1x512,8x2048]; an input named again starts "
        "the next profile.",
    ),
    click.option(
        "--optimization-level",
        type=click.IntRange(0, 5),
        metavar="N",
        help="The builder's optimization level, 0 to 5.",
    ),
    click.option(
        "--workspace", metavar="SIZE", help="Limit on the builder's scratch memory, e.g. 4G."
    ),
    click.option(
        "--embed-plugin",
        is_flag=True,
        help="Put the plugin into the engine; by TensorRT it is version-compatible then.",
    ),
    click.option(
        "--weight-streaming",
        is_flag=True,
        help="Build an engine whose weights need not all be on the GPU.",
    ),
    click.option(
        "--triton", metavar="NAME", help="Also write a Triton model repository for this name."
    ),
    click.option(
        "--allow-fallback",
        is_flag=True,
        help="Accept an engine whose layers have lost the precision that the model asks for; else "
        "that is an error.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="List every layer and node.")


ROUNDING = ("weights", "effort")
"""Options of section Precision that say how weights are rounded, which no plan holds."""
OF_POLICY = {"objective": "cost", "thresholds": "micromix", "factor": "micromix"}
"""The policy that an option with a default of its own belongs to."""


def refuse_beside_plan(context: click.Context) -> None:
    """Refuses options of the policy on the command line beside --plan, which they cannot change.

    How weights are rounded is not in a plan: that may be asked for where there is data for it.

    Raises:
        UsageError: there is one.
    """
    for name in SECTIONS["Precision"]:
        if name != "plan" and name not in ROUNDING and _was_given(context, name):
            reason = "it has no effect beside --plan, which holds the decision already"
            remedy = "leave one of the two out"
            raise UsageError("option-beside-plan", _flag(context, name), reason, remedy)
    if _was_given(context, "effort") and context.params["calib"] is None:
        reason = "it has no effect beside --plan without data to round weights with"
        raise UsageError("option-without-effect", "--effort", reason, "add --calib")


def refuse_of_other_policies(context: click.Context) -> None:
    """Refuses options on the command line that belong to another policy than the one in force.

    Raises:
        UsageError: there is one.
    """
    policy = context.params["policy"]
    for name, owner in OF_POLICY.items():
        if policy != owner and _was_given(context, name):
            _refuse_without_effect(_flag(context, name), policy, owner)


def refuse_selection(context: click.Context, what: str) -> None:
    """Refuses options that select layers where there is nothing to select.

    Args:
        context: of the command.
        what: what they have no effect on.

    Raises:
        UsageError: there is one.
    """
    for name in SECTIONS["Layers"]:
        if _was_given(context, name):
            reason = f"it has no effect on {what}"
            remedy = "leave it out"
            raise UsageError("option-without-effect", _flag(context, name), reason, remedy)


def _was_given(context: click.Context, name: str) -> bool:
    """Whether an option stands on the command line, not in a file or by default."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _flag(context: click.Context, name: str) -> str:
    """An option as users write it, by its Python name."""
    return next(p.opts[0] for p in context.command.params if p.name == name)


def _refuse_without_effect(option: str, policy: str, owner: str) -> NoReturn:
    """Refuses an option of another policy.

    Raises:
        UsageError: always.
    """
    reason = f"it has no effect on --policy {policy}"
    raise UsageError("option-without-effect", option, reason, f"use --policy {owner}")


def make_policy(values: dict[str, Any]) -> Policy:
    """The policy that the options ask for.

    Raises:
        UsageError: options contradict each other, or a value is impossible.
    """
    from mmcompile.policy.options import COST, Policy
    from mmcompile.policy.order import Order
    from mmcompile.policy.pairs import CLASSES, Budget, Objective
    from mmcompile.policy.split import Thresholds

    for name in ("target_speed", "target_bits", "max_error", "classes"):
        if values[name] is not None and values["policy"] != COST:
            _refuse_without_effect(f"--{name.replace('_', '-')}", values["policy"], COST)
    classes = CLASSES if values["classes"] is None else values["classes"].split(",")
    return Policy(
        name=values["policy"],
        thresholds=Thresholds(values["thresholds"]),
        factor=values["factor"],
        granularity=int(values["granularity"]),
        order=Order(values["order"]) if values["order"] else None,
        scale_rule=values["scale_rule"],
        weight_scales=values["weight_scales"],
        objective=Objective(values["objective"]),
        target=Budget(values["target_speed"], values["target_bits"]),
        classes=tuple(name.strip() for name in classes),
        max_error=values["max_error"],
    )


def make_selection(values: dict[str, Any]) -> Selection:
    """The selection that the options ask for."""
    from mmcompile.model.passes.find_linears import Selection

    return Selection(tuple(values["include"]), tuple(values["exclude"]), values["quantize_heads"])


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


def make_build(values: dict[str, Any]) -> BuildOptions:
    """How the options want the engine built.

    Raises:
        UsageError: a size is none, or --no-engine stands beside a back end.
    """
    from mmcompile.backends.engines.options import BuildOptions, parse_bytes
    from mmcompile.backends.registry import NOTHING

    workspace = values["workspace"]
    backend, engine = values["backend"], values.get("engine")
    if engine is False:
        if backend not in (AUTO, NOTHING):
            reason = f"it contradicts --backend {backend}"
            raise UsageError("options-contradict", "--no-engine", reason, "leave one of them out")
        backend = NOTHING
    elif engine and backend == NOTHING:
        reason = f"it contradicts --backend {backend}"
        raise UsageError("options-contradict", "--engine", reason, "leave one of them out")
    return BuildOptions(
        backend=backend,
        required=bool(engine),
        shapes=tuple(values["shapes"]),
        optimization_level=values["optimization_level"],
        workspace_bytes=None if workspace is None else parse_bytes(workspace),
        embed_plugin=values["embed_plugin"],
        weight_streaming=values["weight_streaming"],
        allow_fallback=values["allow_fallback"],
        triton=values["triton"],
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
