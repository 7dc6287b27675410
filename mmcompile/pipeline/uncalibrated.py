"""What can be planned before any data is seen: one MX format for every channel."""

from __future__ import annotations

import msgspec
import numpy as np

from mmcompile.calib.instrument import WatchedTensor
from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.formats import block_format
from mmcompile.pipeline.prepare import Prepared
from mmcompile.plan import QuantPlan
from mmcompile.policy.options import UNIFORM, Policy, make_plan, watched_tensor
from mmcompile.policy.order import Order


def decides_without_data(policy: Policy) -> bool:
    """Whether a policy needs no statistics: one MX format, in an order that asks for none.

    NVFP4 needs the activations' largest value for its tensor scale.
    """
    if policy.name not in UNIFORM or policy.channel_order in (Order.SORTED, Order.REVERSED):
        return False
    return block_format(UNIFORM[policy.name]).scale == "e8m0"


def plan_without_data(prepared: Prepared, policy: Policy) -> QuantPlan:
    """The plan of a policy that `decides_without_data`."""
    watched = map(watched_tensor, prepared.groups)
    tensors = {tensor.key: _nothing_seen(tensor) for tensor in watched}
    description = f"none was given; {policy.name} decides without data"
    stats = ActivationStats(tensors, description, fit=True, masked_tokens=0)
    plan = make_plan(prepared.groups, stats, policy, prepared.source, prepared.left_alone)
    groups = tuple(msgspec.structs.replace(group, figures={}) for group in plan.groups)
    return msgspec.structs.replace(plan, groups=groups)


def _nothing_seen(tensor: WatchedTensor) -> TensorStats:
    zeros = np.zeros(tensor.channels)
    return TensorStats(
        samples=0,
        tokens=0,
        mean_abs=zeros,
        abs_sum=zeros,
        abs_max=zeros.astype(np.float32),
        square_sum=zeros,
        ratios=(),
        exceed=np.zeros(0, np.int64),
        rows=np.zeros((0, tensor.channels), np.float32),
        row_keys=np.zeros(0),
    )
