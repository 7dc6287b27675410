"""What all sections of an analysis share: observed data, the chosen plan, trials of plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcompile.analysis.figures import format_shares, mean_act_bits, speed_cost
from mmcompile.calib.gradient_rows import GradientSamples
from mmcompile.calib.stats import ActivationStats
from mmcompile.data.dataset import CalibrationData, Sample
from mmcompile.effort import Effort, Weights
from mmcompile.packed import PackedLinear
from mmcompile.pipeline.calibrate import calibrated
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.search import smallest_within
from mmcompile.pipeline.sense import sensed
from mmcompile.pipeline.trial import Reference, TrialBench, worst_error
from mmcompile.pipeline.weights import InputsOf, no_inputs, weights_in_force
from mmcompile.plan import QuantPlan
from mmcompile.policy.cost import GroupDamage, measure_damage, plan_cost
from mmcompile.policy.options import COST, MICROMIX, UNIFORM, Policy, make_plan
from mmcompile.policy.pairs import NO_BUDGET, Budget
from mmcompile.progress import Progress
from mmcompile.report.analysis import PlanFigures
from mmcompile.verification.metrics import Agreement
from mmcompile.weights.pack import pack_group

UNIFORM_FORMATS = ("mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8")


@dataclass(frozen=True)
class Observed:
    """What data shows of a model: enough to plan it, by any policy.

    Attributes:
        prepared: the model.
        data: the data.
        stats: statistics of the layers' inputs.
        gradients: sampled gradients of their outputs.
        damage: what each format would do to each group; empty where only statistics were taken.
    """

    prepared: Prepared
    data: CalibrationData
    stats: ActivationStats
    gradients: GradientSamples
    damage: tuple[GroupDamage, ...]

    def plan(self, policy: Policy) -> QuantPlan:
        """The plan of a policy; one of `cost` has the classes that the damage was measured of.

        Raises:
            UsageError: no choice of formats meets the budget.
        """
        prepared = self.prepared
        if policy.name == COST:
            return plan_cost(
                prepared.groups,
                self.stats,
                self.gradients,
                self.damage,
                policy,
                prepared.source,
                prepared.left_alone,
            )
        return make_plan(prepared.groups, self.stats, policy, prepared.source, prepared.left_alone)


def observe(
    prepared: Prepared,
    data: CalibrationData,
    policy: Policy,
    ratios: Sequence[float],
    seed: int,
    effort: Effort,
    progress: Progress,
    *,
    gradients: bool = True,
) -> Observed:
    """Runs the model over data, once for statistics and once for gradients, or asks the cache.

    Args:
        prepared: the model.
        data: the data.
        policy: any policy with the classes, the granularity and the scales of `cost`.
        ratios: thresholds whose exceedances are counted, beside the policy's own.
        seed: of sampled rows and directions.
        effort: how many rows and directions are taken.
        progress: told how far it is.
        gradients: whether to take gradients and to measure damage, which `cost` alone needs.
    """
    counted = tuple(dict.fromkeys((*policy.ratios, *ratios)))
    stats, _ = calibrated(prepared, data, counted, seed, progress)
    if not gradients:
        return Observed(prepared, data, stats, GradientSamples({}, {}), ())
    found = sensed(prepared, data, stats.samples, seed, progress, effort)
    damage = measure_damage(
        prepared.groups, stats, found, cost_policy(policy), prepared.source, progress
    )
    return Observed(prepared, data, stats, found, damage)


def cost_policy(policy: Policy, budget: Budget = NO_BUDGET) -> Policy:
    """The policy `cost` with a budget and otherwise a policy's settings."""
    return dataclasses.replace(policy, name=COST, target=budget, max_error=None)


def micromix_policy(policy: Policy, factor: float) -> Policy:
    """MicroMix with a λ and otherwise a policy's settings, in its own channel order."""
    return dataclasses.replace(
        policy, name=MICROMIX, factor=factor, target=NO_BUDGET, max_error=None, order=None
    )


def uniform_policy(policy: Policy, name: str) -> Policy:
    """One format throughout, with a policy's settings otherwise, in the model's own order."""
    return dataclasses.replace(policy, name=name, target=NO_BUDGET, max_error=None, order=None)


def choose_plan(
    observed: Observed, policy: Policy, inputs_of: InputsOf, progress: Progress
) -> tuple[QuantPlan, Policy]:
    """The plan that a policy asks for, and the policy with the budget that `max_error` came to.

    Args:
        observed: the calibration data.
        policy: the policy.
        inputs_of: sampled inputs for error feedback, which `max_error` is measured with.
        progress: told after every candidate.

    Raises:
        UsageError: no plan meets the budget, or none the largest error.
    """
    if policy.max_error is None:
        return observed.plan(policy), policy

    def planned(budget: Budget) -> QuantPlan:
        return observed.plan(cost_policy(policy, budget))

    plan = smallest_within(
        observed.prepared,
        observed.data,
        planned,
        policy.objective,
        policy.max_error,
        progress,
        inputs_of,
    )
    found = {
        name.removeprefix("target_"): float(value)
        for name, value in plan.parameters.items()
        if name in ("target_speed", "target_bits")
    }
    return plan, cost_policy(policy, Budget(**found))


