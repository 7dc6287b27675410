"""The order inside classes: the least damage of the candidates, by a product made here."""

import dataclasses
import itertools

import msgspec
import numpy as np
import pytest
from onnx import numpy_helper

from mmcompile.calib.gradient_rows import GradientSamples, GroupRows
from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.stats import ActivationStats
from mmcompile.packed import dequantize_activations, dequantize_weight
from mmcompile.plan import PADDING, format_order
from mmcompile.policy.class_order import (
    ROW_STEP,
    candidate_keys,
    clearly_least,
    in_best_order,
    sorted_classes,
)
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.registry import make_policy
from mmcompile.targets.target import Objective
from mmcompile.weights.pack import pack_group
from tests import models
from tests.policy.cases import Case, planned, stats_of


def block_damage(case, index, plan):
    """D per token and segment in runs of 32, float64, from what the packed bytes mean."""
    group = case.groups[index]
    rows, order = case.samples.groups[group.name], plan.channel_order()
    rows = GroupRows(rows.activations[::ROW_STEP], rows.gradients[:, ::ROW_STEP])
    real, source = order != PADDING, np.maximum(order, 0)
    weight = dequantize_weight(pack_group(group, plan, case.source), plan).astype(np.float64)
    g = rows.gradients.astype(np.float64)
    exact = rows.activations[:, source] * (g @ case.weight(index)[:, source]) * real
    errors = dequantize_activations(rows.activations, plan) * (g @ weight) - exact
    blocks = np.square(errors.reshape(*errors.shape[:2], -1, 32).sum(axis=3)).mean(axis=0)
    ends = np.cumsum([segment.channels // 32 for segment in plan.segments])[:-1]
    return np.stack([part.sum(axis=1) for part in np.split(blocks, ends, axis=1)], axis=1)


def in_order_of(plan, key):
    order = sorted_classes(plan.channel_order(), plan.segments, key)
    return msgspec.structs.replace(plan, order=format_order(order))


def test_chance_decides_no_order():
    generator = np.random.default_rng(0)
    damage = np.repeat(generator.exponential(size=(1, 400, 1)), 3, axis=0)
    damage = np.concatenate([damage, damage, damage], axis=2)
    # Differences from the first order, of standard error 0.01: half of it, and eight times as much.
    noise = generator.standard_normal((400, 1)) * 0.2
    noise -= noise.mean()
    damage[1, :, 1:2] += noise - 0.005
    damage[2, :, 2:] += noise - 0.08
    assert damage[1, :, 1].mean() < damage[0, :, 1].mean()
    assert clearly_least(damage).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"target_speed": 1},
        {"target_speed": 1.4},
        {"target_bits": 5.5, "objective": Objective.DECODE},
    ],
)
def test_every_class_has_the_best_of_the_orders(options, tmp_path):
    case = Case(tmp_path, seed=1)
    for index, plan in enumerate(planned(case, **options).groups):
        keys = candidate_keys(
            case.stats.tensors[watched_tensor(case.groups[index]).key], len(plan.segments)
        )
        assert len(keys) == 3
        others = [in_order_of(plan, key) for key in keys]
        damage = np.array([block_damage(case, index, other) for other in others])
        best = clearly_least(damage)
        found = block_damage(case, index, plan).mean(axis=0)
        wanted = damage.mean(axis=1)[best, np.arange(len(best))]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_one_class_in_natural_order_is_the_uniform_policy(tmp_path):
    """Blocks of 32 channels of one size in the model's own order, weights of another."""
    model = models.matmul()
    sizes = np.repeat([1.0, 8.0, 64.0], 32).astype(np.float32)
    weight = models.weight(models.K, models.N) * sizes[:, None]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "W"))
    case = Case(tmp_path, model)
    (group,) = case.groups
    x = np.random.default_rng(2).uniform(0.5, 1.5, (64, models.K)).astype(np.float32) / sizes
    stats = stats_of(x)
    # What is sorted by says nothing about the blocks here.
    scrambled = np.random.default_rng(3).permutation(models.K).astype(np.float32)
    stats = dataclasses.replace(stats, abs_max=1 + scrambled, mean_abs=scrambled[::-1] + 1.0)
    case.stats = ActivationStats({watched_tensor(group).key: stats}, "", True, 0)
    gradients = np.random.default_rng(4).standard_normal((2, 64, models.N)).astype(np.float32)
    case.samples = GradientSamples({group.name: GroupRows(x, gradients)}, {})
    plan = planned(case, classes=("mxfp4", "mxfp8"), target_speed=1)
    uniform = make_policy("mxfp4").plan(case.evidence())
    (mine,), (theirs,) = plan.groups, uniform.groups
    assert (mine.segments, mine.order) == (theirs.segments, theirs.order)


def test_equal_damage_goes_to_the_first_order(tmp_path):
    """Powers of two that FP4 holds exactly: no order does any damage."""
    model = models.matmul()
    random = np.random.default_rng(5)
    weight = random.choice([-1.0, 1.0], (models.K, models.N)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "W"))
    case = Case(tmp_path, model)
    (group,) = case.groups
    x = random.choice([1.0, 2.0, 4.0], models.K).astype(np.float32) * np.ones((8, 1), np.float32)
    case.stats = ActivationStats({watched_tensor(group).key: stats_of(x)}, "", True, 0)
    gradients = random.integers(-2, 3, (1, 8, models.N)).astype(np.float32)
    rows = GroupRows(x, gradients)
    case.samples = GradientSamples({group.name: rows}, {})
    (plan,) = planned(case, classes=("mxfp4", "mxfp8"), target_speed=1).groups
    keys = candidate_keys(case.stats.tensors[watched_tensor(group).key], 2)
    for first, second in itertools.permutations(keys[::2]):
        found = in_best_order(group, plan, (first, second), case.source, rows)
        order = sorted_classes(plan.channel_order(), plan.segments, first)
        assert found.order == format_order(order)


def test_sorting_stays_inside_classes_and_keeps_padding_in_front():
    policy = CostPolicy()
    segments = [policy.segment(n, "mxfp4", "mxfp4") for n in (3, 2)]
    order = np.array([4, PADDING, 0, 3, 2], np.int32)
    found = sorted_classes(order, segments, np.array([9.0, 1.0, 5.0, 5.0, 7.0]))
    assert found.tolist() == [PADDING, 4, 0, 2, 3]


def test_a_layer_of_one_class_starts_from_the_natural_order(tmp_path):
    case = Case(tmp_path)
    tensor = case.stats.tensors[watched_tensor(case.groups[0]).key]
    assert np.array_equal(candidate_keys(tensor, 1)[0], np.arange(len(tensor.abs_max)))
    assert np.array_equal(candidate_keys(tensor, 2)[0], tensor.abs_max)
