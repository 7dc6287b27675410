"""What a user asks of the compiler, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcompile.backends.engines.options import BuildOptions
from mmcompile.effort import Effort, Weights
from mmcompile.model.passes.find_linears import Selection
from mmcompile.plan import QuantPlan
from mmcompile.policy.options import Policy
from mmcompile.report.model import Report

Feed = Mapping[str, Any]


@dataclass(frozen=True)
class DataOptions:
    """Where inputs come from (`calib.data.open_data`).

    Attributes:
        calibration: file, folder, script, `random`, or Python feeds; None where a plan is given.
        verification: the same for verification; None holds back part of the calibration data.
        tokenizer: tokenizer.json for text.
        samples: number of samples to read at most; None reads all.
        max_length: tokens per text sample at most.
        chunk: cut running text into samples of `max_length` tokens.
        hold_back: every how-manieth sample is kept from calibration, for verification.
        seed: of random inputs and of sampled rows.
    """

    calibration: str | Path | Iterable[Feed] | Callable[[], Iterable[Feed]] | None = None
    verification: str | Path | Iterable[Feed] | Callable[[], Iterable[Feed]] | None = None
    tokenizer: Path | None = None
    samples: int | None = 128
    max_length: int = 512
    chunk: bool = False
    hold_back: int = 5
    seed: int = 0


@dataclass(frozen=True)
class VerifyOptions:
    """How the compiled model is held against the original.

    Attributes:
        enabled: run both models at all.
        samples: held-back samples at most.
        layers: compare every layer's output within the models, too.
        nodes: compare every `MicroMixLinear` node against the specification, too.
        fail_below: least mean cosine similarity of every output; None only reports.
        logits: names of outputs that are logits; outputs with `logits` in their name always are.
    """

    enabled: bool = True
    samples: int = 8
    layers: bool = False
    nodes: bool = False
    fail_below: float | None = None
    logits: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompileOptions:
    """Everything but the model.

    Attributes:
        gpu: the target, as `target.parse_target` reads it.
        output: folder of the results.
        data: where inputs come from.
        policy: how precision is assigned.
        plan: a plan to use instead of calibrating.
        effort: how much computing plan and weights may take.
        weights: how weights are rounded; None is the default of effort and policy.
        selection: which linears to take.
        verify: how to verify.
        build: whether and how the engine is built.
        html: write report.html, too.
        dry_run: plan and size everything, write nothing.
        command: the command line, for the report.
    """

    gpu: str = "sm_120"
    output: Path = Path("out")
    data: DataOptions = field(default_factory=DataOptions)
    policy: Policy = field(default_factory=Policy)
    plan: Path | None = None
    effort: Effort = Effort.BALANCED
    weights: Weights | None = None
    selection: Selection = field(default_factory=Selection)
    verify: VerifyOptions = field(default_factory=VerifyOptions)
    build: BuildOptions = field(default_factory=BuildOptions)
    html: bool = True
    dry_run: bool = False
    command: str = ""


@dataclass(frozen=True)
class CompileResult:
    """What a compilation gave.

    Attributes:
        plan: the decision.
        report: all figures.
        files: the files written, empty for a dry run; the folder of a Triton repository, too.
        engine: the engine, where this machine could build it.
        passed: False where verification missed `fail_below`.
    """

    plan: QuantPlan
    report: Report
    files: tuple[Path, ...]
    passed: bool
    engine: Path | None = None

    @property
    def model(self) -> Path | None:
        """The compiled model, where it was written."""
        return next((path for path in self.files if path.name == "model.onnx"), None)
