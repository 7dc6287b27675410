"""What the stages before packing decided about a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.calib.policy import watched_tensor
from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.pipeline.calibrate import Inputs
from mmcompile.plan import GroupPlan, QuantPlan
from mmcompile.sites import SiteGroup


@dataclass(frozen=True)
class Decision:
    """A plan matched with the model's groups.

    Attributes:
        plan: the plan.
        decided: the model's groups with their plans, in graph order.
        inputs: the data of the run.
        stats: the statistics that the plan came from; None where a plan was given.
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
