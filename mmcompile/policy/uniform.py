"""The uniform policies: one format for all channels, in the model's own channel order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmcompile.formats import BLOCK_FORMATS, MXFP6_E2M3, block_format
from mmcompile.policy.choices import CHANNEL_STEP, Order
from mmcompile.policy.protocol import Evidence, Needs, ScaledPolicy

if TYPE_CHECKING:
    from mmcompile.model.sites import SiteGroup
    from mmcompile.plan import GroupPlan, QuantPlan

UNIFORM = {name: name for name in BLOCK_FORMATS} | {"mxfp6": MXFP6_E2M3.name}
"""Formats by the policy that gives them to all channels."""


@dataclass(frozen=True)
class UniformPolicy(ScaledPolicy):
    """One format for all channels.

    Attributes:
        name: one of `UNIFORM`.
    """

    FAMILY: ClassVar[str] = "uniform"
    own_order: ClassVar[Order] = Order.NATURAL

    name: str = MXFP6_E2M3.name

    @property
    def format(self) -> str:
        """The format."""
        return UNIFORM[self.name]

    @property
    def family(self) -> str:
        """All formats are one family."""
        return self.FAMILY

    @property
    def title(self) -> str:
        """The format."""
        return self.format

    @property
    def formats(self) -> tuple[str, ...]:
        """The one."""
        return (self.format,)

    @property
    def needs(self) -> Needs:
        """Statistics for tensor scales, which reach the largest value seen, and sorted orders."""
        sorts = self.channel_order in (Order.SORTED, Order.REVERSED)
        scaled = block_format(self.format).has_tensor_scale
        return Needs.STATISTICS if sorts or scaled else Needs.NOTHING

    def plan(self, evidence: Evidence) -> QuantPlan:
        """The plan of a model."""
        groups = tuple(self._plan_group(group, evidence) for group in evidence.groups)
        return evidence.plan(self, groups)

    def _plan_group(self, group: SiteGroup, evidence: Evidence) -> GroupPlan:
        from mmcompile.policy.group import GroupSplit, plan_of_group
        from mmcompile.policy.order import channel_order

        order = channel_order(evidence.tensor(group).mean_abs, self.channel_order, CHANNEL_STEP)
        split = GroupSplit(order, ((self.format, order.size),), {})
        return plan_of_group(group, split, self, evidence)
