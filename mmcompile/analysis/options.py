"""What a user asks of an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcompile.data.options import DataOptions
from mmcompile.effort import Effort, Weights
from mmcompile.errors import UsageError
from mmcompile.model.selection import Selection
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Policy, like
from mmcompile.targets.table import DEFAULT_TARGET

PARETO, STABILITY, STRESS, LAYERS = SECTIONS = ("pareto", "stability", "stress", "layers")
"""The sections of an analysis, in their order."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """Everything but the model.

    Attributes:
        gpu: the target that formats are priced for.
        output: folder of the results.
        data: calibration data, and what errors are measured on; without the latter, part of the
            calibration data is held back.
        policy: the policy of the chosen plan. Those that it is compared with have its options,
            as far as they know them.
        cost: other options of the policy `cost` that it is compared with.
        micromix: other options of MicroMix that it is compared with.
        effort: how much computing plans and weights may take.
        weights: how weights are rounded; None is the default of effort and each plan's policy.
        selection: which linears to take.
        sections: some of `SECTIONS`.
        budgets: budgets of the policy `cost` to try, in what its objective counts; empty for the
            default ladder.
        other_calibration: other calibration data to plan from.
        stress_data: inputs of other domains to run on.
        samples: inputs of a kind that trial models are run on, at most.
        layers: groups that are compiled alone, at most.
        logits: names of outputs that are logits, beside those that have `logits` in their name.
        html: write the page, too.
        command: the command line, for the page.
    """

    gpu: str = DEFAULT_TARGET
    output: Path = Path("analysis")
    data: DataOptions = field(default_factory=DataOptions)
    policy: Policy = field(default_factory=CostPolicy)
    cost: Mapping[str, Any] = field(default_factory=dict)
    micromix: Mapping[str, Any] = field(default_factory=dict)
    effort: Effort = Effort.BALANCED
    weights: Weights | None = None
    selection: Selection = field(default_factory=Selection)
    sections: tuple[str, ...] = SECTIONS
    budgets: tuple[float, ...] = ()
    other_calibration: tuple[str, ...] = ()
    stress_data: tuple[str, ...] = ()
    samples: int = 8
    layers: int = 32
    logits: tuple[str, ...] = ()
    html: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        for name in self.sections:
            if name not in SECTIONS:
                known = ", ".join(SECTIONS)
                raise UsageError(
                    "unknown-choice", "--sections", f"no '{name}'", f"use some of {known}"
                )
        if not self.sections:
            remedy = f"use some of {', '.join(SECTIONS)}"
            raise UsageError("no-section", "--sections", "there is no section", remedy)
        for option, given, section in (
            ("--budgets", self.budgets, PARETO),
            ("--other-calib", self.other_calibration, STABILITY),
            ("--stress-data", self.stress_data, STRESS),
        ):
            if given and section not in self.sections:
                reason = f"it has no effect without the section {section}"
                remedy = f"add {section} to --sections"
                raise UsageError("option-without-effect", option, reason, remedy)
        for budget in self.budgets:
            if not 0 < budget < math.inf:
                remedy = "give positive numbers with commas, such as 1,1.25,1.5,2"
                raise UsageError("bad-budget", "--budgets", f"{budget:g} is no budget", remedy)

    @property
    def cost_policy(self) -> CostPolicy:
        """The policy `cost` with the options of the chosen one, and the objective's own budget."""
        own = {"target_speed": None, "target_bits": None, "max_error": None}
        return like(self.policy, CostPolicy, **{**self.cost, **own})

    @property
    def micromix_policy(self) -> MicroMixPolicy:
        """MicroMix with the options of the chosen policy, in its own channel order."""
        return like(self.policy, MicroMixPolicy, **{**self.micromix, "order": None})
