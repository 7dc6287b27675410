"""Section `stability`: how far the plan depends on the calibration data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from mmcompile.analysis.figures import format_agreement
from mmcompile.analysis.ground import Candidate, Ground, observe
from mmcompile.data.dataset import CalibrationData, Sample
from mmcompile.policy.plan_damage import predicted_damage
from mmcompile.policy.protocol import Needs
from mmcompile.report.analysis import PlanFigures, Stability, Variant

COUNTS = (8, 32, 128)
"""Numbers of samples to calibrate with, where there are more."""


def stability_section(
    ground: Ground, figures: PlanFigures, others: Sequence[tuple[str, CalibrationData]]
) -> Stability:
    """Plans the model from parts of its calibration data and from other data, and measures that.

    Args:
        ground: all calibration data, and the chosen plan.
        figures: of the chosen plan.
        others: other data by name.
    """
    observed, policy = ground.observed, ground.chosen.policy
    senses = policy.needs >= Needs.GRADIENTS
    found = []
    for name, data in (*parts(observed.data, observed.stats.samples), *others):
        seen = observe(observed.run, data, policy.ratios, gradients=senses)
        plan = policy.plan(seen.evidence)
        # One yardstick for all plans: the damage as all calibration data predicts it.
        harm = predicted_damage(observed.evidence, [plan])
        agreement, by_chance = format_agreement(ground.chosen.plan, plan)
        found.append(
            Variant(
                name=name,
                description=data.description,
                fit=data.fit,
                samples=seen.stats.samples,
                tokens=seen.stats.tokens,
                agreement=agreement,
                agreement_by_chance=by_chance,
                plan=ground.figures(Candidate(policy, plan), float(harm.sum())),
            )
        )
    return Stability(chosen=figures, variants=tuple(found))


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
