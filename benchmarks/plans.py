"""Plans to compare: MicroMix with its thresholds swept, the policy `cost`, and what they cost."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from benchmarks.subjects import Subject, stats
from mmcompile.analysis.figures import speed_cost
from mmcompile.calib.gradient_rows import GradientSamples
from mmcompile.pipeline import sense
from mmcompile.plan import QuantPlan
from mmcompile.policy.cost import GroupDamage, measure_damage, plan_cost
from mmcompile.policy.options import COST, MICROMIX, Policy, make_plan
from mmcompile.policy.pairs import CLASSES, NO_BUDGET, NVFP4, FormatPair
from mmcompile.progress import Silent

FACTORS = tuple(float(x) for x in np.geomspace(0.15, 14, 32))
"""The λ that MicroMix is tried with."""
MX_CLASSES = tuple(name for name in CLASSES if name != NVFP4)


def planned(subject: Subject, policy: Policy, seed: int = 0) -> QuantPlan:
    """The plan of a model under a policy; the seed chooses rows and directions of `cost`."""
    prepared, found = subject.prepared, stats(subject, policy.ratios)
    if policy.name == COST:
        samples, damage = _measured(subject, dataclasses.replace(policy, target=NO_BUDGET), seed)
        return plan_cost(
            prepared.groups, found, samples, damage, policy, prepared.source, prepared.left_alone
        )
    return make_plan(prepared.groups, found, policy, prepared.source, prepared.left_alone)


@functools.lru_cache(maxsize=16)
def _measured(
    subject: Subject, policy: Policy, seed: int
) -> tuple[GradientSamples, tuple[GroupDamage, ...]]:
    """Gradients, and the damage that all budgets of a policy share."""
    prepared, found = subject.prepared, stats(subject, policy.ratios)
    samples = sense.sensed(prepared, subject.data, found.samples, seed, Silent())
    damage = measure_damage(prepared.groups, found, samples, policy, prepared.source, Silent())
    return samples, damage


def micromix(subject: Subject, granularity: int) -> Iterator[QuantPlan]:
    """MicroMix with every λ of `FACTORS`, from one pass over the data."""
    policies = [Policy(MICROMIX, factor=f, granularity=granularity) for f in FACTORS]
    found = stats(subject, tuple(ratio for policy in policies for ratio in policy.ratios))
    prepared = subject.prepared
    for policy in policies:
        yield make_plan(prepared.groups, found, policy, prepared.source, prepared.left_alone)


def closest(plans: Iterable[QuantPlan], cost: float) -> QuantPlan:
    """The plan whose tensor-core cost comes closest to the one asked for."""
    return min(plans, key=lambda plan: abs(speed_cost(plan) - cost))


def with_e2m3(plan: QuantPlan) -> QuantPlan:
    """A plan with E2M3 wherever it has E3M2."""

    def exchanged(fmt: str) -> str:
        return "mxfp6_e2m3" if fmt == "mxfp6_e3m2" else fmt

    groups = []
    for group in plan.groups:
        segments = tuple(
            msgspec.structs.replace(
                segment,
                act_format=exchanged(segment.act_format),
                weight_format=exchanged(segment.weight_format),
                act_threshold=1.875 if "6" in segment.act_format else segment.act_threshold,
                weight_threshold=1.875 if "6" in segment.act_format else segment.weight_threshold,
            )
            for segment in group.segments
        )
        groups.append(msgspec.structs.replace(group, segments=segments))
    return msgspec.structs.replace(plan, groups=tuple(groups))


def in_pair(plan: QuantPlan, pair: FormatPair) -> QuantPlan:
    """A plan with one pair of formats everywhere."""
    groups = tuple(
        msgspec.structs.replace(
            group,
            segments=tuple(
                msgspec.structs.replace(s, act_format=pair.act, weight_format=pair.weight)
                for s in group.segments
            ),
        )
        for group in plan.groups
    )
    return msgspec.structs.replace(plan, groups=groups)
