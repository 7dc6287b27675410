"""Figures of plans, and the damage that plans are predicted to do."""

import numpy as np
import pytest

from mmcompile.analysis.figures import (
    channel_pairs,
    format_agreement,
    format_shares,
    pareto_front,
    rank_correlation,
)
from mmcompile.packed import dequantize_activations, dequantize_weight
from mmcompile.plan import PADDING, PLAN_VERSION, GroupPlan, QuantPlan, Segment, format_order
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.plan_damage import RUN, channel_damage_of, predicted_damage
from mmcompile.policy.registry import make_policy
from mmcompile.weights.pack import pack_group
from tests.policy.cases import SM120, Case


def group(name, order, segments, outputs=(10,)):
    return GroupPlan(
        name=name,
        input=f"{name}_x",
        nodes=tuple(f"{name}_{i}" for i in range(len(outputs))),
        in_channels=sum(channel != PADDING for channel in order),
        out_channels=outputs,
        order=format_order(order),
        segments=tuple(Segment(n, act, weight, 2.0, 2.0) for n, act, weight in segments),
    )


def plan(*groups):
    return QuantPlan(PLAN_VERSION, "model", "cost", {}, "data", groups)


FOUR, EIGHT = (32, "mxfp4", "mxfp4"), (32, "mxfp8", "mxfp8")
ORDER = [*[PADDING] * 2, *range(62)]


def test_costs_count_padding_and_shares_do_not():
    made = plan(group("a", ORDER, [FOUR, EIGHT]), group("b", list(range(32)), [EIGHT], (30,)))
    assert SM120.plan_speed_cost(made.groups) == pytest.approx(
        (10 * 32 + 2 * 10 * 32 + 2 * 30 * 32) / (10 * 64 + 960)
    )
    shares = {share.act_format: share.share for share in format_shares(made.groups)}
    whole = 10 * 62 + 30 * 32
    assert shares == pytest.approx({"mxfp4": 300 / whole, "mxfp8": (320 + 960) / whole})


def test_channels_have_the_formats_of_their_places():
    order = [*range(30, 62), *range(30), PADDING, PADDING]
    pairs = channel_pairs(group("a", order, [FOUR, (32, "mxfp8", "mxfp4")]))
    assert pairs == [("mxfp8", "mxfp4")] * 30 + [("mxfp4", "mxfp4")] * 32


def test_agreement_is_weighted_by_outputs():
    first = plan(group("a", range(64), [FOUR, EIGHT]), group("b", range(32), [EIGHT], (20,)))
    second = plan(
        group("a", [*range(32, 64), *range(32)], [FOUR, EIGHT]),
        group("b", range(32), [EIGHT], (20,)),
    )
    agreement, by_chance = format_agreement(first, second)
    assert agreement == pytest.approx(20 * 32 / (10 * 64 + 20 * 32))
    assert by_chance == pytest.approx(0.25**2 + 0.75**2)
    assert format_agreement(first, first)[0] == 1


def test_the_front_has_what_nothing_beats():
    costs = [1.0, 1.0, 1.5, 1.5, 2.0, 1.2, 1.8]
    errors = [0.4, 0.5, 0.1, 0.1, 0.2, None, 0.05]
    assert pareto_front(costs, errors) == [True, False, True, True, False, False, True]


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: Pearson's correlation of these.
    assert rank_correlation([1, 2, 2, 5], [1, 2, 3, 4]) == pytest.approx(
        np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
    )
    assert rank_correlation([1, 2, None], [1, 2, 3]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert rank_correlation([1, None, 2, 3], [3, 9, 2, 1]) == pytest.approx(-1)


def by_hand(case, group_plan, index):
    """x̂·(gŴ) − x·(gW) of every token and position, float64[D, R, K_pad]."""
    sites = case.groups[index]
    rows = case.samples.groups[sites.name]
    order = group_plan.channel_order()
    weight = case.weight(index)[:, np.maximum(order, 0)] * (order != PADDING)
    x = rows.activations[:, np.maximum(order, 0)] * (order != PADDING)
    packed = dequantize_weight(pack_group(sites, group_plan, case.source), group_plan)
    quantized = dequantize_activations(rows.activations, group_plan)
    g = rows.gradients.astype(np.float64)
    return quantized * (g @ packed.astype(np.float64)) - x * (g @ weight.astype(np.float64))


@pytest.mark.parametrize(
    "policy",
    [CostPolicy(granularity=32), make_policy("nvfp4"), make_policy("mxfp8")],
    ids=lambda policy: policy.name,
)
def test_predicted_damage_is_that_of_the_packed_weights(tmp_path, policy):
    """Against float64 products of what the packed bytes mean."""
    case = Case(tmp_path)
    made = policy.plan(case.evidence())
    found = predicted_damage(case.evidence(), [made])
    harms = list(channel_damage_of(case.evidence(), made))
    for index, group_plan in enumerate(made.groups):
        errors = by_hand(case, group_plan, index)
        starts = np.arange(0, errors.shape[2], RUN)
        whole = np.square(np.add.reduceat(errors, starts, axis=2)).mean(axis=(0, 1)).sum()
        assert found[0, index] == pytest.approx(whole, rel=1e-3)
        assert harms[index].total == pytest.approx(whole, rel=1e-3)
        order = group_plan.channel_order()
        alone = np.square(errors).mean(axis=(0, 1))[order != PADDING]
        assert np.allclose(harms[index].channels[order[order != PADDING]], alone, rtol=1e-3)


def test_predicted_damage_is_about_what_the_policy_allocated_by(tmp_path):
    """Blocks differ a little: the policy measures before channels are sorted inside classes."""
    case = Case(tmp_path)
    made = CostPolicy(target_speed=1.0).plan(case.evidence())
    found = predicted_damage(case.evidence(), [made])
    assert found.sum() == pytest.approx(made.parameters["damage"], rel=0.5)
