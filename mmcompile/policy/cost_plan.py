"""The policy `cost`: the formats that change the model's output least for a given cost.

Per group of layers, in two stages: channels are sorted by max |x| and the damage of each at 4 bits
is measured; they are sorted again by that damage and the damage of every run in every format is
measured. Then one allocation over the runs of the whole model chooses the formats, and inside each
class the channels take the best of a few orders (`class_order`). The formulas are in
`sensitivity`, the allocation in `allocate`, docs/policy.md tells the whole.

Only the plan is decided here. How weights are rounded (error feedback, say) is the packer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.calib.gradient_rows import GradientSamples, GroupRows
from mmcompile.calib.stats import TensorStats
from mmcompile.dtypes import F32, F64, IntArray
from mmcompile.errors import UsageError
from mmcompile.formats import MXFP8, block_format
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.plan import PADDING, GroupPlan, QuantPlan, Segment
from mmcompile.policy.allocate import Limit, allocate, allocate_two, total_damage
from mmcompile.policy.budget import Budget
from mmcompile.policy.choices import CHANNEL_STEP, Order
from mmcompile.policy.class_order import candidate_keys, in_best_order
from mmcompile.policy.cost import UNLIMITED, CostPolicy
from mmcompile.policy.group import described
from mmcompile.policy.order import Bounds, channel_order, run_bounds
from mmcompile.policy.protocol import Evidence
from mmcompile.policy.sensitivity import (
    Sampled,
    Scales,
    channel_damage,
    output_energy,
    responses_of,
    run_damage,
    weight_amax,
)
from mmcompile.quantize import nvfp4_tensor_scale
from mmcompile.targets.target import FormatPair

Choice = npt.NDArray[np.intp]

MXFP8_PAIR = FormatPair(MXFP8.name, MXFP8.name)
HEADROOM = 4.0
"""Room above the largest activation seen, in NVFP4's tensor scale: inputs may be larger than what
calibration saw. It costs nothing: E4M3 block scales reach 2^15 below it at full precision."""
_ROUNDING = 1e-6
"""Bits that sums of exact shares may be off."""
_HUGE = 1e300
"""Stands for a damage that overflowed."""


@dataclass(frozen=True)
class GroupDamage:
    """What every format would do to one group.

    Attributes:
        order: int32[K_pad], the channels by damage, the runs lie along it.
        bounds: intp[runs + 1], where the runs begin and end (`order.run_bounds`).
        damage: float64[runs, pairs].
        act_max: float32[K], largest |x| per channel.
        weight_max: float32[K], largest |w| per channel.
        outputs: N.
        measured: False where the group's gradients are missing and the fallback was used.
    """

    order: IntArray
    bounds: Bounds
    damage: F64
    act_max: F32
    weight_max: F32
    outputs: int
    measured: bool


@dataclass(frozen=True)
class Known:
    """What damage is measured on.

    Attributes:
        evidence: what is known of the model.
        policy: the formats, orders and scales; its budget counts for nothing here.
        pairs: the pairs of formats to choose from, the cheapest first.
    """

    evidence: Evidence
    policy: CostPolicy
    pairs: tuple[FormatPair, ...]

    @property
    def gradients(self) -> GradientSamples:
        """The sampled gradients."""
        assert self.evidence.gradients is not None  # as the policy needs them
        return self.evidence.gradients


def measure_damage(known: Known) -> tuple[GroupDamage, ...]:
    """The damage of all groups, one group in memory at a time.

    Raises:
        UsageError: the statistics of a group hold no token.
    """
    evidence, samples = known.evidence, known.gradients
    groups, source = evidence.groups, evidence.source
    tokens = {group.name: tokens_per_sample(evidence.tensor(group)) for group in groups}
    # A sample's tokens add up in the model's output: a layer that sees few of them, on a pooled
    # vector say, changes it less often than one that sees all.
    most = max(tokens.values(), default=1.0)
    response = mean_response(groups, samples, source)
    found = []
    for group in evidence.progress.track(groups, "measuring sensitivity", len(groups)):
        tensor = evidence.tensor(group)
        if not tensor.tokens:
            reason = "calibration saw no token of it"
            remedy = f"calibrate with more data, or --exclude {group.sites[0].node}"
            raise UsageError("no-tokens", f"tensor {group.input}", reason, remedy)
        rows = samples.groups.get(group.name)
        measured = rows is not None
        if rows is None:
            rows = synthetic_rows(group, tensor, source, response)
        order, bounds, damage, largest = _group_damage(group, tensor, rows, known)
        damage *= tokens[group.name] / most
        outputs = group.out_channels
        found.append(GroupDamage(order, bounds, damage, tensor.abs_max, largest, outputs, measured))
    return tuple(found)


def plan_cost(policy: CostPolicy, evidence: Evidence) -> QuantPlan:
    """The plan with the least damage under the policy's budget; damage is measured once.

    Raises:
        UsageError: no choice of formats meets the budget, or a layer saw no token.
    """
    known = Known(evidence, policy, policy.pairs(evidence.target))
    yardstick = policy.priced(UNLIMITED)
    damage = evidence.once(yardstick, lambda: measure_damage(known))
    budget, asked = policy.budget, policy.budget.bits
    while True:
        try:
            choices = choose(damage, known, budget)
        except UsageError as error:
            if budget == policy.budget:
                raise
            reason = f"{asked:g} cannot be kept with runs of {policy.granularity} channels"
            raise UsageError(error.code, error.where, reason, "give more") from error
        planned = tuple(
            _plan_group(group, found, choice, known)
            for group, found, choice in zip(evidence.groups, damage, choices, strict=True)
        )
        excess = 0.0 if asked is None or budget.bits is None else mean_bits(planned) - asked
        if excess <= _ROUNDING or budget.bits is None:
            break
        # Runs below 128 channels do not fill the words that scales are packed in, which only the
        # finished segments tell.
        budget = dataclasses.replace(budget, bits=budget.bits - max(excess, 2**-6))
    # The order inside a class changes neither its cost nor the choice: once, for the plan at last.
    if evidence.thorough:
        planned = tuple(
            _in_best_order(group, plan, known)
            for group, plan in zip(evidence.groups, planned, strict=True)
        )
    total = sum(
        total_damage(found.damage, choice) for found, choice in zip(damage, choices, strict=True)
    )
    missing = len(known.gradients.missing)
    return evidence.plan(policy, planned, damage=total, groups_without_gradient=missing)


def choose(damage: Sequence[GroupDamage], known: Known, budget: Budget) -> list[Choice]:
    """The pair of every run, per group.

    A budget that pays for MXFP8 everywhere gets it everywhere, the format with the widest range
    of those with the least error.

    Raises:
        UsageError: no choice meets the budget.
    """
    if not damage:
        return []
    everything = np.concatenate([found.damage for found in damage])
    channels = np.concatenate([np.diff(found.bounds) * float(found.outputs) for found in damage])
    pairs, target = known.pairs, known.evidence.target
    weights = sum(group.in_channels * group.out_channels for group in known.evidence.groups)
    limits = []
    for option, value, costs, whole in (
        ("--target-speed", budget.speed, [*map(target.speed_cost, pairs)], channels.sum()),
        ("--target-bits", budget.bits, [pair.bits for pair in pairs], weights),
    ):
        if value is None:
            continue
        limit = Limit(np.outer(channels, costs), value * whole)
        if not limit.feasible():
            least = limit.costs.min(axis=1).sum() / whole
            reason = f"{value:g} is below {least:.4g}, what the cheapest formats cost here"
            raise UsageError("budget-too-small", option, reason, "give more, or other --classes")
        limits.append(limit)
    chosen = _allocated(everything, pairs, limits)
    ends = np.cumsum([len(found.damage) for found in damage])
    return np.split(chosen, ends[:-1])


def mean_bits(groups: Sequence[GroupPlan]) -> float:
    """Mean bits per weight of some groups, padding and scales included."""
    weights = sum(group.in_channels * sum(group.out_channels) for group in groups)
    return 8 * sum(group.packed_bytes for group in groups) / max(1, weights)


def synthetic_rows(
    group: SiteGroup, tensor: TensorStats, source: SourceModel, response: float
) -> GroupRows:
    """Rows for a group without gradients: isotropic random ones, in place of the true.

    With g of independent normal numbers of variance s², D is s² times the mean squared error of
    the run's part of the output. s² is such that a relative change of this layer's output moves
    the model's like one of an average layer: s²·E|y|² = `response`.
    """
    energy = output_energy(group, source, tensor.rows)
    generator = np.random.default_rng(len(tensor.rows) + group.out_channels)
    shape = (1, len(tensor.rows), group.out_channels)
    deviation = np.sqrt(response / energy) if energy > 0 else 0.0
    return GroupRows(tensor.rows, generator.standard_normal(shape, np.float32) * deviation)


def _allocated(damage: F64, pairs: Sequence[FormatPair], limits: Sequence[Limit]) -> Choice:
    if MXFP8_PAIR in pairs:
        everywhere = np.full(len(damage), pairs.index(MXFP8_PAIR), np.intp)
        if all(limit.holds(everywhere) for limit in limits):
            return everywhere
    if not limits:
        least: Choice = damage.argmin(axis=1)
        return least
    if len(limits) == 1:
        return allocate(damage, limits[0])
    try:
        return allocate_two(damage, *limits)
    except ValueError as error:
        reason = "it cannot be kept together with --target-speed"
        remedy = "raise one of the two, or leave one out"
        raise UsageError("budget-too-small", "--target-bits", reason, remedy) from error


def tokens_per_sample(tensor: TensorStats) -> float:
    """Rows of a tensor per sample that showed any."""
    return tensor.tokens / max(1, tensor.samples)


def mean_response(
    groups: Sequence[SiteGroup], samples: GradientSamples, source: SourceModel
) -> float:
    """How far a relative change of a layer's output moves the model's, squared, on average.

    E|g|²/N · E|y|², over the groups whose gradients are known; 1 where none are.
    """
    if not samples.missing or not samples.groups:
        return 1.0
    values = []
    for group in groups:
        rows = samples.groups.get(group.name)
        if rows is not None:
            slope = float(np.mean(np.square(rows.gradients, dtype=np.float64)))
            values.append(slope * output_energy(group, source, rows.activations))
    return float(np.mean(values))


def _group_damage(
    group: SiteGroup,
    tensor: TensorStats,
    rows: GroupRows,
    known: Known,
) -> tuple[IntArray, Bounds, F64, F32]:
    """The order by damage, its runs, D[runs, pairs] of them, and the largest |w| per channel."""
    policy, pairs, source = known.policy, known.pairs, known.evidence.source
    largest = weight_amax(group, source)
    scales = _scales(policy, tensor.abs_max, largest)
    by_size = channel_order(tensor.abs_max.astype(np.float64), Order.SORTED, CHANNEL_STEP)
    cheapest = pairs[0]
    sampled = Sampled(group, source, rows)
    responses = responses_of(sampled, by_size, [cheapest.weight], scales)
    harm = np.zeros(group.in_channels)
    real = by_size != PADDING
    alone = channel_damage(rows, responses, by_size, cheapest, scales)
    harm[by_size[real]] = _finite(alone[real])
    order = channel_order(harm, policy.channel_order, CHANNEL_STEP)
    bounds = run_bounds(order.size, policy.granularity)
    weights = tuple(dict.fromkeys(pair.weight for pair in pairs))
    responses = responses_of(sampled, order, weights, scales)
    damage = run_damage(rows, responses, order, pairs, scales, bounds)
    return order, bounds, _finite(damage), largest


def _scales(policy: CostPolicy, act_max: F32, weight_max: F32) -> Scales:
    """Tensor scales that reach the largest value of some channels."""
    return Scales(
        policy.scale_rule,
        nvfp4_tensor_scale(HEADROOM * float(act_max.max(initial=0))),
        nvfp4_tensor_scale(float(weight_max.max(initial=0))),
        policy.weight_block_scales,
    )


def _finite(damage: F64) -> F64:
    """Damage without NaN; the packer reports weights that are not finite."""
    return np.nan_to_num(damage, nan=0.0, posinf=_HUGE)


def _plan_group(group: SiteGroup, found: GroupDamage, choice: Choice, known: Known) -> GroupPlan:
    policy, pairs, target = known.policy, known.pairs, known.evidence.target
    tensor = known.evidence.tensor(group)
    order, lengths = classed_order(found, choice, len(pairs))
    if [pair for pair, length in zip(pairs, lengths, strict=True) if length] == [MXFP8_PAIR]:
        # One wide format has nothing to gain from an order; this is the uniform policy's.
        order = channel_order(tensor.abs_max.astype(np.float64), Order.NATURAL, CHANNEL_STEP)
    segments = tuple(
        policy.segment(length, pair.act, pair.weight)
        for pair, length in zip(pairs, lengths, strict=True)
        if length
    )
    scaled = _channels_of(order, segments)
    scales = (1.0, 1.0)
    if scaled.size:
        reached = _scales(policy, found.act_max[scaled], found.weight_max[scaled])
        scales = reached.act_tensor, reached.weight_tensor
    spent = sum(
        target.speed_cost(pair) * length for pair, length in zip(pairs, lengths, strict=True)
    )
    figures = {
        "tokens": float(tensor.tokens),
        "act_max": float(tensor.abs_max.max(initial=0)),
        "damage": total_damage(found.damage, choice),
        "damage_in_cheapest": float(found.damage[:, 0].sum()),
        "speed_cost": spent / order.size,
        "gradient_measured": float(found.measured),
    }
    return described(group, order, segments, scales, figures)


def _in_best_order(group: SiteGroup, plan: GroupPlan, known: Known) -> GroupPlan:
    """The plan with the best order inside its classes; uniform MXFP8 stays as it is."""
    if [FormatPair(s.act_format, s.weight_format) for s in plan.segments] == [MXFP8_PAIR]:
        return plan
    tensor, source = known.evidence.tensor(group), known.evidence.source
    rows = known.gradients.groups.get(group.name)
    if rows is None:
        # The scale of these rows is nothing to a comparison of orders.
        rows = synthetic_rows(group, tensor, source, response=1.0)
    return in_best_order(group, plan, candidate_keys(tensor, len(plan.segments)), source, rows)


def classed_order(found: GroupDamage, choice: Choice, pairs: int) -> tuple[IntArray, list[int]]:
    """The channels class by class, each class ascending by max |x|, and the classes' lengths."""
    parts, lengths = [], []
    classes = np.repeat(choice, np.diff(found.bounds))
    for index in range(pairs):
        channels = found.order[classes == index]
        magnitude = np.where(channels == PADDING, -1, found.act_max[np.maximum(channels, 0)])
        parts.append(channels[np.lexsort((channels, magnitude))])
        lengths.append(channels.size)
    return np.concatenate(parts).astype(np.int32), lengths


def _channels_of(order: IntArray, segments: Sequence[Segment]) -> IntArray:
    """The real channels in segments whose scales need a tensor scale."""
    found, start = [np.zeros(0, np.int32)], 0
    for segment in segments:
        part = order[start : start + segment.channels]
        if block_format(segment.act_format).has_tensor_scale:
            found.append(part[part != PADDING])
        start += segment.channels
    return np.concatenate(found)
