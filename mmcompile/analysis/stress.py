"""Section `stress`: how errors grow on inputs far from those that calibration saw.

Whole models run on changed inputs and on other data. Layers alone get sampled activation rows
that are scaled, or in which some channels of the chosen plan's cheapest class become outliers:
what a plan that rests on calibration has most to fear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmcompile.analysis.figures import channel_pairs, pair_rank
from mmcompile.analysis.ground import UNCHANGED, Candidate, Ground, uniform_policy
from mmcompile.data.dataset import InputSpec, Sample
from mmcompile.data.sample import number_kind
from mmcompile.dtypes import F32
from mmcompile.formats import MXFP4, MXFP8, NVFP4
from mmcompile.packed import PackedLinear, dequantize_activations, dequantize_weight
from mmcompile.pipeline.run import Run
from mmcompile.plan import GroupPlan
from mmcompile.policy.protocol import Policy
from mmcompile.progress import Silent
from mmcompile.report.analysis import LayerStress, Stress, StressErrors, StressInput
from mmcompile.report.model import EXACT_DB
from mmcompile.verification.nodes import exact_output, measured_rows, output_error

COMPARED = (MXFP4.name, NVFP4.name, MXFP8.name)
"""Uniform formats beside the chosen plan and MicroMix."""
SCALES = (4.0, 0.25)
"""Factors on inputs that are floats."""
ROW_SCALE = 16.0
"""Factor on activation rows."""
OUTLIER_SHARE = 0.01
"""Share of the cheapest class's channels that become outliers; at least one does."""
OUTLIER_SCALE = 30.0
AS_CALIBRATED, SCALED_ROWS, OUTLIERS = (
    "as calibrated",
    f"rows × {ROW_SCALE:g}",
    f"{100 * OUTLIER_SHARE:g} % outliers × {OUTLIER_SCALE:g}",
)

Change = Callable[[Sample, np.random.Generator], Sample]


@dataclass(frozen=True)
class StressSet:
    """Inputs to run on, and how they came about."""

    name: str
    kind: Literal["held back", "changed", "other"]
    description: str
    samples: tuple[Sample, ...]


def compared_plans(ground: Ground) -> list[Candidate]:
    """The chosen plan, MicroMix with the λ of the options, and uniform formats, each plan once."""
    options, evidence = ground.options, ground.observed.evidence
    policies: list[Policy] = [options.micromix_policy]
    policies += [uniform_policy(options.policy, name) for name in COMPARED]
    found = {ground.chosen.plan.digest(): ground.chosen}
    for own in policies:
        plan = own.plan(evidence)
        found.setdefault(plan.digest(), Candidate(own, plan))
    return list(found.values())


def stress_sets(
    run: Run,
    calibration: Iterable[Sample],
    samples: Sequence[Sample],
    others: Sequence[StressSet],
) -> list[StressSet]:
    """All inputs of the section: the held-back ones, changed ones, and those of other data.

    Args:
        run: the model, and the seed of random changes.
        calibration: shows which ids there are.
        samples: the held-back inputs.
        others: data of other domains.
    """
    specs, seed = run.execution.specs, run.execution.seed
    ids = [spec.name for spec in specs if _holds_ids(spec)]
    floats = [spec.name for spec in specs if number_kind(spec.dtype) == "float"]
    sets = [StressSet(UNCHANGED, "held back", "the held-back inputs as they are", tuple(samples))]
    changes: list[tuple[str, str, Change]] = []
    if ids:
        ranges = id_ranges(calibration, ids)
        shown = ", ".join(f"{name} {low} to {high}" for name, (low, high) in ranges.items())
        changes += [
            (
                "random tokens",
                f"uniform random ids in the range seen: {shown}",
                _random_ids(ranges),
            ),
            ("shuffled tokens", "the ids of every sample in random order", _shuffled(ids)),
        ]
    if floats:
        named = ", ".join(floats)
        changes += [
            (f"inputs × {factor:g}", f"{named} times {factor:g}", _scaled(floats, factor))
            for factor in SCALES
        ]
        what = f"normal random numbers of the same mean and deviation in {named}"
        changes.append(("gaussian noise", what, _noise(floats)))
    for number, (name, description, change) in enumerate(changes):
        generator = np.random.default_rng([seed, number])
        changed = tuple(change(sample, generator) for sample in samples)
        sets.append(StressSet(name, "changed", description, changed))
    return [*sets, *others]


def stress_section(ground: Ground, sets: Sequence[StressSet]) -> Stress:
    """Measures plans' models on all inputs, and their layers on changed rows.

    Args:
        ground: the chosen plan, and what others are made of.
        sets: inputs, the held-back ones first.
    """
    plans, trials = compared_plans(ground), ground.trials
    keys = [UNCHANGED, *(f"stress {number}" for number in range(1, len(sets)))]
    for key, each in zip(keys[1:], sets[1:], strict=True):
        trials.add(key, each.samples, Silent())
    rows = tuple(
        StressErrors(
            plan=candidate.policy.title,
            family=candidate.policy.family,
            chosen=candidate.chosen,
            errors=tuple(trials.errors(candidate.plan, keys)),
        )
        for candidate in ground.progress.track(plans, "stressing plans", len(plans))
    )
    return Stress(
        inputs=tuple(StressInput(s.name, s.kind, s.description, len(s.samples)) for s in sets),
        plans=rows,
        layers=stressed_layers(ground, plans),
    )


