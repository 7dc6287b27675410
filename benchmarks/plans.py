"""Plans to compare: MicroMix with its thresholds swept, the policy `cost`, and what they cost."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from benchmarks.subjects import TARGET, Subject, stats
from mmcompile.formats import NVFP4
from mmcompile.pipeline.evidence import evidence_of, sensed
from mmcompile.plan import QuantPlan
from mmcompile.policy.budget import CLASSES
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Evidence, Needs, Policy
from mmcompile.targets.target import FormatPair

FACTORS = tuple(float(x) for x in np.geomspace(0.15, 14, 32))
"""The λ that MicroMix is tried with."""
MX_CLASSES = tuple(name for name in CLASSES if name != NVFP4.name)


def planned(subject: Subject, policy: Policy, seed: int = 0) -> QuantPlan:
    """The plan of a model under a policy; the seed chooses rows and directions of `cost`."""
    return policy.plan(_evidence(subject, policy.ratios, policy.needs, seed))


@functools.lru_cache(maxsize=16)
def _evidence(subject: Subject, ratios: tuple[float, ...], needs: Needs, seed: int) -> Evidence:
    """What is known of a model; all budgets of a policy share the damage that it remembers."""
    run, found = subject.run, stats(subject, ratios)
    if needs < Needs.GRADIENTS:
        return evidence_of(run, found)
    seeded = dataclasses.replace(run, execution=dataclasses.replace(run.execution, seed=seed))
    return evidence_of(run, found, sensed(seeded, subject.data, found.samples))


def micromix(subject: Subject, granularity: int) -> Iterator[QuantPlan]:
    """MicroMix with every λ of `FACTORS`, from one pass over the data."""
    policies = [MicroMixPolicy(factor=f, granularity=granularity) for f in FACTORS]
    ratios = tuple(ratio for policy in policies for ratio in policy.ratios)
    evidence = evidence_of(subject.run, stats(subject, ratios))
    for policy in policies:
        yield policy.plan(evidence)


def speed_cost(plan: QuantPlan) -> float:
    """Mean tensor-core cost of a plan's multiplications; 1 is all FP4, 2 no FP4."""
    return TARGET.plan_speed_cost(plan.groups)


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
