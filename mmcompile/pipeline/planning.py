"""Planning without compiling: calibrate, or merge statistics taken apart, and write the plan."""

from __future__ import annotations

import functools
from pathlib import Path

from mmcompile.calib.collect import ROW_LIMIT
from mmcompile.calib.policy import Policy, make_plan, watched_tensor
from mmcompile.calib.stats import ActivationStats, merge
from mmcompile.errors import UsageError
from mmcompile.output import disk_errors
from mmcompile.passes.find_linears import Selection
from mmcompile.pipeline.calibrate import calibrated, open_inputs
from mmcompile.pipeline.options import DataOptions
from mmcompile.pipeline.prepare import Prepared, prepare
from mmcompile.plan import dump_plan
from mmcompile.progress import Progress


def make_plan_file(
    model: Path,
    output: Path,
    data: DataOptions,
    policy: Policy,
    selection: Selection,
    shards: tuple[Path, ...],
    save_stats: Path | None,
    progress: Progress,
) -> str:
    """Writes a plan; returns a line that says what was planned.

    Args:
        model: the ONNX model.
        output: the plan to write.
        data: calibration data; not needed with `shards`. All of it is used: nothing is held back.
        policy: how precision is assigned.
        selection: which linears to take.
        shards: statistics to merge instead of calibrating.
        save_stats: where to write the statistics, or None.
        progress: told how far calibration is.
    """
    prepared = prepare(model, selection)
    if shards:
        stats = _merged(prepared, shards)
    else:
        inputs = open_inputs(prepared, data, hold_back_some=False)
        stats, _ = calibrated(prepared, inputs.calibration, policy.ratios, data.seed, progress)
    plan = make_plan(prepared.groups, stats, policy, prepared.source, prepared.left_alone)
    if save_stats is not None:
        with disk_errors(save_stats):
            stats.save(save_stats)
    with disk_errors(output):
        partial = output.with_name(f"{output.name}.partial")
        partial.write_text(dump_plan(plan), encoding="utf-8")
        partial.replace(output)
    bits = plan.mean_weight_bits()
    return f"wrote {output}: {len(plan.groups)} groups, {bits:.2f} bits per weight on average"


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
        " + ".join(dict.fromkeys(stats.description for stats in loaded)),
        all(stats.fit for stats in loaded),
        sum(stats.masked_tokens for stats in loaded),
    )
