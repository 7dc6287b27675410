"""From a split of a group's channels to its part of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.formats import block_format
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.plan import GroupPlan, Segment, format_order
from mmcompile.policy.protocol import Evidence, ScaledPolicy
from mmcompile.quantize import nvfp4_tensor_scale


@dataclass(frozen=True)
class GroupSplit:
    """What was decided about a group.

    Attributes:
        order: int32[K_pad], position → source channel.
        parts: formats and channels of each, in the order of the permuted axis.
        figures: what led to it.
    """

    order: npt.NDArray[np.int32]
    parts: Sequence[tuple[str, int]]
    figures: dict[str, float]


def plan_of_group(
    group: SiteGroup, split: GroupSplit, policy: ScaledPolicy, evidence: Evidence
) -> GroupPlan:
    """The plan of a group whose segments have one format each for activations and weights."""
    tensor = evidence.tensor(group)
    act_max = float(tensor.abs_max.max(initial=0))
    seen = {"tokens": float(tensor.tokens), "act_max": act_max} if tensor.samples else {}
    scales = (1.0, 1.0)
    if any(block_format(name).has_tensor_scale for name, _ in split.parts):
        largest = largest_weight(group, evidence.source)
        scales = nvfp4_tensor_scale(act_max), nvfp4_tensor_scale(largest)
    segments = tuple(policy.segment(count, name, name) for name, count in split.parts if count)
    return described(group, split.order, segments, scales, seen | split.figures)


def described(
    group: SiteGroup,
    order: npt.NDArray[np.int32],
    segments: tuple[Segment, ...],
    tensor_scales: tuple[float, float],
    figures: dict[str, float],
) -> GroupPlan:
    """A group's part of the plan; `tensor_scales` are those of activations and of weights."""
    return GroupPlan(
        name=group.name,
        input=group.input,
        nodes=tuple(site.node for site in group.sites),
        in_channels=group.in_channels,
        out_channels=tuple(site.out_channels for site in group.sites),
        order=format_order(order),
        segments=segments,
        act_tensor_scale=tensor_scales[0],
        weight_tensor_scale=tensor_scales[1],
        figures=figures,
    )


def largest_weight(group: SiteGroup, source: SourceModel) -> float:
    """Largest finite |w| of all layers of a group; the packer reports what is not finite."""
    largest = 0.0
    for site in group.sites:
        weight = site.read_weight(source)
        bounds = (float(np.max(weight)), -float(np.min(weight)))
        largest = max(largest, *(bound for bound in bounds if np.isfinite(bound)), 0.0)
    return largest
