"""The damage D that a plan is predicted to do, whatever policy made it.

The policy `cost` measures D for the formats it may choose. Here the same formula (`sensitivity`)
is evaluated for plans that are given: activations and weights are quantized as the plan says, with
its order, its segments and its scales, and weights are rounded to nearest. So plans of all
policies have damages that compare, and every channel of a plan has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.calib.gradient_rows import GradientSamples, GroupRows
from mmcompile.calib.stats import ActivationStats
from mmcompile.model import SourceModel
from mmcompile.model.sites import SiteGroup
from mmcompile.plan import PADDING, QuantPlan
from mmcompile.policy.cost import mean_response, synthetic_rows, tokens_per_sample
from mmcompile.policy.options import watched_tensor
from mmcompile.policy.sensitivity import contributions, exact_response, mean_squares
from mmcompile.progress import Progress

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

RUN = 128
"""Channels whose errors add up before they are squared."""


@dataclass(frozen=True)
class GroupHarm:
    """What a plan is predicted to do through one group.

    Attributes:
        total: D of the group.
        channels: float64[K], D of every source channel alone. Errors of the channels of a run
            partly cancel or add up, so that these do not sum to `total`.
    """

    total: float
    channels: F64


def predicted_damage(
    groups: Sequence[SiteGroup],
    stats: ActivationStats,
    samples: GradientSamples,
    plans: Sequence[QuantPlan],
    source: SourceModel,
    progress: Progress,
) -> F64:
    """D of every group under every plan: float64[plans, groups]. A plan's D is the sum of its row.

    One group is in memory at a time. Runs are cut at every `RUN` channels, so that the figure
    differs a little from the one that the policy allocated by.

    Args:
        groups: the model's groups, each planned by all plans.
        stats: the calibration statistics.
        samples: the sampled gradients.
        plans: the plans.
        source: where the weights lie.
        progress: told after every group.
    """
    found = np.zeros((len(plans), len(groups)))
    rows_of = _weighted_rows(groups, stats, samples, source)
    tracked = progress.track(rows_of, "predicting damage", len(groups))
    for index, (group, rows, factor) in enumerate(tracked):
        exact = exact_response(group, source, rows)
        for number, plan in enumerate(plans):
            errors = contributions(group, plan.groups[index], source, rows, exact)
            found[number, index] = factor * _damage_of_runs(errors)
    return found


def channel_damage_of(
    groups: Sequence[SiteGroup],
    stats: ActivationStats,
    samples: GradientSamples,
    plan: QuantPlan,
    source: SourceModel,
    progress: Progress,
) -> Iterator[GroupHarm]:
    """D of every group and of its channels, group by group.

    Args:
        groups: the model's groups.
        stats: the calibration statistics.
        samples: the sampled gradients.
        plan: the plan of all groups.
        source: where the weights lie.
        progress: told after every group.
    """
    rows_of = _weighted_rows(groups, stats, samples, source)
    tracked = progress.track(rows_of, "damage of channels", len(groups))
    for index, (group, rows, factor) in enumerate(tracked):
        decided = plan.groups[index]
        exact = exact_response(group, source, rows)
        errors = contributions(group, decided, source, rows, exact)
        order = decided.channel_order()
        real = order != PADDING
        alone = np.zeros(group.in_channels)
        alone[order[real]] = factor * mean_squares(errors)[real]
        yield GroupHarm(factor * _damage_of_runs(errors), alone)


def _weighted_rows(
    groups: Sequence[SiteGroup],
    stats: ActivationStats,
    samples: GradientSamples,
    source: SourceModel,
) -> Iterator[tuple[SiteGroup, GroupRows, float]]:
    """The sampled rows of every group and how often it is used, as `measure_damage` has them."""
    tensors = [stats.tensors[watched_tensor(group).key] for group in groups]
    tokens = [tokens_per_sample(tensor) for tensor in tensors]
    most = max(tokens, default=1.0) or 1.0
    response = mean_response(groups, samples, source)
    for group, tensor, count in zip(groups, tensors, tokens, strict=True):
        rows = samples.groups.get(group.name)
        if rows is None:
            rows = synthetic_rows(group, tensor, source, response)
        yield group, rows, count / most


def _damage_of_runs(errors: F32) -> float:
    """D of contributions[D, R, K_pad]: runs of `RUN` channels, whose squares are summed."""
    starts = np.arange(0, errors.shape[2], RUN)
    return float(mean_squares(np.add.reduceat(errors, starts, axis=2)).sum())
