"""The allocation against brute force, at the edges of the budget, and its monotony."""

import itertools

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mmcompile.policy.allocate import Limit, allocate, allocate_two, lower_hull, total_damage

RUNS = 4


@st.composite
def problems(draw, choices=3):
    """Damage and costs of a few runs, small integers so that ties are frequent."""
    runs = draw(st.integers(1, RUNS))
    numbers = st.lists(st.integers(0, 9), min_size=runs * choices, max_size=runs * choices)
    damage = np.array(draw(numbers), float).reshape(runs, choices)
    costs = np.array(draw(numbers), float).reshape(runs, choices)
    return damage, costs


def every_choice(damage):
    """All combinations of choices."""
    return [np.array(c) for c in itertools.product(range(damage.shape[1]), repeat=len(damage))]


def least_damage(damage, limits):
    """The optimum by brute force."""
    allowed = [c for c in every_choice(damage) if all(limit.holds(c) for limit in limits)]
    return min(total_damage(damage, choice) for choice in allowed)


@settings(deadline=None)
@given(problems())
def test_where_no_step_is_left_out_it_is_the_optimum(problem):
    """argmin(damage + λ·cost) is optimal for what it costs (Everett's theorem).

    Of equal minima the cheapest: no step of the rate λ itself is taken.
    """
    damage, costs = problem
    for multiplier in (0.0, *(float(damage.max()) + 1.0) / np.arange(1, 30)):
        total = damage + multiplier * costs
        least = np.isclose(total, total.min(axis=1, keepdims=True), rtol=1e-12)
        relaxed = np.where(least, costs, np.inf).argmin(axis=1)
        limit = Limit(costs, Limit(costs, 0).spent(relaxed))
        chosen = allocate(damage, limit)
        assert total_damage(damage, chosen) == least_damage(damage, [limit])


@settings(deadline=None)
@given(problems(), st.floats(0, 50))
def test_the_budget_holds_and_the_gap_is_one_step(problem, total):
    damage, costs = problem
    limit = Limit(costs, total)
    if not limit.feasible():
        with pytest.raises(ValueError, match="more than the budget"):
            allocate(damage, limit)
        return
    chosen = allocate(damage, limit)
    assert limit.holds(chosen)
    # The Lagrangian bound misses the optimum by less than the largest step of a run.
    largest = (damage.max(axis=1) - damage.min(axis=1)).max()
    assert total_damage(damage, chosen) <= least_damage(damage, [limit]) + largest


@settings(deadline=None)
@given(problems(choices=4), st.lists(st.floats(0, 60), min_size=2, max_size=6))
def test_more_budget_is_never_more_damage(problem, totals):
    damage, costs = problem
    limits = [Limit(costs, total) for total in sorted(totals)]
    found = [total_damage(damage, allocate(damage, x)) for x in limits if x.feasible()]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found))


@settings(deadline=None)
@given(problems())
def test_budget_edges(problem):
    damage, costs = problem
    least = costs.min(axis=1)
    cheapest = allocate(damage, Limit(costs, least.sum()))
    assert Limit(costs, 0).spent(cheapest) == least.sum()
    # Of the cheapest choices, the least damage.
    at_least = np.where(costs == least[:, None], damage, np.inf).min(axis=1)
    assert total_damage(damage, cheapest) == at_least.sum()
    unbounded = allocate(damage, Limit(costs, costs.max(axis=1).sum()))
    assert total_damage(damage, unbounded) == damage.min(axis=1).sum()


def test_equal_rates_do_not_overshoot():
    """Four runs that are all alike and a budget for two: exactly two are upgraded."""
    damage = np.array([[5.0, 1.0]] * 4)
    limit = Limit(np.array([[1.0, 2.0]] * 4), 6.0)
    assert allocate(damage, limit).tolist() == [1, 1, 0, 0]


def test_a_step_that_does_not_fit_leaves_room_for_others():
    damage = np.array([[100.0, 0.0], [10.0, 0.0]])
    limit = Limit(np.array([[0.0, 10.0], [0.0, 2.0]]), 5.0)
    assert allocate(damage, limit).tolist() == [0, 1]


def test_a_run_that_stopped_takes_no_later_step():
    """The later step is short only from where the run never came."""
    damage = np.array([[10.0, 3.0, 2.5]])
    limit = Limit(np.array([[0.0, 5.0, 6.0]]), 2.0)
    assert allocate(damage, limit).tolist() == [0]


def test_sums_of_fractions_fill_their_budget():
    """0.1 + 0.1 + 0.1 exceeds 0.3 in floating point, not in a budget."""
    damage = np.array([[1.0, 0.0]] * 3)
    limit = Limit(np.array([[0.0, 0.1]] * 3), 0.3)
    assert allocate(damage, limit).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("costs", "damage", "hull"),
    [
        ([1, 2, 2, 2], [9, 3, 2, 4], [0, 2]),  # of equal cost the least damage
        ([1, 2, 3], [9, 8, 0], [0, 2]),  # the middle lies above the line
        ([1, 2, 3], [9, 2, 0], [0, 1, 2]),
        ([1, 2, 3], [4, 5, 6], [0]),  # dearer and worse
        ([1, 1, 1], [2, 2, 2], [0]),  # of equals the first
        ([2, 1], [0, 3], [1, 0]),  # whatever the order of the columns
        ([1, 2, 3], [4, 2, 0], [0, 1, 2]),  # on a straight line, short steps
    ],
)
def test_lower_hull(costs, damage, hull):
    assert lower_hull(np.array(costs, float), np.array(damage, float)) == hull


@settings(deadline=None)
@given(problems(), st.floats(0, 40), st.floats(0, 40))
def test_two_budgets_hold_together(problem, first, second):
    damage, costs = problem
    other = np.roll(costs, 1, axis=1)
    limits = [Limit(costs, first), Limit(other, second)]
    if not limits[0].feasible():
        return
    try:
        chosen = allocate_two(damage, *limits)
    except ValueError:
        event("no multiplier makes both hold")
        return
    assert all(limit.holds(chosen) for limit in limits)
    if limits[1].holds(allocate(damage, limits[0])):
        np.testing.assert_array_equal(chosen, allocate(damage, limits[0]))
