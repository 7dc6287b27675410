"""What a user asks of the compiler, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmcompile.backends.engines.options import BuildOptions
from mmcompile.data.options import DataOptions
from mmcompile.effort import Effort, Weights
from mmcompile.model.rest import Rest
from mmcompile.model.selection import Selection
from mmcompile.options import check_choices, option
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.protocol import Policy
from mmcompile.targets.table import DEFAULT_TARGET

if TYPE_CHECKING:
    from mmcompile.plan import QuantPlan
    from mmcompile.report.model import Report


@dataclass(frozen=True)
class VerifyOptions:
    """How the compiled model is held against the original.

    Attributes:
        enabled: run both models at all.
        layers: compare every layer's output within the models, too.
        nodes: compare every `MicroMixLinear` node against the specification, too.
        fail_below: least mean cosine similarity of every output; None only reports.
        samples: held-back samples at most.
        logits: names of outputs that are logits; outputs with `logits` in their name always are.
    """

    enabled: bool = True
    layers: bool = option(False, "Also compare every layer within the models.")
    nodes: bool = option(False, "Also hold every compiled node against the specification.")
    fail_below: float | None = option(
        None,
        "Exit with code 5 if an output's mean cosine similarity is lower.",
        metavar="COSINE",
        span=(-1, 1),
    )
    samples: int = option(
        8, "Samples to compare at most.", flag="--verify-samples", metavar="N", span=(1, None)
    )
    logits: tuple[str, ...] = option(
        (),
        "An output that is logits; those with 'logits' in their name always are.",
        metavar="OUTPUT",
    )


@dataclass(frozen=True)
class CompileOptions:
    """Everything but the model.

    Attributes:
        gpu: the target, as `targets.names.parse_target` reads it.
        output: folder of the results.
        data: where inputs come from.
        policy: how precision is assigned.
        plan: a plan to use instead of calibrating.
        effort: how much computing plan and weights may take.
        weights: how weights are rounded; None is the default of effort and policy.
        selection: which linears to take.
        rest: what all but the compiled linears compute in; None is float16, or bfloat16 for a
            model that computes in it.
        verify: how to verify.
        build: whether and how the engine is built.
        html: write report.html, too.
        dry_run: plan and size everything, write nothing.
        command: the command line, for the report.
    """

    gpu: str = option(
        DEFAULT_TARGET, "Target, e.g. sm_120 or rtx5090; an unknown one lists all.", metavar="GPU"
    )
    output: Path = option(Path("out"), "Folder of the results.", metavar="FOLDER")
    data: DataOptions = field(default_factory=DataOptions)
    policy: Policy = field(default_factory=CostPolicy)
    plan: Path | None = option(None, "A plan.json to use instead of calibrating.", metavar="FILE")
    weights: Weights | None = option(
        None,
        "Round weights to nearest, or with error feedback on calibration inputs (gptq, the "
        "default of cost).",
        metavar="HOW",
    )
    effort: Effort = option(
        Effort.BALANCED,
        "Computing time of cost and gptq; fast rounds to nearest, best looks at more data.",
    )
    selection: Selection = field(default_factory=Selection)
    rest: Rest | None = option(
        None,
        "What all but the compiled linears compute in: fp16 (the default), bf16 (the default of "
        "bfloat16 models), or keep. What the type cannot hold stays in float32.",
        metavar="TYPE",
    )
    verify: VerifyOptions = field(default_factory=VerifyOptions)
    build: BuildOptions = field(default_factory=BuildOptions)
    html: bool = True
    dry_run: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class CompileResult:
    """What a compilation gave.

    Attributes:
        plan: the decision.
        report: all figures.
        files: the files written, empty for a dry run; the folder of a Triton repository, too.
        engine: the engine, where this machine could build it.
    """

    plan: QuantPlan
    report: Report
    files: tuple[Path, ...]
    engine: Path | None = None

    @property
    def model(self) -> Path | None:
        """The compiled model, where it was written."""
        return next((path for path in self.files if path.name == "model.onnx"), None)
