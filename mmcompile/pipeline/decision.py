"""What the stages before packing decide about a model: a plan given, or one made from data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.model.sites import SiteGroup
from mmcompile.pipeline.evidence import gather
from mmcompile.pipeline.prepare import match_plan
from mmcompile.pipeline.run import Inputs, Run
from mmcompile.pipeline.search import planned
from mmcompile.pipeline.weights import WeightInputs
from mmcompile.plan import GroupPlan, QuantPlan
from mmcompile.policy.protocol import Policy


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


def decide(run: Run, policy: Policy, sampled: WeightInputs, *, takes_rows: bool = True) -> Decision:
    """The plan of a policy for a run.

    Args:
        run: the model and the data.
        policy: how precision is assigned.
        sampled: inputs for error feedback; a largest error is measured with them.
        takes_rows: take them while the model is calibrated.

    Raises:
        UsageError: the policy needs data and there is none, or no plan meets its budget.
    """
    found = gather(run, policy, sampled.writer() if takes_rows else None)
    with run.watch.stage("plan"):
        plan = planned(run, policy, found.evidence, sampled)
    decided = tuple(zip(run.prepared.groups, plan.groups, strict=True))
    return Decision(plan, decided, run.inputs, found.stats, found.cached)


def take_plan(run: Run, given: QuantPlan, path: Path) -> Decision:
    """A plan of a file, with the linears that it does not mention left alone.

    Raises:
        UsageError: the plan is not for this model.
    """
    prepared = run.prepared
    decided, unplanned = match_plan(given, prepared, path)
    plan = msgspec.structs.replace(
        given,
        model=prepared.source.path.name,
        groups=tuple(group for _, group in decided),
        left_alone=(*prepared.left_alone, *unplanned),
    )
    return Decision(plan, decided, run.inputs, None, cached=False)
