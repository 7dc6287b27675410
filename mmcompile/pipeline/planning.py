"""Planning without compiling: calibrate, or merge statistics taken apart, and write the plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

from mmcompile.calib.collect import ROW_LIMIT
from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.stats import ActivationStats, merge
from mmcompile.data.options import DataOptions
from mmcompile.effort import Weights
from mmcompile.errors import UsageError
from mmcompile.output import disk_errors
from mmcompile.pipeline.evidence import Gathered, evidence_of, gather
from mmcompile.pipeline.files import check_target, write_text
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.run import Run, Settings, start_run
from mmcompile.pipeline.search import planned
from mmcompile.pipeline.weights import weights_of
from mmcompile.plan import dump_plan
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.protocol import Needs, Policy


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is made.

    Attributes:
        data: calibration data; not needed with `shards`. All of it is used: nothing is held back.
        policy: how precision is assigned.
        weights: how weights are rounded in what a largest error is measured with; None is what
            compiling does by default.
        shards: statistics to merge instead of calibrating.
        save_stats: where to write the statistics, or None.
    """

    data: DataOptions = field(default_factory=DataOptions)
    policy: Policy = field(default_factory=CostPolicy)
    weights: Weights | None = None
    shards: tuple[Path, ...] = ()
    save_stats: Path | None = None

    def __post_init__(self) -> None:
        if self.shards and self.data.calibration is not None:
            reason = "statistics and data were both given"
            remedy = "save the data's statistics with --save-stats first, then merge with --stats"
            raise UsageError("two-sources", "--stats", reason, remedy)
        if self.save_stats is not None and not self.shards and self.data.calibration is None:
            reason = "there is no data to take statistics from"
            raise UsageError("no-calibration-data", "--save-stats", reason, "give --calib, too")
        if self.policy.needs < Needs.GRADIENTS:
            return
        name = self.policy.name
        if self.shards:
            reason = f"the policy {name} needs gradients, which saved statistics do not hold"
            remedy = "give --calib instead of --stats, or another --policy, such as micromix"
            raise UsageError("no-calibration-data", "--stats", reason, remedy)
        if self.save_stats is not None:
            reason = f"the policy {name} cannot plan from saved statistics: they hold no gradients"
            remedy = "leave it out, or give the --policy to merge them for, such as micromix"
            raise UsageError("option-without-effect", "--save-stats", reason, remedy)


def make_plan_file(model: Path, output: Path, options: PlanOptions, settings: Settings) -> str:
    """Writes a plan; returns a line that says what was planned.

    Args:
        model: the ONNX model.
        output: the plan to write; not one of the files that are read.
        options: how the plan is made.
        settings: the target, the linears to take, effort and progress.

    Raises:
        MMCompileError: nothing was written.
    """
    run = start_run(model, options.data, settings, hold_back_some=False)
    for target in (output, options.save_stats):
        if target is not None:
            check_target(target, (*run.prepared.source.files, *options.shards))
    found = _gathered(run, options)
    with weights_of(run, options.weights, options.policy.name) as sampled:
        plan = planned(run, options.policy, found.evidence, sampled)
    if options.save_stats is not None and found.stats is not None:
        with disk_errors(options.save_stats):
            found.stats.save(options.save_stats)
    write_text(output, dump_plan(plan))
    bits = plan.mean_weight_bits()
    return f"wrote {output}: {len(plan.groups)} groups, {bits:.2f} bits per weight on average"


def _gathered(run: Run, options: PlanOptions) -> Gathered:
    """What is known of the model: from statistics taken apart, or from data."""
    if not options.shards:
        return gather(run, options.policy)
    stats = _merged(run.prepared, options.shards)
    return Gathered(evidence_of(run, stats), stats, cached=False)


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
