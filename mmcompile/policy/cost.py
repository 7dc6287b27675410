"""The policy `cost`: the formats that change the model's output least for what they cost.

Here are its options; `cost_plan` has the planning.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmcompile.errors import UsageError
from mmcompile.options import option
from mmcompile.policy.budget import (
    CLASSES,
    DEFAULT_BUDGETS,
    NO_BUDGET,
    Budget,
    candidates,
    check_classes,
)
from mmcompile.policy.micromix import GRANULARITIES
from mmcompile.policy.protocol import Evidence, Needs, ScaledPolicy
from mmcompile.targets.target import FormatPair, Objective, Target

if TYPE_CHECKING:
    from mmcompile.plan import QuantPlan

UNLIMITED = 1e6
"""A budget far beyond 8 bits everywhere."""


@dataclass(frozen=True)
class CostPolicy(ScaledPolicy):
    """The least damage to the model's output, measured with its gradients, for a cost on the GPU.

    Attributes:
        objective: what is to be cheap.
        target_speed: the largest mean tensor-core cost, 1 being the fastest pair of formats.
        target_bits: the most bits per weight. With neither, the objective's default holds.
        max_error: instead of a budget, the largest 1 − mean cosine similarity of any output.
        classes: the formats to choose from.
        granularity: channels of a run, of which one per layer may be shorter.
    """

    NAME: ClassVar[str] = "cost"
    feedback: ClassVar[bool] = True

    objective: Objective = option(
        Objective.PREFILL,
        "What cost saves: prefill (tensor-core time), decode (bytes of weights, activations "
        "wider) or memory (bytes of weights).",
        metavar="WHAT",
    )
    target_speed: float | None = option(
        None,
        "Budget of cost: mean tensor-core cost, from 1 (all FP4) to 2 (no FP4). "
        "Default: 1.25 for prefill.",
        metavar="X",
    )
    target_bits: float | None = option(
        None,
        "Budget of cost: mean bits per weight, scales included. "
        "Default: 4.75 for decode, 5 for memory.",
        metavar="X",
    )
    max_error: float | None = option(
        None,
        "Instead of a budget: cost finds the smallest one with which 1 − mean cosine of every "
        "output, measured, is at most this.",
        metavar="X",
    )
    classes: tuple[str, ...] = option(
        CLASSES, "Formats that cost chooses from, with commas; default: all.", metavar="FORMATS"
    )
    granularity: int = option(
        128,
        "Channels of cost's runs, and that micromix's segments are multiples of.",
        choices=GRANULARITIES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)
        asked = self._asked  # refuses budgets that cannot be
        if self.max_error is not None:
            if not 0 < self.max_error < 2:
                reason = f"{self.max_error:g} is no difference of a cosine similarity from 1"
                remedy = "give a number such as 0.01"
                raise UsageError("bad-max-error", "--max-error", reason, remedy)
            if asked != NO_BUDGET:
                reason = "it stands beside a budget, which it is to find"
                remedy = "leave out --target-speed and --target-bits, or --max-error"
                raise UsageError("two-budgets", "--max-error", reason, remedy)

    @property
    def _asked(self) -> Budget:
        return Budget(self.target_speed, self.target_bits)

    @property
    def title(self) -> str:
        """With its budget."""
        budget = self.budget
        parts = [f"{budget.speed:g}"] if budget.speed is not None else []
        parts += [f"{budget.bits:.4g} bits"] if budget.bits is not None else []
        return f"{self.NAME} {', '.join(parts)}"

    @property
    def needs(self) -> Needs:
        """Damage is measured with gradients."""
        return Needs.GRADIENTS

    @property
    def formats(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def budget(self) -> Budget:
        """The limits in force."""
        return self._asked if self._asked != NO_BUDGET else DEFAULT_BUDGETS[self.objective]

    @property
    def limits(self) -> str:
        """The budget in words."""
        if self.max_error is not None:
            return f"the least with which no output errs more than {self.max_error:g}"
        budget, parts = self.budget, []
        if budget.speed is not None:
            parts.append(f"a mean tensor-core cost of {budget.speed:g} (the fastest formats 1)")
        if budget.bits is not None:
            parts.append(f"{budget.bits:g} bits per weight")
        return "at most " + " and ".join(parts)

    def pairs(self, target: Target) -> tuple[FormatPair, ...]:
        """The pairs of formats to choose from, the cheapest first."""
        return candidates(self.objective, self.classes, target)

    def parameters(self) -> dict[str, str | float | int]:
        """The parameters in force."""
        found = {"granularity": self.granularity} | super().parameters()
        found |= {"objective": self.objective.value, "classes": " ".join(self.classes)}
        if self.budget.speed is not None:
            found["target_speed"] = self.budget.speed
        if self.budget.bits is not None:
            found["target_bits"] = self.budget.bits
        return found

    def plan(self, evidence: Evidence) -> QuantPlan:
        """The plan of a model.

        Raises:
            UsageError: no choice of formats meets the budget, or a layer saw no token.
        """
        from mmcompile.policy.cost_plan import plan_cost

        return plan_cost(self, evidence)

    def span(self, target: Target) -> tuple[float, float]:
        """The least and the largest budget: cost, or bits where nothing is padded."""
        prices = [target.price(pair, self.objective) for pair in self.pairs(target)]
        return min(prices), max(prices)

    def priced(self, price: float) -> CostPolicy:
        """The same policy with a budget of the objective's kind."""
        price = min(price, UNLIMITED)
        by_speed = self.objective is Objective.PREFILL
        return dataclasses.replace(
            self,
            target_speed=price if by_speed else None,
            target_bits=None if by_speed else price,
            max_error=None,
        )

    def price_of(self, plan: QuantPlan, target: Target) -> float:
        """What the objective counts of a plan."""
        if self.objective is Objective.PREFILL:
            return target.plan_speed_cost(plan.groups)
        return plan.mean_weight_bits()
