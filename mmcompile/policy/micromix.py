"""The policy `micromix`: the paper's split, channels sorted by magnitude (arXiv 2508.02343)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmcompile.errors import UsageError
from mmcompile.formats import MXFP4, MXFP6_E3M2, MXFP8, WeightScales
from mmcompile.options import option
from mmcompile.policy.choices import Thresholds
from mmcompile.policy.protocol import Evidence, ScaledPolicy

if TYPE_CHECKING:
    from mmcompile.model.sites import SiteGroup
    from mmcompile.plan import GroupPlan, QuantPlan

GRANULARITIES = (32, 64, 128)


@dataclass(frozen=True)
class MicroMixPolicy(ScaledPolicy):
    """The paper's split of each layer's channels into MXFP4, MXFP6 and MXFP8.

    Attributes:
        thresholds: the threshold setting.
        factor: λ, by which the thresholds are multiplied.
        granularity: channels that segments are multiples of.
    """

    NAME: ClassVar[str] = "micromix"
    own_weight_scales: ClassVar[WeightScales] = "rule"

    thresholds: Thresholds = option(
        Thresholds.CODE, "MicroMix's thresholds, as in the paper or in its authors' code."
    )
    factor: float = option(
        1.0,
        "Factor on MicroMix's thresholds; larger gives fewer bits.",
        flag="--lambda",
        metavar="X",
    )
    granularity: int = option(
        128,
        "Channels of cost's runs, and that micromix's segments are multiples of.",
        choices=GRANULARITIES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < 1e6:
            remedy = "use a positive number; 1 is the published setting"
            raise UsageError("bad-lambda", "--lambda", f"{self.factor} is no factor", remedy)

    @property
    def title(self) -> str:
        """With its λ."""
        return f"MicroMix λ {self.factor:.3g}"

    @property
    def formats(self) -> tuple[str, ...]:
        """The paper's three, ascending."""
        return (MXFP4.name, MXFP6_E3M2.name, MXFP8.name)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The thresholds T(E2M1) and T(E3M2)."""
        from mmcompile.policy.split import threshold_ratios

        return threshold_ratios(self.thresholds, self.factor)

    @property
    def channel_multiple(self) -> int:
        """K is padded to whole segments."""
        return self.granularity

    def parameters(self) -> dict[str, str | float | int]:
        """The parameters in force."""
        own = {"thresholds": self.thresholds.value, "lambda": self.factor}
        return {"granularity": self.granularity} | super().parameters() | own

    def plan(self, evidence: Evidence) -> QuantPlan:
        """The plan of a model."""
        groups = tuple(self._plan_group(group, evidence) for group in evidence.groups)
        return evidence.plan(self, groups)

    def _plan_group(self, group: SiteGroup, evidence: Evidence) -> GroupPlan:
        from mmcompile.policy.group import GroupSplit, plan_of_group
        from mmcompile.policy.order import channel_order
        from mmcompile.policy.split import split_channels

        tensor = evidence.tensor(group)
        above_low, above_middle = map(tensor.exceed_share, self.ratios)
        split = split_channels(above_low, above_middle, group.in_channels, self.granularity)
        order = channel_order(tensor.mean_abs, self.channel_order, self.channel_multiple)
        parts = tuple(zip(self.formats, (split.p4, split.p6, split.p8), strict=True))
        figures = {"share_above_t4": above_low, "share_above_t6": above_middle}
        return plan_of_group(group, GroupSplit(order, parts, figures), self, evidence)
