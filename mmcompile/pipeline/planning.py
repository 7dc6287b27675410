"""Planning without compiling: calibrate, or merge statistics taken apart, and write the plan."""

from __future__ import annotations

import functools
from pathlib import Path

from mmcompile.calib.collect import ROW_LIMIT
from mmcompile.calib.stats import ActivationStats, merge
from mmcompile.data.dataset import CalibrationData
from mmcompile.effort import Effort, Weights
from mmcompile.errors import UsageError
from mmcompile.model.passes.find_linears import Selection
from mmcompile.output import disk_errors
from mmcompile.pipeline.calibrate import calibrated, open_inputs
from mmcompile.pipeline.files import check_target, write_text
from mmcompile.pipeline.options import DataOptions
from mmcompile.pipeline.prepare import Prepared, prepare
from mmcompile.pipeline.sense import plan_by_cost
from mmcompile.pipeline.uncalibrated import decides_without_data, plan_without_data
from mmcompile.pipeline.weights import WeightInputs, weights_in_force
from mmcompile.plan import QuantPlan, dump_plan
from mmcompile.policy.options import COST, Policy, make_plan, watched_tensor
from mmcompile.progress import Progress


def make_plan_file(
    model: Path,
    output: Path,
    *,
    data: DataOptions,
    policy: Policy,
    effort: Effort = Effort.BALANCED,
    weights: Weights | None = None,
    selection: Selection,
    shards: tuple[Path, ...],
    save_stats: Path | None,
    progress: Progress,
) -> str:
    """Writes a plan; returns a line that says what was planned.

    Args:
        model: the ONNX model.
        output: the plan to write; not one of the files that are read.
        data: calibration data; not needed with `shards`. All of it is used: nothing is held back.
        policy: how precision is assigned.
        effort: how much computing planning may take.
        weights: how weights are rounded in what a largest error is measured with; None is what
            compiling does by default.
        selection: which linears to take.
        shards: statistics to merge instead of calibrating.
        save_stats: where to write the statistics, or None.
        progress: told how far calibration is.
    """
    _check_sources(data, policy, shards, save_stats)
    prepared = prepare(model, selection)
    for target in (output, save_stats):
        if target is not None:
            check_target(target, (*prepared.source.files, *shards))
    if shards or data.calibration is not None or not decides_without_data(policy):
        stats, seen = _statistics(prepared, data, policy, shards, progress)
        if policy.name == COST:
            assert seen is not None  # as statistics alone are refused
            plan = _planned_by_cost(
                prepared, seen, stats, policy, data.seed, progress, effort, weights
            )
        else:
            plan = make_plan(prepared.groups, stats, policy, prepared.source, prepared.left_alone)
        if save_stats is not None:
            with disk_errors(save_stats):
                stats.save(save_stats)
    else:
        plan = plan_without_data(prepared, policy)
    write_text(output, dump_plan(plan))
    bits = plan.mean_weight_bits()
    return f"wrote {output}: {len(plan.groups)} groups, {bits:.2f} bits per weight on average"


def _planned_by_cost(
    prepared: Prepared,
    data: CalibrationData,
    stats: ActivationStats,
    policy: Policy,
    seed: int,
    progress: Progress,
    effort: Effort,
    weights: Weights | None,
) -> QuantPlan:
    """The plan of the policy `cost`; only a largest error asks how weights are rounded."""
    method, _ = weights_in_force(weights, effort, policy.name, data)
    with WeightInputs(prepared, data, method, effort, seed, progress) as sampled:
        return plan_by_cost(prepared, data, stats, policy, seed, progress, effort, sampled)


def _check_sources(
    data: DataOptions, policy: Policy, shards: tuple[Path, ...], save_stats: Path | None
) -> None:
    """Refuses sources of statistics that contradict each other, or that the policy cannot use."""
    if shards and data.calibration is not None:
        reason = "statistics and data were both given"
        remedy = "save the data's statistics with --save-stats first, then merge all with --stats"
        raise UsageError("two-sources", "--stats", reason, remedy)
    if save_stats is not None and not shards and data.calibration is None:
        reason = "there is no data to take statistics from"
        raise UsageError("no-calibration-data", "--save-stats", reason, "give --calib, too")
    if policy.name == COST and shards:
        reason = "the policy cost needs gradients, which saved statistics do not hold"
        remedy = "give --calib instead of --stats, or add --policy micromix"
        raise UsageError("no-calibration-data", "--stats", reason, remedy)
    if policy.name == COST and save_stats is not None:
        reason = "the policy cost cannot plan from saved statistics: they hold no gradients"
        remedy = "leave it out, or add the policy to merge them for, such as --policy micromix"
        raise UsageError("option-without-effect", "--save-stats", reason, remedy)


def _statistics(
    prepared: Prepared,
    data: DataOptions,
    policy: Policy,
    shards: tuple[Path, ...],
    progress: Progress,
) -> tuple[ActivationStats, CalibrationData | None]:
    """The statistics, and the data that they were taken from where it is at hand."""
    if shards:
        return _merged(prepared, shards), None
    inputs = open_inputs(prepared, data, hold_back_some=False)
    stats, _ = calibrated(prepared, inputs.calibration, policy.ratios, data.seed, progress)
    return stats, inputs.calibration


def _merged(prepared: Prepared, shards: tuple[Path, ...]) -> ActivationStats:
    loaded = [ActivationStats.load(path) for path in shards]
    for path, stats in zip(shards, loaded, strict=True):
        for group in prepared.groups:
            tensor = stats.tensors.get(watched_tensor(group).key)
            if tensor is None or tensor.channels != group.in_channels:
                raise UsageError(
                    "stats-mismatch",
                    path,
                    f"it has no statistics of tensor {group.input} with K = {group.in_channels}",
                    "use statistics of this model, taken with the same --include and --exclude",
                )
    keys = loaded[0].tensors.keys()
    for path, stats in zip(shards, loaded, strict=True):
        if stats.tensors.keys() != keys:
            reason = "it covers other tensors than the first shard"
            raise UsageError("stats-mismatch", path, reason, "calibrate all shards alike")
    join = functools.partial(merge, max_rows=ROW_LIMIT)
    return ActivationStats(
        {key: functools.reduce(join, (s.tensors[key] for s in loaded)) for key in keys},
        " + ".join(sorted({stats.description for stats in loaded})),
        all(stats.fit for stats in loaded),
        sum(stats.masked_tokens for stats in loaded),
    )
