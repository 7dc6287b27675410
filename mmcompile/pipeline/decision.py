"""What the stages before packing decide about a model: a plan given, or one made from data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.model.sites import SiteGroup
from mmcompile.pipeline.calibrate import Inputs, calibrated
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.prepare import Prepared, match_plan
from mmcompile.pipeline.sense import plan_by_cost
from mmcompile.pipeline.stopwatch import Stopwatch
from mmcompile.pipeline.uncalibrated import decides_without_data, plan_without_data
from mmcompile.pipeline.weights import WeightInputs
from mmcompile.plan import GroupPlan, QuantPlan, load_plan
from mmcompile.policy.options import COST, make_plan, watched_tensor
from mmcompile.progress import Progress


@dataclass(frozen=True)
class Decision:
    """A plan matched with the model's groups.

    Attributes:
        plan: the plan.
        decided: the model's groups with their plans, in graph order.
        inputs: the data of the run.
        stats: the statistics that the plan came from; None where it came from none.
        cached: whether the statistics came from the cache.
    """

    plan: QuantPlan
    decided: tuple[tuple[SiteGroup, GroupPlan], ...]
    inputs: Inputs
    stats: ActivationStats | None
    cached: bool

    def tensor_stats(self, sites: SiteGroup) -> TensorStats | None:
        """The statistics of a group's input, where there are any."""
        return self.stats.tensors[watched_tensor(sites).key] if self.stats else None

    def rows(self, sites: SiteGroup) -> npt.NDArray[np.float32] | None:
        """Sampled activation rows[R, K] of a group, where there are any."""
        stats = self.tensor_stats(sites)
        return stats.rows if stats is not None and stats.rows.size else None

    def sampled_rows(self, tensor: str) -> npt.NDArray[np.float32] | None:
        """Sampled rows of the tensor that a `MicroMixLinear` node reads."""
        for sites, _ in self.decided:
            if sites.input == tensor:
                return self.rows(sites)
        return None


def decide(
    prepared: Prepared,
    inputs: Inputs,
    options: CompileOptions,
    progress: Progress,
    watch: Stopwatch,
    sampled: WeightInputs,
) -> Decision:
    """The plan that was given, or one made from calibration data.

    Args:
        prepared: the model.
        inputs: the data.
        options: what was asked.
        progress: told how far the stages are.
        watch: told what they take.
        sampled: inputs for error feedback, taken while the model is calibrated; a largest error is
            measured with them.

    Raises:
        UsageError: the plan is not for this model, or the policy needs data and there is none.
    """
    if options.plan is not None:
        return _given(prepared, inputs, options.plan)
    stats, cached = None, False
    if inputs.calibration is None and decides_without_data(options.policy):
        plan = plan_without_data(prepared, options.policy)
    else:
        with watch.stage("calibrate"):
            stats, cached = calibrated(
                prepared,
                inputs.calibration,
                options.policy.ratios,
                options.data.seed,
                progress,
                None if options.dry_run else sampled.writer(),
            )
        with watch.stage("plan"):
            if options.policy.name == COST:
                assert inputs.calibration is not None  # as `calibrated` has refused
                plan = plan_by_cost(
                    prepared,
                    inputs.calibration,
                    stats,
                    options.policy,
                    options.data.seed,
                    progress,
                    options.effort,
                    sampled,
                )
            else:
                plan = make_plan(
                    prepared.groups, stats, options.policy, prepared.source, prepared.left_alone
                )
    decided = tuple(zip(prepared.groups, plan.groups, strict=True))
    return Decision(plan, decided, inputs, stats, cached)


def _given(prepared: Prepared, inputs: Inputs, path: Path) -> Decision:
    """The plan of a file, with the linears that it does not mention left alone."""
    given = load_plan(path)
    decided, unplanned = match_plan(given, prepared, path)
    plan = msgspec.structs.replace(
        given,
        model=prepared.source.path.name,
        groups=tuple(group for _, group in decided),
        left_alone=(*prepared.left_alone, *unplanned),
    )
    return Decision(plan, decided, inputs, None, cached=False)