def plan_title(policy: Policy) -> str:
    """A plan's name in a few words, by its policy."""
    if policy.name == COST:
        budget = policy.budget
        parts = [f"{budget.speed:g}"] if budget.speed is not None else []
        parts += [f"{budget.bits:.4g} bits"] if budget.bits is not None else []
        return f"cost {', '.join(parts)}"
    if policy.name == MICROMIX:
        return f"MicroMix λ {policy.factor:.3g}"
    return UNIFORM[policy.name]


def plan_family(policy: Policy) -> str:
    """`cost`, `micromix` or `uniform`."""
    return policy.name if policy.name in (COST, MICROMIX) else "uniform"


@dataclass(frozen=True)
class Rounding:
    """How the weights of plans are rounded: as `compile` would round them.

    Attributes:
        asked: what the user asks for, for all plans; None leaves it to each plan's policy.
        effort: how much computing there may be.
        data: the calibration data.
        sampled: sampled inputs of its groups, for error feedback.
    """

    asked: Weights | None
    effort: Effort
    data: CalibrationData
    sampled: InputsOf

    def method(self, policy: str) -> Weights:
        """To nearest, or with error feedback, by the name of a plan's policy."""
        return weights_in_force(self.asked, self.effort, policy, self.data)[0]

    def inputs_of(self, policy: str) -> InputsOf:
        """Sampled inputs of groups, for plans of a policy; none where it rounds to nearest."""
        return self.sampled if self.method(policy) is Weights.GPTQ else no_inputs


class Trials:
    """Errors of plans on named sets of inputs; no plan runs twice on the same inputs.

    Args:
        prepared: the model.
        bench: the bench that trial models run on.
        rounding: how their weights are rounded.
    """

    def __init__(self, prepared: Prepared, bench: TrialBench, rounding: Rounding) -> None:
        self._prepared = prepared
        self._bench = bench
        self._rounding = rounding
        self._references: dict[str, Reference] = {}
        self._found: dict[tuple[str, Weights, str], dict[str, Agreement]] = {}

    def add(self, name: str, samples: Sequence[Sample], progress: Progress) -> None:
        """Runs the original on a set of inputs that plans can then be measured on."""
        self._references[name] = self._bench.reference(samples, progress)

    def agreements(self, plan: QuantPlan, names: Sequence[str]) -> list[dict[str, Agreement]]:
        """Agreement by output of a plan's model with the original, per set of inputs."""
        key = (plan.digest(), self._rounding.method(plan.policy))
        missing = [name for name in names if (*key, name) not in self._found]
        if missing:
            decided = tuple(zip(self._prepared.groups, plan.groups, strict=True))
            references = [self._references[name] for name in missing]
            inputs_of = self._rounding.inputs_of(plan.policy)
            found = self._bench.agreements(decided, references, inputs_of)
            for name, agreements in zip(missing, found, strict=True):
                self._found[*key, name] = agreements
        return [self._found[*key, name] for name in names]

    def errors(self, plan: QuantPlan, names: Sequence[str]) -> list[float | None]:
        """Errors of a plan's model; None where an output cannot be compared."""
        return [_finite(worst_error(found)) for found in self.agreements(plan, names)]

    def error_alone(self, plan: QuantPlan, index: int, name: str) -> float | None:
        """The error of a model in which only one group of a plan is compiled."""
        decided = [(self._prepared.groups[index], plan.groups[index])]
        inputs_of = self._rounding.inputs_of(plan.policy)
        found = self._bench.agreements(decided, [self._references[name]], inputs_of)
        return _finite(worst_error(found[0]))

    def packed(self, plan: QuantPlan, index: int) -> PackedLinear:
        """The weights of one group of a plan, as its trials have them."""
        sites, inputs_of = self._prepared.groups[index], self._rounding.inputs_of(plan.policy)
        return pack_group(sites, plan.groups[index], self._prepared.source, inputs_of(sites))


def plan_figures(
    name: str, family: str, plan: QuantPlan, agreements: Mapping[str, Agreement], damage: float
) -> PlanFigures:
    """A plan's costs and what was found of it.

    Args:
        name: its name, in words.
        family: `cost`, `micromix` or `uniform`.
        plan: the plan.
        agreements: its model's agreement with the original, by output.
        damage: its predicted damage.
    """
    mismatches = [f"{key}: {found.mismatch}" for key, found in agreements.items() if found.mismatch]
    known = {k: found for k, found in agreements.items() if not math.isnan(found.cosine_mean)}
    worst = min(known, key=lambda key: known[key].cosine_mean, default=None)
    divergences = [f.kl_divergence for f in known.values() if f.kl_divergence is not None]
    agreed = [f.top1_agreement for f in known.values() if f.top1_agreement is not None]
    return PlanFigures(
        name=name,
        family=family,
        speed_cost=speed_cost(plan),
        weight_bits=plan.mean_weight_bits(),
        act_bits=mean_act_bits(plan),
        shares=format_shares(plan.groups),
        predicted_damage=damage,
        error=_finite(worst_error(agreements)),
        error_of_worst_sample=max((1 - f.cosine_min for f in known.values()), default=None),
        worst_output=worst,
        kl_divergence_nats=max(divergences, default=None),
        top1_agreement=min(agreed, default=None),
        note="; ".join(mismatches) or None,
    )


def _finite(error: float) -> float | None:
    """The error, never below 0 by rounding; None where there is none."""
    return max(0.0, error) if math.isfinite(error) else None
