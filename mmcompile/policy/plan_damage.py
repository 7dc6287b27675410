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

from mmcompile.dtypes import F32, F64
from mmcompile.plan import PADDING, QuantPlan
from mmcompile.policy.cost_plan import mean_response, synthetic_rows, tokens_per_sample
from mmcompile.policy.protocol import Evidence
from mmcompile.policy.sensitivity import Sampled, contributions, mean_squares

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


def predicted_damage(evidence: Evidence, plans: Sequence[QuantPlan]) -> F64:
    """D of every group under every plan: float64[plans, groups]. A plan's D is the sum of its row.

    One group is in memory at a time. Runs are cut at every `RUN` channels, so that the figure
    differs a little from the one that the policy allocated by.

    Args:
        evidence: what is known of the model, gradients included.
        plans: the plans of all groups.
    """
    count = len(evidence.groups)
    found = np.zeros((len(plans), count))
    tracked = evidence.progress.track(_weighted_rows(evidence), "predicting damage", count)
    for index, (sampled, factor) in enumerate(tracked):
        for number, plan in enumerate(plans):
            errors = contributions(sampled, plan.groups[index])
            found[number, index] = factor * _damage_of_runs(errors)
    return found


def channel_damage_of(evidence: Evidence, plan: QuantPlan) -> Iterator[GroupHarm]:
    """D of every group and of its channels, group by group.

    Args:
        evidence: what is known of the model, gradients included.
        plan: the plan of all groups.
    """
    count = len(evidence.groups)
    tracked = evidence.progress.track(_weighted_rows(evidence), "damage of channels", count)
    for index, (sampled, factor) in enumerate(tracked):
        decided = plan.groups[index]
        errors = contributions(sampled, decided)
        order = decided.channel_order()
        real = order != PADDING
        alone = np.zeros(sampled.group.in_channels)
        alone[order[real]] = factor * mean_squares(errors)[real]
        yield GroupHarm(factor * _damage_of_runs(errors), alone)


def _weighted_rows(evidence: Evidence) -> Iterator[tuple[Sampled, float]]:
    """The sampled rows of every group and how often it is used, as `measure_damage` has them."""
    samples, source = evidence.gradients, evidence.source
    assert samples is not None  # damage is predicted where gradients were taken
    tensors = [evidence.tensor(group) for group in evidence.groups]
    tokens = [tokens_per_sample(tensor) for tensor in tensors]
    most = max(tokens, default=1.0) or 1.0
    response = mean_response(evidence.groups, samples, source)
    for group, tensor, count in zip(evidence.groups, tensors, tokens, strict=True):
        rows = samples.groups.get(group.name)
        if rows is None:
            rows = synthetic_rows(group, tensor, source, response)
        yield Sampled(group, source, rows), count / most


def _damage_of_runs(errors: F32) -> float:
    """D of contributions[D, R, K_pad]: runs of `RUN` channels, whose squares are summed."""
    starts = np.arange(0, errors.shape[2], RUN)
    return float(mean_squares(np.add.reduceat(errors, starts, axis=2)).sum())
