"""Second stage of the policy `cost`: gradients of the linears' outputs, cached, and the plan."""

from __future__ import annotations

import contextlib
import dataclasses

import msgspec

from mmcompile.cache import cache_folder, cache_key
from mmcompile.calib import gradient_rows
from mmcompile.calib.gradient_rows import GradientSamples, collect_rows
from mmcompile.calib.stats import ActivationStats
from mmcompile.data.dataset import CalibrationData
from mmcompile.effort import WORK, Effort
from mmcompile.pipeline.prepare import Prepared, input_specs
from mmcompile.pipeline.search import smallest_within
from mmcompile.pipeline.weights import InputsOf, no_inputs
from mmcompile.plan import QuantPlan
from mmcompile.policy.cost import measure_damage, plan_cost
from mmcompile.policy.options import Policy
from mmcompile.policy.pairs import Budget
from mmcompile.progress import Progress


def plan_by_cost(
    prepared: Prepared,
    data: CalibrationData,
    stats: ActivationStats,
    policy: Policy,
    seed: int,
    progress: Progress,
    effort: Effort = Effort.BALANCED,
    inputs_of: InputsOf = no_inputs,
) -> QuantPlan:
    """The plan of the policy `cost`.

    Args:
        prepared: the model.
        data: the calibration data.
        stats: statistics of the layers' inputs.
        policy: budget, classes, scales.
        seed: of sampled rows and directions.
        progress: told how far the stages are.
        effort: how many rows and directions are taken.
        inputs_of: sampled inputs for error feedback, which `max_error` is measured with.

    Raises:
        UsageError: no choice of formats meets the budget, or none the largest error allowed.
    """
    samples = sensed(prepared, data, stats.samples, seed, progress, effort)
    damage = measure_damage(prepared.groups, stats, samples, policy, prepared.source, progress)

    def planned(budget: Budget) -> QuantPlan:
        asked = dataclasses.replace(policy, target=budget, max_error=None)
        return plan_cost(
            prepared.groups,
            stats,
            samples,
            damage,
            asked,
            prepared.source,
            prepared.left_alone,
            orders_classes=WORK[effort].is_thorough(prepared.groups),
        )

    if policy.max_error is None:
        return planned(policy.target)
    plan = smallest_within(
        prepared, data, planned, policy.objective, policy.max_error, progress, inputs_of
    )
    parameters = plan.parameters | {"max_error": policy.max_error}
    return msgspec.structs.replace(plan, parameters=parameters)


def sensed(
    prepared: Prepared,
    data: CalibrationData,
    samples: int,
    seed: int,
    progress: Progress,
    effort: Effort = Effort.BALANCED,
) -> GradientSamples:
    """Sampled gradients of all groups, from the cache or from runs of the model.

    Args:
        prepared: the model.
        data: the calibration data.
        samples: how many samples it has.
        seed: of the choice of rows and directions.
        progress: told after every sample.
        effort: how many rows and directions are taken.
    """
    if not prepared.groups:
        return GradientSamples({}, {})
    work = WORK[effort]
    key = cache_key(
        gradient_rows.ROWS_VERSION,
        gradient_rows.ROW_BYTES,
        gradient_rows.ROW_WEIGHTS,
        (work.gradient_samples, work.gradient_rows, work.directions),
        prepared.source.digest(),
        data.digest(),
        [(group.name, [site.output for site in group.sites]) for group in prepared.groups],
        seed,
    )
    path = cache_folder() / "gradients" / f"{key}.npz"
    found = GradientSamples.load(path)
    if found is not None:
        return found
    specs = input_specs(prepared.runnable)
    found = collect_rows(
        prepared.source,
        prepared.runnable,
        prepared.groups,
        data,
        specs,
        samples,
        progress,
        seed,
        work,
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return found
