"""Policies: from activation statistics to a `QuantPlan`.

`cost`, the default, needs gradients beside the statistics and is planned in `cost_plan`.
`micromix` is the paper's: channels sorted by magnitude, the split from the threshold shares.
The uniform policies give every channel one format, in the model's own channel order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from mmcompile.calib.instrument import WatchedTensor
from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.errors import UsageError
from mmcompile.formats import BLOCK_FORMATS, THRESHOLDS, nvfp4_tensor_scale
from mmcompile.model import SourceModel
from mmcompile.model.sites import SiteGroup
from mmcompile.plan import (
    PLAN_VERSION,
    UNFIT,
    GroupPlan,
    LeftAlone,
    QuantPlan,
    Segment,
    WeightScales,
    format_order,
)
from mmcompile.policy.order import CHANNEL_STEP, Order, channel_order
from mmcompile.policy.pairs import (
    CLASSES,
    DEFAULT_BUDGETS,
    NO_BUDGET,
    Budget,
    Objective,
    candidates,
)
from mmcompile.policy.split import Thresholds, split_channels, threshold_ratios

COST = "cost"
MICROMIX = "micromix"
UNIFORM = {name: name for name in BLOCK_FORMATS} | {"mxfp6": "mxfp6_e2m3"}
POLICIES = (COST, MICROMIX, *UNIFORM)
GRANULARITIES = (32, 64, 128)
WEIGHT_SCALES: tuple[WeightScales, ...] = get_args(WeightScales)


@dataclass(frozen=True)
class Policy:
    """What is asked of a plan.

    Attributes:
        name: one of `POLICIES`.
        thresholds: MicroMix's threshold setting.
        factor: λ, by which MicroMix's thresholds are multiplied.
        granularity: channels that MicroMix's segments are multiples of, and channels of a run of
            `cost`, of which one may be shorter. Uniform policies have one segment and need none.
        order: how channels are sorted; None is the policy's own.
        scale_rule: the rule of `formats.THRESHOLDS` for block exponents.
        weight_scales: whether weights follow the rule too or take the better of two scales per
            block; None is the policy's own.
        objective: what `cost` makes cheap.
        target: the budget of `cost`; without any limit it is the objective's default.
        classes: the formats that `cost` chooses from.
        max_error: instead of a budget, the largest 1 − mean cosine similarity of any output.
    """

    name: str = COST
    thresholds: Thresholds = Thresholds.CODE
    factor: float = 1.0
    granularity: int = 128
    order: Order | None = None
    scale_rule: str = "balanced"
    weight_scales: WeightScales | None = None
    objective: Objective = Objective.PREFILL
    target: Budget = NO_BUDGET
    classes: tuple[str, ...] = CLASSES
    max_error: float | None = None

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--policy", self.name, POLICIES),
            ("--granularity", self.granularity, GRANULARITIES),
            ("--scale-rule", self.scale_rule, tuple(THRESHOLDS)),
            ("--weight-scales", self.weight_block_scales, WEIGHT_SCALES),
        ):
            if value not in known:
                choices = ", ".join(map(str, known))
                raise UsageError("unknown-choice", option, f"no '{value}'", f"use one of {choices}")
        if not 0 < self.factor < 1e6:
            remedy = "use a positive number; 1 is the published setting"
            raise UsageError("bad-lambda", "--lambda", f"{self.factor} is no factor", remedy)
        candidates(self.objective, self.classes)  # refuses classes that cannot be
        if self.max_error is not None:
            if not 0 < self.max_error < 2:
                reason = f"{self.max_error:g} is no difference of a cosine similarity from 1"
                remedy = "give a number such as 0.01"
                raise UsageError("bad-max-error", "--max-error", reason, remedy)
            if self.target != NO_BUDGET:
                reason = "it stands beside a budget, which it is to find"
                remedy = "leave out --target-speed and --target-bits, or --max-error"
                raise UsageError("two-budgets", "--max-error", reason, remedy)

    @property
    def budget(self) -> Budget:
        """The limits in force under `cost`."""
        return self.target if self.target != NO_BUDGET else DEFAULT_BUDGETS[self.objective]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The thresholds whose exceedances calibration has to count."""
        if self.name != MICROMIX:
            return ()
        return threshold_ratios(self.thresholds, self.factor)

    @property
    def channel_order(self) -> Order:
        """How channels are sorted."""
        if self.order is not None:
            return self.order
        return Order.SORTED if self.name in (MICROMIX, COST) else Order.NATURAL

    @property
    def channel_multiple(self) -> int:
        """What K is padded to a multiple of."""
        return self.granularity if self.name == MICROMIX else CHANNEL_STEP

    @property
    def weight_block_scales(self) -> WeightScales:
        """How block scales of weights are found; MicroMix is the paper's, which has one rule."""
        if self.weight_scales is not None:
            return self.weight_scales
        return "rule" if self.name == MICROMIX else "searched"

    def segment(self, channels: int, act: str, weight: str) -> Segment:
        """A segment of two formats with the policy's block scales."""
        thresholds = THRESHOLDS[self.scale_rule]
        return Segment(
            channels, act, weight, thresholds[act], thresholds[weight], self.weight_block_scales
        )

    def parameters(self) -> dict[str, str | float | int]:
        """The parameters in force, for the plan and the report."""
        found: dict[str, str | float | int] = {
            "order": self.channel_order.value,
            "scale_rule": self.scale_rule,
            "weight_scales": self.weight_block_scales,
        }
        if self.name in (MICROMIX, COST):
            found = {"granularity": self.granularity} | found
        if self.name == MICROMIX:
            found |= {"thresholds": self.thresholds.value, "lambda": self.factor}
        if self.name == COST:
            found |= {"objective": self.objective.value, "classes": " ".join(self.classes)}
            if self.budget.speed is not None:
                found["target_speed"] = self.budget.speed
            if self.budget.bits is not None:
                found["target_bits"] = self.budget.bits
        return found


