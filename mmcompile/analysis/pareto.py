"""Section `pareto`: error against cost, for the policies and the uniform formats.

MicroMix has no budget. Its λ is swept on the calibration data alone, and of the plans that come
out those nearest in cost to the budgets of the ladder are measured, besides the λ of the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcompile.analysis.figures import pareto_front, rank_correlation, speed_cost
from mmcompile.analysis.ground import (
    UNIFORM_FORMATS,
    Observed,
    Trials,
    cost_policy,
    micromix_policy,
    plan_family,
    plan_figures,
    plan_title,
    uniform_policy,
)
from mmcompile.pipeline.search import possible
from mmcompile.plan import QuantPlan
from mmcompile.policy.options import COST, Policy
from mmcompile.policy.pairs import Budget, FormatPair, Objective
from mmcompile.policy.plan_damage import predicted_damage
from mmcompile.policy.split import threshold_ratios
from mmcompile.progress import Progress
from mmcompile.report.analysis import Pareto, ParetoPoint

LADDERS = {
    Objective.PREFILL: (1.0, 1.1, 1.25, 1.5, 1.75, 2.0),
    Objective.DECODE: (4.25, 4.5, 4.75, 5.25, 6.25, 8.25),
    Objective.MEMORY: (4.25, 4.5, 5.0, 5.5, 6.25, 8.25),
}
"""Budgets to try: tensor-core cost, or bits per weight where nothing is padded."""
FACTORS = tuple(float(factor) for factor in np.geomspace(0.15, 14, 16))
"""λ that MicroMix is planned with; the range from nearly all MXFP8 to nearly all MXFP4."""


@dataclass(frozen=True)
class Candidate:
    """A plan to measure.

    Attributes:
        policy: what it was made by.
        plan: the plan.
        chosen: whether it is the one that the options ask for.
    """

    policy: Policy
    plan: QuantPlan
    chosen: bool = False


def sweep_ratios(policy: Policy) -> tuple[float, ...]:
    """The thresholds that calibration has to count for the sweep of λ."""
    return tuple(
        ratio for factor in FACTORS for ratio in threshold_ratios(policy.thresholds, factor)
    )


def candidates_of(
    observed: Observed, policy: Policy, chosen: Candidate, budgets: Sequence[float]
) -> list[Candidate]:
    """All plans of the section, each once in its family, sorted by family and cost.

    Args:
        observed: the calibration data.
        policy: the settings that all plans share.
        chosen: the plan that the options ask for.
        budgets: budgets to try, in what the objective counts; empty for the default ladder.
    """

    def planned(budget: Budget) -> QuantPlan:
        return observed.plan(cost_policy(policy, budget))

    uniform = [
        Candidate(own, observed.plan(own))
        for own in (uniform_policy(policy, name) for name in UNIFORM_FORMATS)
    ]
    widest = uniform[-1].plan.mean_weight_bits()
    ladder = tuple(budgets) or _ladder(policy.objective, widest)
    found = [chosen, *uniform]
    for value in ladder:
        budget = (
            Budget(speed=value) if policy.objective is Objective.PREFILL else Budget(bits=value)
        )
        plan = possible(planned, budget)
        if plan is not None:
            found.append(Candidate(cost_policy(policy, budget), plan))
    found += _micromix(observed, policy, ladder)
    once = {(plan_family(c.policy), c.plan.digest()): c for c in reversed(found)}
    return sorted(once.values(), key=lambda c: (plan_family(c.policy), _cost(c.plan, policy)))


def pareto_section(
    observed: Observed,
    policy: Policy,
    chosen: Candidate,
    budgets: Sequence[float],
    trials: Trials,
    held_back: str,
    progress: Progress,
) -> Pareto:
    """Measures all plans.

    Args:
        observed: the calibration data.
        policy: the settings that all plans share.
        chosen: the plan that the options ask for.
        budgets: budgets to try, empty for the default ladder.
        trials: where plans are measured.
        held_back: name of the inputs that they are measured on.
        progress: told after every plan.
    """
    candidates = candidates_of(observed, policy, chosen, budgets)
    prepared = observed.prepared
    plans = [candidate.plan for candidate in candidates]
    damage = predicted_damage(
        prepared.groups, observed.stats, observed.gradients, plans, prepared.source, progress
    ).sum(axis=1)
    figures = []
    tracked = progress.track(candidates, "measuring plans", len(candidates))
    for candidate, harm in zip(tracked, damage.tolist(), strict=True):
        agreements = trials.agreements(candidate.plan, [held_back])[0]
        name, family = plan_title(candidate.policy), plan_family(candidate.policy)
        figures.append(plan_figures(name, family, candidate.plan, agreements, harm))
    errors = [figure.error for figure in figures]
    speed_front = pareto_front([figure.speed_cost for figure in figures], errors)
    bits_front = pareto_front([figure.weight_bits for figure in figures], errors)
    of_cost = [figure for figure in figures if figure.family == COST]
    return Pareto(
        points=tuple(
            ParetoPoint(figure, candidate.chosen, by_speed, by_bits)
            for figure, candidate, by_speed, by_bits in zip(
                figures, candidates, speed_front, bits_front, strict=True
            )
        ),
        rank_correlation=rank_correlation([f.predicted_damage for f in figures], errors),
        rank_correlation_of_cost=rank_correlation(
            [f.predicted_damage for f in of_cost], [f.error for f in of_cost]
        ),
    )


def _ladder(objective: Objective, widest_bits: float) -> tuple[float, ...]:
    """The default budgets; bits are raised by what padding adds to MXFP8 throughout."""
    if objective is Objective.PREFILL:
        return LADDERS[objective]
    padding = widest_bits / FormatPair("mxfp8", "mxfp8").bits
    return tuple(bits * padding for bits in LADDERS[objective])


def _micromix(observed: Observed, policy: Policy, ladder: Sequence[float]) -> list[Candidate]:
    """MicroMix with the λ of the options, and with those nearest in cost to the ladder."""
    swept = []
    for factor in FACTORS:
        own = micromix_policy(policy, factor)
        swept.append(Candidate(own, observed.plan(own)))
    nearest = [
        min(swept, key=lambda candidate: abs(_cost(candidate.plan, policy) - value))
        for value in ladder
    ]
    own = micromix_policy(policy, policy.factor)
    return [Candidate(own, observed.plan(own)), *nearest]


def _cost(plan: QuantPlan, policy: Policy) -> float:
    """What the objective counts of a plan."""
    is_speed = policy.objective is Objective.PREFILL
    return speed_cost(plan) if is_speed else plan.mean_weight_bits()
