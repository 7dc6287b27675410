"""What a policy is: what it needs to know of a model, and the plan that it makes of that."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, runtime_checkable

from mmcompile.formats import THRESHOLDS, WeightScales
from mmcompile.options import check_choices, option
from mmcompile.policy.choices import CHANNEL_STEP, Order
from mmcompile.progress import Progress, Silent

if TYPE_CHECKING:
    from mmcompile.calib.gradient_rows import GradientSamples
    from mmcompile.calib.stats import ActivationStats, TensorStats
    from mmcompile.model.sites import SiteGroup
    from mmcompile.model.source import SourceModel
    from mmcompile.plan import GroupPlan, LeftAlone, QuantPlan, Segment
    from mmcompile.targets.target import Target

T = TypeVar("T")


class Needs(enum.IntEnum):
    """What has to be known of a model before a policy can plan it; each includes those before."""

    NOTHING = 0
    STATISTICS = 1
    GRADIENTS = 2


@dataclass(frozen=True)
class Evidence:
    """What is known of a model.

    Attributes:
        groups: its linears, grouped by the tensor they read.
        source: where its weights lie.
        left_alone: the linears that keep their precision, for the plan.
        target: the GPU that is planned for.
        stats: statistics of the linears' inputs; of no sample where the policy needs none.
        gradients: sampled gradients of their outputs; None where the policy needs none.
        thorough: whether steps that gain little for their time are taken, too.
        progress: told how far planning is.
    """

    groups: tuple[SiteGroup, ...]
    source: SourceModel
    left_alone: tuple[LeftAlone, ...]
    target: Target
    stats: ActivationStats
    gradients: GradientSamples | None = None
    thorough: bool = True
    progress: Progress = field(default_factory=Silent)
    _measured: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    def tensor(self, group: SiteGroup) -> TensorStats:
        """The statistics of a group's input."""
        from mmcompile.calib.instrument import watched_tensor

        return self.stats.tensors[watched_tensor(group).key]

    def once(self, key: Hashable, measure: Callable[[], T]) -> T:
        """What `measure` gives; measured once for each key, however many plans are made."""
        if key not in self._measured:
            self._measured[key] = measure()
        found: T = self._measured[key]
        return found

    def plan(self, policy: Policy, groups: tuple[GroupPlan, ...], **found: Any) -> QuantPlan:
        """The plan of a policy's decisions; further parameters say what it found."""
        from mmcompile.plan import PLAN_VERSION, UNFIT, QuantPlan

        unfit = "" if self.stats.fit else f" {UNFIT}"
        return QuantPlan(
            version=PLAN_VERSION,
            model=self.source.path.name,
            policy=policy.name,
            parameters=policy.parameters() | found,
            calibration=self.stats.description + unfit,
            groups=groups,
            left_alone=self.left_alone,
        )


@runtime_checkable
class Policy(Protocol):
    """How precision is assigned: options, and a plan made by them.

    A policy is a frozen dataclass; the fields made by `options.option` are its options.

    Attributes:
        feedback: whether its weights are rounded with error feedback where nobody says.
    """

    feedback: ClassVar[bool]

    @property
    def name(self) -> str:
        """What plans and options know it by."""

    @property
    def family(self) -> str:
        """Policies that differ in a format only are one family."""

    @property
    def title(self) -> str:
        """Its name and what sets it apart, in a few words."""

    @property
    def needs(self) -> Needs:
        """What has to be known."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The block formats that it chooses from."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Thresholds, relative to a token's max |x|, whose exceedances calibration counts."""

    @property
    def channel_multiple(self) -> int:
        """What K is padded to a multiple of."""

    @property
    def limits(self) -> str:
        """Its budget in words; empty where it has none."""

    def parameters(self) -> dict[str, str | float | int]:
        """The parameters in force, for the plan and the report."""

    def plan(self, evidence: Evidence) -> QuantPlan:
        """The plan of a model.

        Raises:
            UsageError: the options allow none.
        """


@runtime_checkable
class Budgeted(Policy, Protocol):
    """A policy whose plans have a price, which a search for the least one can vary."""

    @property
    def max_error(self) -> float | None:
        """The largest 1 − mean cosine similarity of any output; None asks for no search."""

    def span(self, target: Target) -> tuple[float, float]:
        """The least and the largest price on a target."""

    def priced(self, price: float) -> Budgeted:
        """The same policy with a price in place of its budget and of `max_error`."""

    def price_of(self, plan: QuantPlan, target: Target) -> float:
        """The price of a plan."""


@dataclass(frozen=True)
class ScaledPolicy:
    """What the policies of this project share: channel orders and block scales.

    Attributes:
        order: how channels are sorted; None is the policy's own.
        scale_rule: the rule of `formats.THRESHOLDS` for block exponents.
        weight_scales: whether weights follow the rule too or take the better of two scales per
            block; None is the policy's own.
    """

    NAME: ClassVar[str] = ""
    feedback: ClassVar[bool] = False
    own_order: ClassVar[Order] = Order.SORTED
    own_weight_scales: ClassVar[WeightScales] = "searched"

    order: Order | None = option(
        None,
        "Channel order: sorted (cost, micromix), natural (one format), reversed or random.",
        metavar="ORDER",
    )
    scale_rule: str = option(
        "balanced",
        "Block exponents: balanced, ocp or saturation_free.",
        metavar="RULE",
        choices=tuple(THRESHOLDS),
    )
    weight_scales: WeightScales | None = option(
        None,
        "Block scales of weights: by the rule (micromix), or searched: the better of two "
        "(all others).",
        metavar="HOW",
        choices=("rule", "searched"),
    )

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def name(self) -> str:
        """What plans and options know it by; `NAME`, unless a policy has several."""
        return self.NAME

    @property
    def family(self) -> str:
        """One of its own, unless a policy says otherwise."""
        return self.name

    @property
    def channel_order(self) -> Order:
        """How channels are sorted."""
        return self.own_order if self.order is None else self.order

    @property
    def weight_block_scales(self) -> WeightScales:
        """How block scales of weights are found."""
        return self.own_weight_scales if self.weight_scales is None else self.weight_scales

    @property
    def needs(self) -> Needs:
        """Statistics, unless a policy says otherwise."""
        return Needs.STATISTICS

    @property
    def ratios(self) -> tuple[float, ...]:
        """None, unless a policy counts some."""
        return ()

    @property
    def channel_multiple(self) -> int:
        """What K is padded to a multiple of."""
        return CHANNEL_STEP

    @property
    def limits(self) -> str:
        """No budget, unless a policy has one."""
        return ""

    def segment(self, channels: int, act: str, weight: str) -> Segment:
        """A segment of two formats with the policy's block scales."""
        from mmcompile.plan import Segment

        thresholds = THRESHOLDS[self.scale_rule]
        return Segment(
            channels, act, weight, thresholds[act], thresholds[weight], self.weight_block_scales
        )

    def parameters(self) -> dict[str, str | float | int]:
        """The shared parameters in force."""
        return {
            "order": self.channel_order.value,
            "scale_rule": self.scale_rule,
            "weight_scales": self.weight_block_scales,
        }


def like(policy: object, kind: Callable[..., T], **changes: Any) -> T:
    """A policy of another kind with the options that both have; `changes` win.

    Args:
        policy: where options come from.
        kind: the other kind's dataclass.
        changes: options to set besides.
    """
    names = {entry.name for entry in dataclasses.fields(kind) if "about" in entry.metadata}  # type: ignore[arg-type]
    shared = {name: getattr(policy, name) for name in names if hasattr(policy, name)}
    return kind(**shared | changes)