def make_plan(
    groups: Sequence[SiteGroup],
    stats: ActivationStats,
    policy: Policy,
    source: SourceModel,
    left_alone: Iterable[LeftAlone],
) -> QuantPlan:
    """The plan of a model under a policy."""
    calibration = stats.description + ("" if stats.fit else f" {UNFIT}")
    return QuantPlan(
        version=PLAN_VERSION,
        model=source.path.name,
        policy=policy.name,
        parameters=policy.parameters(),
        calibration=calibration,
        groups=tuple(
            plan_group(group, stats.tensors[watched_tensor(group).key], policy, source)
            for group in groups
        ),
        left_alone=tuple(left_alone),
    )


def watched_tensor(group: SiteGroup) -> WatchedTensor:
    """The tensor that a group's statistics are taken from."""
    return WatchedTensor(group.input, group.in_channels, group.transpose_input)


def plan_group(
    group: SiteGroup, stats: TensorStats, policy: Policy, source: SourceModel
) -> GroupPlan:
    """The plan of one group."""
    order = channel_order(stats.mean_abs, policy.channel_order, policy.channel_multiple)
    figures = {"tokens": float(stats.tokens), "act_max": float(stats.abs_max.max(initial=0))}
    if policy.name == MICROMIX:
        above_low, above_middle = map(stats.exceed_share, policy.ratios)
        split = split_channels(above_low, above_middle, group.in_channels, policy.granularity)
        figures |= {"share_above_t4": above_low, "share_above_t6": above_middle}
        parts = [("mxfp4", split.p4), ("mxfp6_e3m2", split.p6), ("mxfp8", split.p8)]
    else:
        parts = [(UNIFORM[policy.name], order.size)]
    segments = tuple(policy.segment(channels, name, name) for name, channels in parts if channels)
    act_scale = weight_scale = 1.0
    if any(BLOCK_FORMATS[name].scale == "e4m3" for name, _ in parts):
        act_scale = nvfp4_tensor_scale(float(stats.abs_max.max(initial=0)))
        weight_scale = nvfp4_tensor_scale(_weight_amax(group, source))
    return GroupPlan(
        name=group.name,
        input=group.input,
        nodes=tuple(site.node for site in group.sites),
        in_channels=group.in_channels,
        out_channels=tuple(site.out_channels for site in group.sites),
        order=format_order(order),
        segments=segments,
        act_tensor_scale=act_scale,
        weight_tensor_scale=weight_scale,
        figures=figures,
    )


def _weight_amax(group: SiteGroup, source: SourceModel) -> float:
    """Largest finite |w| of all layers of a group; the packer reports what is not finite."""
    largest = 0.0
    for site in group.sites:
        weight = site.read_weight(source)
        bounds = (float(np.max(weight)), -float(np.min(weight)))
        largest = max(largest, *(bound for bound in bounds if np.isfinite(bound)), 0.0)
    return largest
