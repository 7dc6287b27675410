"""A policy of another package: the largest channels stay in MXFP8, all others go to MXFP4."""

from dataclasses import dataclass

from mmcompile.formats import MXFP4, MXFP8
from mmcompile.options import option
from mmcompile.policy.group import GroupSplit, plan_of_group
from mmcompile.policy.order import channel_order
from mmcompile.policy.protocol import ScaledPolicy

NAME = "toy"
BLOCK = 32


@dataclass(frozen=True)
class ToyPolicy(ScaledPolicy):
    """So many blocks of the largest channels in MXFP8."""

    wide: int = option(1, "Blocks of channels that stay wide.", flag="--wide-blocks", span=(0, 9))

    @property
    def name(self):
        return NAME

    @property
    def family(self):
        return NAME

    @property
    def title(self):
        return f"toy, {self.wide} wide"

    @property
    def formats(self):
        return (MXFP4.name, MXFP8.name)

    def parameters(self):
        return super().parameters() | {"wide_blocks": self.wide}

    def plan(self, evidence):
        return evidence.plan(self, tuple(self._split(g, evidence) for g in evidence.groups))

    def _split(self, group, evidence):
        order = channel_order(evidence.tensor(group).abs_max, self.channel_order, BLOCK)
        wide = min(self.wide * BLOCK, order.size)
        parts = ((MXFP4.name, order.size - wide), (MXFP8.name, wide))
        return plan_of_group(group, GroupSplit(order, parts, {}), self, evidence)
