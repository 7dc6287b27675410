"""`QuantPlan`: the whole quantization decision for one model, as versioned JSON.

A plan names, for every group of linear layers that read the same tensor, the channel order, the
list of segments and the figures that led to them. It is all that a recompile needs: no
calibration data. The file is made to be read, edited and diffed: one group is one block of
lines, its channel order is one line.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.documents import Document
from mmcompile.dtypes import IntArray
from mmcompile.errors import UsageError
from mmcompile.formats import BLOCK_FORMATS, BlockFormat, WeightScales, block_format

PLAN_VERSION = 1
PADDING = -1
"""Entry of a channel order that stands for a channel of zeros."""

SEGMENT_ALIGNMENT = 16
"""The packed codes of a segment begin at a multiple of this many bytes of their row."""

SCALE_WORD = 4
"""Packed scale bytes per word."""

UNFIT = "(unfit: random numbers)"
"""Ends the description of calibration data that says nothing about real activations."""


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of permuted input channels that share their formats.

    Attributes:
        channels: length of the run, a multiple of 32.
        act_format: name of the activations' `BlockFormat`.
        weight_format: name of the weights' `BlockFormat`.
        act_threshold: mantissa threshold in [1, 2] above which the activations' block exponent
            is one larger; 2 is OCP's rule (docs/spec.md, block scale).
        weight_threshold: the same for the weights; without effect where scales are searched.
        weight_scales: `rule` where the weights' block scales follow the threshold, `searched` where
            each is the better of two (docs/spec.md, searched scales).
    """

    channels: int
    act_format: str
    weight_format: str
    act_threshold: float
    weight_threshold: float
    weight_scales: WeightScales = "rule"

    @property
    def activation(self) -> BlockFormat:
        """The activations' format."""
        return block_format(self.act_format)

    @property
    def weight(self) -> BlockFormat:
        """The weights' format."""
        return block_format(self.weight_format)

    @property
    def row_bytes(self) -> int:
        """Bytes of packed weight codes per output channel, padding included."""
        code_bytes = self.channels * self.weight.element.bits // 8
        return -(-code_bytes // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT

    @property
    def scale_words(self) -> int:
        """Words of packed weight scales per output channel, the last one padded."""
        return -(-self.channels // (self.weight.block * SCALE_WORD))


class GroupPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of one group of linears that read the same tensor.

    Attributes:
        name: name of the `MicroMixLinear` node that replaces the group.
        input: name of the tensor that the group reads.
        nodes: names of the MatMul or Gemm nodes, in the order of their rows in the packed weight.
        in_channels: K, the input channels.
        out_channels: N of each node.
        order: the channel order as decimal numbers in one line; position → source channel.
        segments: the split of the ordered channels; their lengths sum to the order's length.
        act_tensor_scale: NVFP4 tensor scale of the activations, a power of two.
        weight_tensor_scale: NVFP4 tensor scale of the weights, a power of two.
        figures: what calibration measured about the group, for people; no stage reads it.
    """

    name: str
    input: str
    nodes: tuple[str, ...]
    in_channels: int
    out_channels: tuple[int, ...]
    order: str
    segments: tuple[Segment, ...]
    act_tensor_scale: float = 1.0
    weight_tensor_scale: float = 1.0
    figures: dict[str, float] = {}

    def channel_order(self) -> IntArray:
        """The order as int32[K_pad]; `PADDING` marks channels of zeros."""
        return np.array(self.order.split(), dtype=np.int32)

    @property
    def padded_channels(self) -> int:
        """K_pad: channels after padding."""
        return sum(segment.channels for segment in self.segments)

    @property
    def row_bytes(self) -> int:
        """Bytes of packed weight codes per output channel."""
        return sum(segment.row_bytes for segment in self.segments)

    @property
    def scale_words(self) -> int:
        """Words of `SCALE_WORD` bytes of packed weight scales per output channel."""
        return sum(segment.scale_words for segment in self.segments)

    @property
    def packed_bytes(self) -> int:
        """Bytes of codes and scales of all the group's weights."""
        return sum(self.out_channels) * self._packed_row_bytes

    def weight_bits(self) -> float:
        """Mean bits per real weight, scales and padding included."""
        return 8 * self._packed_row_bytes / self.in_channels

    @property
    def _packed_row_bytes(self) -> int:
        return self.row_bytes + SCALE_WORD * self.scale_words

    def act_bits(self) -> float:
        """Mean bits per real activation element, scales and padding included."""
        bits = sum(
            s.channels * (s.activation.element.bits + 8 / s.activation.block) for s in self.segments
        )
        return bits / self.in_channels


class LeftAlone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A candidate that is not rewritten, with the reason."""

    node: str
    code: str
    reason: str

    @property
    def is_linear(self) -> bool:
        """False for products without a weight, such as those of attention."""
        return self.code not in ("two-activations", "two-constants")


class QuantPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The decision for one model.

    Attributes:
        version: `PLAN_VERSION`.
        model: file name of the model that was planned.
        policy: name of the policy.
        parameters: the policy's parameters, as they were used.
        calibration: description of the calibration data, and whether it is fit for use.
        groups: one entry per `MicroMixLinear` node, in graph order.
        left_alone: the candidates that keep their precision.
    """

    version: int
    model: str
    policy: str
    parameters: dict[str, str | float | int]
    calibration: str
    groups: tuple[GroupPlan, ...]
    left_alone: tuple[LeftAlone, ...] = ()

    def mean_weight_bits(self) -> float:
        """Mean bits per weight over all groups, scales and padding included; 0 without groups."""
        weights = sum(group.in_channels * sum(group.out_channels) for group in self.groups)
        return 8 * sum(group.packed_bytes for group in self.groups) / max(1, weights)

    def digest(self) -> str:
        """SHA-256 of the decision (groups only), as hex: equal plans pack equal bytes."""
        bare = [msgspec.structs.replace(group, figures={}) for group in self.groups]
        return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()


def format_order(order: npt.ArrayLike) -> str:
    """A channel order as `GroupPlan.order` holds it."""
    return " ".join(map(str, np.asarray(order).tolist()))


def dump_plan(plan: QuantPlan) -> str:
    """The plan as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2).decode() + "\n"


def load_plan(path: Path) -> QuantPlan:
    """Reads and checks a plan file.

    Raises:
        UsageError: the file is missing, is no plan, or says something impossible.
    """
    plan = _DOCUMENT.read(path)
    remedy = _DOCUMENT.remedy
    for what, names in (
        ("groups share the name", [group.name for group in plan.groups]),
        ("groups hold the node", [node for group in plan.groups for node in group.nodes]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise UsageError("plan-inconsistent", path, f"two {what} {twice[0]}", remedy)
    for group in plan.groups:
        if problem := find_problem(group):
            raise UsageError("plan-inconsistent", f"{path}, group {group.name}", problem, remedy)
    return plan


_DOCUMENT = Document(
    "plan",
    QuantPlan,
    PLAN_VERSION,
    remedy="give a plan.json that mmcompile wrote, or edit it within docs/plan.md",
    renewal="plan the model again with this version",
)


def find_problem(group: GroupPlan) -> str | None:
    """What is impossible about a group, or None."""
    try:
        order = group.channel_order()
    except (ValueError, OverflowError):
        return "its channel order holds something that is no 32-bit integer"
    for segment in group.segments:
        if problem := _segment_problem(segment):
            return problem
    if group.in_channels <= 0 or min(group.out_channels, default=0) <= 0:
        return "a channel count that is not positive"
    if group.in_channels > order.size:
        return f"{group.in_channels} input channels, but only {order.size} in the order"
    if len(group.nodes) != len(group.out_channels):
        return "as many out_channels as nodes are needed"
    if order.size != group.padded_channels:
        return f"{order.size} channels in the order, {group.padded_channels} in the segments"
    if not np.array_equal(np.sort(order[order != PADDING]), np.arange(group.in_channels)):
        return f"its order is no permutation of 0..{group.in_channels - 1} and {PADDING}s"
    for scale in (group.act_tensor_scale, group.weight_tensor_scale):
        if not scale > 0 or not np.isfinite(scale) or np.frexp(scale)[0] != 0.5:
            return f"tensor scale {scale} is no positive power of two"
        if not 2.0**-100 <= scale <= 2.0**100:
            return f"tensor scale {scale} is outside 2^-100..2^100"
    return None


def _segment_problem(segment: Segment) -> str | None:
    for name in (segment.act_format, segment.weight_format):
        if name not in BLOCK_FORMATS:
            return f"unknown format '{name}'; known are {', '.join(BLOCK_FORMATS)}"
    if not segment.activation.multiplies(segment.weight):
        return (
            f"a segment of {segment.act_format} activations and {segment.weight_format} "
            "weights, which no tensor-core instruction multiplies; give both block scales alike"
        )
    if segment.channels <= 0 or segment.channels % 32:
        return f"a segment of {segment.channels} channels; lengths are multiples of 32"
    if not all(1 <= t <= 2 for t in (segment.act_threshold, segment.weight_threshold)):
        return "a scale threshold outside [1, 2]"
    return None


def diff_plans(old: QuantPlan, new: QuantPlan) -> list[str]:
    """The differences between two plans, one readable line each; empty where they decide alike."""
    lines = []
    if old.policy != new.policy:
        lines.append(f"policy: {old.policy} → {new.policy}")
    before = {group.name: group for group in old.groups}
    after = {group.name: group for group in new.groups}
    for name in dict.fromkeys(itertools.chain(before, after)):
        if name not in after:
            lines.append(f"{name}: no longer rewritten")
        elif name not in before:
            lines.append(f"{name}: now rewritten, {describe_split(after[name])}")
        else:
            lines.extend(f"{name}: {change}" for change in _changes(before[name], after[name]))
    return lines


def describe_split(group: GroupPlan) -> str:
    """A split as text, e.g. `256×mxfp4 + 128×mxfp8`; `a/w` where the two sides differ."""
    parts = []
    for segment in group.segments:
        formats = segment.act_format
        if segment.weight_format != segment.act_format:
            formats += f"/{segment.weight_format}"
        parts.append(f"{segment.channels}×{formats}")
    return " + ".join(parts)


def _changes(old: GroupPlan, new: GroupPlan) -> list[str]:
    changes = []
    if old.nodes != new.nodes or old.input != new.input:
        changes.append("covers other nodes")
    if (old.in_channels, old.out_channels) != (new.in_channels, new.out_channels):
        changes.append("other channel counts")
    if describe_split(old) != describe_split(new):
        changes.append(f"{describe_split(old)} → {describe_split(new)}")
    elif old.segments != new.segments:
        changes.append("other block scales")
    if old.order.split() != new.order.split():
        changes.append("another channel order")
    changes += [
        f"{side} {getattr(old, side):g} → {getattr(new, side):g}"
        for side in ("act_tensor_scale", "weight_tensor_scale")
        if getattr(old, side) != getattr(new, side)
    ]
    return changes