def stressed_layers(ground: Ground, plans: Sequence[Candidate]) -> tuple[LayerStress, ...]:
    """SQNR of layers alone on sampled rows, as they are and changed, by plan and case."""
    evidence, seed = ground.observed.evidence, ground.observed.run.execution.seed
    groups = evidence.groups
    found: dict[tuple[int, str], list[tuple[str, float]]] = {}
    for index, sites in enumerate(ground.progress.track(groups, "stressing layers", len(groups))):
        rows = evidence.tensor(sites).rows
        if not rows.size:
            continue
        generator = np.random.default_rng([seed, index])
        cases = changed_rows(measured_rows(rows), plans[0].plan.groups[index], generator)
        with np.errstate(over="ignore"):
            exact = {case: exact_output(sites, x, evidence.source) for case, x in cases.items()}
        for number, candidate in enumerate(plans):
            packed = ground.trials.packed(candidate.plan, index)
            plan = candidate.plan.groups[index]
            for case, value in _layer_sqnr(packed, plan, cases, exact).items():
                found.setdefault((number, case), []).append((sites.name, value))
    return tuple(
        _layer_stress(candidate.policy.title, case, found[number, case], before)
        for number, candidate in enumerate(plans)
        if (before := found.get((number, AS_CALIBRATED)))
        for case in (AS_CALIBRATED, SCALED_ROWS, OUTLIERS)
    )


def changed_rows(rows: F32, plan: GroupPlan, generator: np.random.Generator) -> dict[str, F32]:
    """Rows[R, K] as they are, scaled, and with outliers in a plan's cheapest class."""
    pairs = channel_pairs(plan)
    cheapest = min(set(pairs), key=pair_rank)
    members = np.flatnonzero([pair == cheapest for pair in pairs])
    count = max(1, round(OUTLIER_SHARE * members.size))
    factors = np.ones(plan.in_channels, np.float32)
    factors[generator.choice(members, count, replace=False)] = OUTLIER_SCALE
    return {
        AS_CALIBRATED: rows,
        SCALED_ROWS: rows * np.float32(ROW_SCALE),
        OUTLIERS: rows * factors,
    }


def id_ranges(data: Iterable[Sample], names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The least and the largest id of every input that holds ids."""
    found: dict[str, tuple[int, int]] = {}
    for sample in data:
        for name in names:
            values = sample[name]
            if values.size:
                low, high = int(values.min()), int(values.max())
                before = found.get(name, (low, high))
                found[name] = (min(low, before[0]), max(high, before[1]))
    return found


def _holds_ids(spec: InputSpec) -> bool:
    """Whether an input holds ids of tokens; masks, positions and token types are no such."""
    if number_kind(spec.dtype) != "integer" or spec.dtype.kind == "b":
        return False
    others = ("attention_mask", "position_ids", "token_type_ids")
    return len(spec.shape) > 0 and not any(name in spec.name for name in others)


def _random_ids(ranges: Mapping[str, tuple[int, int]]) -> Change:
    def change(sample: Sample, generator: np.random.Generator) -> Sample:
        changed = dict(sample)
        for name, (low, high) in ranges.items():
            values = generator.integers(low, high, sample[name].shape, endpoint=True)
            changed[name] = values.astype(sample[name].dtype)
        return changed

    return change


def _shuffled(names: Sequence[str]) -> Change:
    def change(sample: Sample, generator: np.random.Generator) -> Sample:
        changed = dict(sample)
        for name in names:
            changed[name] = generator.permuted(sample[name], axis=-1)
        return changed

    return change


def _scaled(names: Sequence[str], factor: float) -> Change:
    def change(sample: Sample, generator: np.random.Generator) -> Sample:
        del generator
        scaled = {name: (sample[name] * factor).astype(sample[name].dtype) for name in names}
        return dict(sample) | scaled

    return change


def _noise(names: Sequence[str]) -> Change:
    def change(sample: Sample, generator: np.random.Generator) -> Sample:
        changed = dict(sample)
        for name in names:
            values = sample[name].astype(np.float64)
            noise = generator.normal(values.mean(), values.std(), values.shape)
            changed[name] = noise.astype(sample[name].dtype)
        return changed

    return change


def _layer_sqnr(
    packed: PackedLinear,
    plan: GroupPlan,
    cases: Mapping[str, F32],
    exact: Mapping[str, F32],
) -> dict[str, float]:
    """Output SQNR in dB of one group under one plan, by case."""
    weight = dequantize_weight(packed, plan)
    with np.errstate(over="ignore", invalid="ignore"):  # then the SQNR is NaN, and not shown
        return {
            case: output_error(
                exact[case], dequantize_activations(x, plan) @ weight.T
            ).output_sqnr_db
            for case, x in cases.items()
        }


def _layer_stress(
    plan: str,
    case: str,
    found: Sequence[tuple[str, float]],
    before: Sequence[tuple[str, float]],
) -> LayerStress:
    """Figures over layers; losses are against the rows as they are."""
    values = np.clip([value for _, value in found], -EXACT_DB, EXACT_DB)
    unchanged = np.clip([value for _, value in before], -EXACT_DB, EXACT_DB)
    losses = unchanged - values
    worst = int(values.argmin())
    is_changed = case != AS_CALIBRATED
    return LayerStress(
        plan=plan,
        case=case,
        median_sqnr_db=float(np.median(values)),
        worst_sqnr_db=float(values[worst]),
        worst_layer=found[worst][0],
        median_loss_db=float(np.median(losses)) if is_changed else None,
        worst_loss_db=float(losses.max()) if is_changed else None,
    )
