"""The order of channels inside the classes of a plan: which of a few does the least damage.

Channels of a block share a scale. Which of them should stand together depends on the format, on
the weights and on what the model's output hangs on, so that no rule is best everywhere. Here the
damage of every class is measured with the formats it has got, activations and weights quantized
in each of the candidate orders, and the class takes the one that does least.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.calib.gradient_rows import GroupRows
from mmcompile.calib.stats import TensorStats
from mmcompile.dtypes import F32, F64, IntArray
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.plan import PADDING, GroupPlan, Segment, format_order
from mmcompile.policy.choices import CHANNEL_STEP
from mmcompile.policy.sensitivity import Sampled, contributions

ROW_STEP = 2
"""Every second sampled token is looked at: that tells orders apart, at half the products."""


CLEAR = 2.0
"""Standard errors of a mean that a difference has to exceed; chance does so once in fifty times."""


def candidate_keys(tensor: TensorStats, classes: int) -> tuple[F64, ...]:
    """What classes may be sorted by, float64[K] each: max |x|, mean |x|, the natural order.

    A layer of one class comes out as under the policy of that format, in the natural order, unless
    another is clearly better.
    """
    natural = np.arange(len(tensor.abs_max), dtype=np.float64)
    sizes = tensor.abs_max.astype(np.float64), tensor.mean_abs.astype(np.float64)
    return (natural, *sizes) if classes == 1 else (*sizes, natural)


def in_best_order(
    group: SiteGroup,
    plan: GroupPlan,
    keys: Sequence[F64],
    source: SourceModel,
    rows: GroupRows,
) -> GroupPlan:
    """A group's plan with every class in that order of its channels that does the least damage.

    One product [rows, N] × [N, K] per order that differs from the others, and one for the weights
    as they are: each channel needs its own class's format only. What chance may have decided goes
    to the first key (`clearly_least`).

    Args:
        group: the layers.
        plan: their plan, in any order.
        keys: what each class may be sorted by, ascending; float64[K] each.
        source: where the weights lie.
        rows: the sampled tokens.
    """
    order = plan.channel_order()
    orders = [sorted_classes(order, plan.segments, key) for key in keys]
    distinct = list({format_order(found): found for found in orders}.values())
    if len(distinct) == 1:
        return _reordered(plan, distinct[0])
    rows = GroupRows(
        np.ascontiguousarray(rows.activations[::ROW_STEP]),
        np.ascontiguousarray(rows.gradients[:, ::ROW_STEP]),
    )
    sampled = Sampled(group, source, rows)
    damage = [
        class_damage(contributions(sampled, _reordered(plan, found)), plan.segments)
        for found in distinct
    ]
    best = clearly_least(np.stack(damage))
    ends = np.cumsum([segment.channels for segment in plan.segments])[:-1]
    parts = [np.split(found, ends) for found in distinct]
    return _reordered(
        plan, np.concatenate([parts[choice][index] for index, choice in enumerate(best)])
    )


def sorted_classes(order: IntArray, segments: Sequence[Segment], key: F64) -> IntArray:
    """An order with every segment's channels ascending by a key[K], padding first: int32[K_pad].

    Ties keep the natural order.
    """
    parts = []
    for part in np.split(order, np.cumsum([segment.channels for segment in segments])[:-1]):
        size = np.where(part == PADDING, -np.inf, key[np.maximum(part, 0)])
        parts.append(part[np.lexsort((part, size))])
    return np.concatenate(parts)


def class_damage(errors: F32, segments: Sequence[Segment]) -> F64:
    """Damage of every segment per token, in runs of one block: float64[R, segments].

    Runs this short leave least to chance. A sum over a long run has the same mean but for the
    correlation of rounding errors in different blocks, and its square scatters more over a few
    hundred tokens than the orders differ.

    Args:
        errors: contributions[D, R, K_pad] of the channels.
        segments: of the channels.
    """
    starts = np.arange(0, errors.shape[2], CHANNEL_STEP)
    runs = np.square(np.add.reduceat(errors, starts, axis=2).astype(np.float64)).mean(axis=0)
    firsts = np.cumsum([0] + [segment.channels // CHANNEL_STEP for segment in segments[:-1]])
    damage: F64 = np.add.reduceat(runs, firsts, axis=1)
    return damage


def clearly_least(damage: F64) -> npt.NDArray[np.intp]:
    """Which order each segment takes, from damage[orders, R, segments]: int[segments].

    Another order than the first has to do less damage by more than `CLEAR` standard errors of the
    mean difference over tokens: of several orders that are equally good, one always looks better.
    """
    difference = damage - damage[0]
    mean = difference.mean(axis=1)
    error = difference.std(axis=1) / np.sqrt(damage.shape[1])
    best: npt.NDArray[np.intp] = np.argmin(np.where(mean < -CLEAR * error, mean, 0.0), axis=0)
    return best


def _reordered(plan: GroupPlan, order: IntArray) -> GroupPlan:
    return msgspec.structs.replace(plan, order=format_order(order))
