"""Which run of channels gets which format: the least damage for a budget, over the whole model.

Every run has a choice of formats, each with a damage and a cost. Minimizing the total damage under
a budget is a knapsack problem. Its Lagrangian relaxation takes argmin(damage + λ·cost) per run and
lowers λ until the budget is spent (Everett 1963; in compression: Shoham and Gersho 1988). Walking
through all λ at once is a sort: along the lower convex hull of a run's points, each step to a
dearer format saves damage per cost at a rate that falls from step to step, and λ is the rate at
which steps stop being taken. Steps of equal rate are taken one by one, so that ties cannot
overshoot the budget.

A step that no longer fits is left out, together with the later steps of its run, and the walk goes
on. The result is the Lagrangian optimum plus at most what fits into the rest of the budget. More
budget never gives more damage: at the first step that one budget takes and a smaller one cannot,
all that the smaller one may still save is less than what the step saves, its rate being the best
of those left.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.dtypes import F64

IntArray = npt.NDArray[np.intp]

_ROUNDING = 1e-9
"""Relative room for sums of costs that are exact multiples of each other in real numbers."""
_SECOND_SEARCH = 40
"""Bisection steps on the second budget's multiplier: its range is halved in the exponent."""


@dataclass(frozen=True)
class Limit:
    """A budget: what each choice costs, and the most that all choices together may.

    Attributes:
        costs: float64[runs, choices], not negative.
        total: upper limit of the sum.
    """

    costs: F64
    total: float

    def spent(self, choice: IntArray) -> float:
        """The cost of a choice[runs]."""
        return float(self.costs[np.arange(len(choice)), choice].sum())

    def holds(self, choice: IntArray) -> bool:
        """Whether a choice[runs] stays within the budget."""
        return self.spent(choice) <= self.total * (1 + _ROUNDING)

    def feasible(self) -> bool:
        """Whether the cheapest choices stay within the budget."""
        return float(self.costs.min(axis=1).sum()) <= self.total * (1 + _ROUNDING)


@dataclass(frozen=True)
class _Step:
    """A move of one run along its hull."""

    rate: float
    run: int
    place: int
    cost: float
    choice: int


def total_damage(damage: F64, choice: IntArray) -> float:
    """The damage of a choice[runs]."""
    return float(damage[np.arange(len(choice)), choice].sum())


def allocate(damage: F64, limit: Limit) -> IntArray:
    """The choice per run with the least damage under one budget.

    Args:
        damage: float64[runs, choices], finite.
        limit: the budget, feasible.

    Returns:
        int[runs], the chosen column of every run.

    Raises:
        ValueError: not even the cheapest choices stay within the budget.
    """
    if not limit.feasible():
        raise ValueError("the cheapest choices cost more than the budget")
    hulls = [lower_hull(cost, harm) for cost, harm in zip(limit.costs, damage, strict=True)]
    choice = np.array([hull[0] for hull in hulls], np.intp)
    left = limit.total * (1 + _ROUNDING) - limit.spent(choice)
    stopped: set[int] = set()
    for step in _steps(hulls, limit.costs, damage):
        if step.run in stopped:
            continue
        if step.cost > left:
            stopped.add(step.run)
            continue
        choice[step.run] = step.choice
        left -= step.cost
    return choice


def allocate_two(damage: F64, first: Limit, second: Limit) -> IntArray:
    """The same under two budgets: the second enters the damage with a multiplier.

    The multiplier is the least, up to bisection, for which the second budget holds.

    Raises:
        ValueError: no multiplier makes both budgets hold.
    """
    choice = allocate(damage, first)
    if second.holds(choice):
        return choice
    scale = float(damage.max()) / max(float(second.costs.max()), np.finfo(float).tiny)
    low, high = -50.0, 50.0
    best = allocate(damage + scale * 2.0**high * second.costs, first)
    if not second.holds(best):
        raise ValueError("the two budgets cannot be kept together")
    for _ in range(_SECOND_SEARCH):
        middle = (low + high) / 2
        choice = allocate(damage + scale * 2.0**middle * second.costs, first)
        if second.holds(choice):
            high, best = middle, choice
        else:
            low = middle
    return best


def lower_hull(costs: F64, damage: F64) -> list[int]:
    """Choices on the lower convex hull of one run, from the cheapest to the least damage.

    Of choices of equal cost the least damage counts, of equal ones the first. No choice on the
    hull is dearer than another without being less damaging. Choices on a straight line between
    others belong to it: short steps fill a budget better.

    Args:
        costs: float64[choices].
        damage: float64[choices].
    """
    hull: list[int] = []
    for index in np.lexsort((np.arange(len(costs)), damage, costs)):
        if hull and damage[index] >= damage[hull[-1]]:
            continue
        while len(hull) > 1 and _rate(costs, damage, hull[-2], hull[-1]) < _rate(
            costs, damage, hull[-1], index
        ):
            hull.pop()
        hull.append(int(index))
    return hull


def _rate(costs: F64, damage: F64, before: int, after: int) -> float:
    """Damage saved per cost; costs differ, as only the best of equal costs is on the hull."""
    return float((damage[before] - damage[after]) / (costs[after] - costs[before]))


def _steps(hulls: Sequence[Sequence[int]], costs: F64, damage: F64) -> list[_Step]:
    """The moves along all hulls, the best rate first; ties in the order of runs."""
    steps = [
        _Step(
            _rate(costs[run], damage[run], before, after),
            run,
            place,
            float(costs[run, after] - costs[run, before]),
            after,
        )
        for run, hull in enumerate(hulls)
        for place, (before, after) in enumerate(itertools.pairwise(hull))
    ]
    return sorted(steps, key=lambda step: (-step.rate, step.run, step.place))
