"""Section `stability`: how far the plan depends on the calibration data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from mmcompile.analysis.figures import format_agreement
from mmcompile.analysis.ground import (
    Observed,
    Trials,
    observe,
    plan_family,
    plan_figures,
    plan_title,
)
from mmcompile.data.dataset import CalibrationData, Sample
from mmcompile.effort import Effort
from mmcompile.plan import QuantPlan
from mmcompile.policy.options import COST, Policy
from mmcompile.policy.plan_damage import predicted_damage
from mmcompile.progress import Progress
from mmcompile.report.analysis import PlanFigures, Stability, Variant

COUNTS = (8, 32, 128)
"""Numbers of samples to calibrate with, where there are more."""


def stability_section(
    observed: Observed,
    policy: Policy,
    chosen: tuple[QuantPlan, PlanFigures],
    others: Sequence[tuple[str, CalibrationData]],
    trials: Trials,
    held_back: str,
    seed: int,
    effort: Effort,
    progress: Progress,
) -> Stability:
    """Plans the model from parts of its calibration data and from other data, and measures that.

    Args:
        observed: all calibration data.
        policy: the policy of all plans, its budget included.
        chosen: the plan from all data, and its figures.
        others: other data by name.
        trials: where plans are measured.
        held_back: name of the inputs that they are measured on.
        seed: of sampled rows and directions.
        effort: how many rows and directions are taken.
        progress: told how far it is.
    """
    prepared = observed.prepared
    found = []
    for name, data in (*parts(observed.data, observed.stats.samples), *others):
        by_cost = policy.name == COST
        seen = observe(prepared, data, policy, (), seed, effort, progress, gradients=by_cost)
        plan = seen.plan(policy)
        # One yardstick for all plans: the damage as all calibration data predicts it.
        harm = predicted_damage(
            prepared.groups, observed.stats, observed.gradients, [plan], prepared.source, progress
        )
        agreement, by_chance = format_agreement(chosen[0], plan)
        agreements = trials.agreements(plan, [held_back])[0]
        title, family = plan_title(policy), plan_family(policy)
        found.append(
            Variant(
                name=name,
                description=data.description,
                fit=data.fit,
                samples=seen.stats.samples,
                tokens=seen.stats.tokens,
                agreement=agreement,
                agreement_by_chance=by_chance,
                plan=plan_figures(title, family, plan, agreements, float(harm.sum())),
            )
        )
    return Stability(chosen=chosen[1], variants=tuple(found))


def parts(data: CalibrationData, samples: int) -> list[tuple[str, CalibrationData]]:
    """Parts of the data: smaller numbers of samples, evenly spread, and two disjoint halves.

    Args:
        data: the data.
        samples: how many samples it has.
    """
    found = []
    for count in COUNTS:
        if count < samples:
            every = samples // count
            what = f"{count} samples"
            found.append((what, _part(data, what, range(0, count * every, every))))
    if samples > 1:
        for name, first in (("first half", 0), ("second half", 1)):
            what = f"{name}: every second sample"
            found.append((name, _part(data, what, range(first, samples, 2))))
    return found


def _part(data: CalibrationData, what: str, indices: range) -> CalibrationData:
    """Some samples of data."""

    def read() -> Iterator[Sample]:
        yield from itertools.islice(data, indices.start, indices.stop, indices.step)

    description = f"{data.description}; {what}"
    return dataclasses.replace(data, description=description, count=len(indices), read=read)
