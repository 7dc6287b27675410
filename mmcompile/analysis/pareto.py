"""Section `pareto`: error against cost, for the policies and the uniform formats.

MicroMix has no budget. Its λ is swept on the calibration data alone, and of the plans that come
out those nearest in cost to the budgets of the ladder are measured, besides the λ of the options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmcompile.analysis.figures import pareto_front, rank_correlation
from mmcompile.analysis.ground import Candidate, Ground, uniform_policy
from mmcompile.analysis.options import AnalyzeOptions
from mmcompile.formats import BLOCK_FORMATS, MXFP8
from mmcompile.pipeline.search import possible
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.plan_damage import predicted_damage
from mmcompile.report.analysis import Pareto, ParetoPoint
from mmcompile.targets.target import FormatPair, Objective

LADDERS = {
    Objective.PREFILL: (1.0, 1.1, 1.25, 1.5, 1.75, 2.0),
    Objective.DECODE: (4.25, 4.5, 4.75, 5.25, 6.25, 8.25),
    Objective.MEMORY: (4.25, 4.5, 5.0, 5.5, 6.25, 8.25),
}
"""Budgets to try: tensor-core cost, or bits per weight where nothing is padded."""
FACTORS = tuple(float(factor) for factor in np.geomspace(0.15, 14, 16))
"""λ that MicroMix is planned with; the range from nearly all MXFP8 to nearly all MXFP4."""


def sweep_ratios(options: AnalyzeOptions) -> tuple[float, ...]:
    """The thresholds that calibration has to count for the sweep of λ."""
    own = options.micromix_policy
    return tuple(
        ratio for factor in FACTORS for ratio in dataclasses.replace(own, factor=factor).ratios
    )


def candidates_of(ground: Ground) -> list[Candidate]:
    """All plans of the section, each once in its family, sorted by family and cost."""
    options, evidence = ground.options, ground.observed.evidence
    cost = options.cost_policy
    found = [ground.chosen]
    for name in BLOCK_FORMATS:
        own = uniform_policy(options.policy, name)
        found.append(Candidate(own, own.plan(evidence)))
    widest = uniform_policy(options.policy, MXFP8.name).plan(evidence).mean_weight_bits()
    ladder = options.budgets or _ladder(cost, ground, widest)
    for price in ladder:
        priced = cost.priced(price)
        plan = possible(priced, evidence)
        if plan is not None:
            found.append(Candidate(priced, plan))
    found += _micromix(ground, ladder)
    once = {(c.policy.family, c.plan.digest()): c for c in reversed(found)}
    return sorted(
        once.values(), key=lambda c: (c.policy.family, cost.price_of(c.plan, ground.target))
    )


def pareto_section(ground: Ground) -> Pareto:
    """Measures all plans."""
    candidates = candidates_of(ground)
    plans = [candidate.plan for candidate in candidates]
    damage = predicted_damage(ground.observed.evidence, plans).sum(axis=1)
    tracked = ground.progress.track(candidates, "measuring plans", len(candidates))
    figures = [
        ground.figures(candidate, harm)
        for candidate, harm in zip(tracked, damage.tolist(), strict=True)
    ]
    errors = [figure.error for figure in figures]
    speed_front = pareto_front([figure.speed_cost for figure in figures], errors)
    bits_front = pareto_front([figure.weight_bits for figure in figures], errors)
    of_cost = [figure for figure in figures if figure.family == CostPolicy.NAME]
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


def _ladder(cost: CostPolicy, ground: Ground, widest_bits: float) -> tuple[float, ...]:
    """The default budgets: those that differ on the target.

    Bits are raised by what padding adds to MXFP8 throughout.
    """
    if cost.objective is not Objective.PREFILL:
        padding = widest_bits / FormatPair(MXFP8.name, MXFP8.name).bits
        return tuple(bits * padding for bits in LADDERS[cost.objective])
    _, most = cost.span(ground.target)
    return tuple(price for price in LADDERS[cost.objective] if price <= most)


def _micromix(ground: Ground, ladder: Sequence[float]) -> list[Candidate]:
    """MicroMix with the λ of the options, and with those nearest in cost to the ladder."""
    evidence, own = ground.observed.evidence, ground.options.micromix_policy
    policies = [dataclasses.replace(own, factor=factor) for factor in FACTORS]
    swept = [Candidate(policy, policy.plan(evidence)) for policy in policies]
    cost = ground.options.cost_policy
    prices = [cost.price_of(candidate.plan, ground.target) for candidate in swept]
    nearest = [
        min(zip(swept, prices, strict=True), key=lambda pair: abs(pair[1] - wanted))[0]
        for wanted in ladder
    ]
    return [Candidate(own, own.plan(evidence)), *nearest]
