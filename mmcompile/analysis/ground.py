"""What all sections of an analysis share: observed data, the chosen plan, trials of plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcompile.analysis.figures import format_shares, mean_act_bits
from mmcompile.analysis.options import AnalyzeOptions
from mmcompile.calib.gradient_rows import GradientSamples
from mmcompile.calib.stats import ActivationStats
from mmcompile.data.dataset import CalibrationData, Sample
from mmcompile.effort import Effort, Weights
from mmcompile.packed import PackedLinear
from mmcompile.pipeline.evidence import calibrated, evidence_of, sensed
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.run import Inputs, Run
from mmcompile.pipeline.trial import Reference, TrialBench, worst_error
from mmcompile.pipeline.weights import InputsOf, no_inputs, weights_in_force
from mmcompile.plan import QuantPlan
from mmcompile.policy.protocol import Evidence, Policy
from mmcompile.policy.uniform import UniformPolicy
from mmcompile.progress import Progress
from mmcompile.report.analysis import PlanFigures
from mmcompile.targets.target import Target
from mmcompile.verification.metrics import Agreement
from mmcompile.weights.pack import pack_group

UNCHANGED = "held back"
"""Name of the inputs that were held back, as they are."""


@dataclass(frozen=True)
class Observed:
    """What data shows of a model: enough to plan it, by any policy.

    Attributes:
        run: the model, and the data as its calibration data.
        evidence: what is known; without gradients where only statistics were taken.
    """

    run: Run
    evidence: Evidence

    @property
    def prepared(self) -> Prepared:
        """The model."""
        return self.run.prepared

    @property
    def data(self) -> CalibrationData:
        """The data."""
        assert self.run.inputs.calibration is not None
        return self.run.inputs.calibration

    @property
    def stats(self) -> ActivationStats:
        """Statistics of the layers' inputs."""
        return self.evidence.stats

    @property
    def gradients(self) -> GradientSamples:
        """Sampled gradients of their outputs."""
        assert self.evidence.gradients is not None
        return self.evidence.gradients


def observe(
    run: Run, data: CalibrationData, ratios: Sequence[float], *, gradients: bool = True
) -> Observed:
    """Runs the model over data, once for statistics and once for gradients, or asks the cache.

    Args:
        run: the model.
        data: the data.
        ratios: thresholds whose exceedances are counted.
        gradients: whether to take gradients.
    """
    stats, _ = calibrated(run, data, tuple(dict.fromkeys(ratios)))
    found = sensed(run, data, stats.samples) if gradients else None
    seen = dataclasses.replace(run, inputs=Inputs(data, None, disjoint=True))
    return Observed(seen, evidence_of(run, stats, found))


@dataclass(frozen=True)
class Candidate:
    """A plan to measure.

    Attributes:
        policy: what it was made by.
        plan: the plan.
        chosen: whether it is the one that the options ask for.
    """

    policy: Policy
    plan: QuantPlan
    chosen: bool = False


@dataclass(frozen=True)
class Ground:
    """What the sections work on.

    Attributes:
        options: what is asked.
        observed: the calibration data.
        chosen: the chosen plan, its policy with the budget in force.
        trials: runs trial models; it knows the held-back inputs as `UNCHANGED`.
    """

    options: AnalyzeOptions
    observed: Observed
    chosen: Candidate
    trials: Trials

    @property
    def progress(self) -> Progress:
        """Told how far a section is."""
        return self.observed.run.progress

    @property
    def target(self) -> Target:
        """The GPU that formats are priced for."""
        return self.observed.run.target

    def figures(self, candidate: Candidate, damage: float) -> PlanFigures:
        """A plan's costs and its error on the held-back inputs; `damage` is the predicted one."""
        agreements = self.trials.agreements(candidate.plan, [UNCHANGED])[0]
        return plan_figures(candidate, self.target, agreements, damage)


def uniform_policy(policy: Policy, name: str) -> UniformPolicy:
    """One format throughout, with a policy's block scales, in the model's own order."""
    scales = {key: getattr(policy, key) for key in ("scale_rule", "weight_scales")}
    return UniformPolicy(name=name, **scales)


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

    Attributes:
        rounding: as given.
    """

    def __init__(self, prepared: Prepared, bench: TrialBench, rounding: Rounding) -> None:
        self.rounding = rounding
        self._prepared = prepared
        self._bench = bench
        self._references: dict[str, Reference] = {}
        self._found: dict[tuple[str, Weights, str], dict[str, Agreement]] = {}

    def add(self, name: str, samples: Sequence[Sample], progress: Progress) -> None:
        """Runs the original on a set of inputs that plans can then be measured on."""
        self._references[name] = self._bench.reference(samples, progress)

    def agreements(self, plan: QuantPlan, names: Sequence[str]) -> list[dict[str, Agreement]]:
        """Agreement by output of a plan's model with the original, per set of inputs."""
        key = (plan.digest(), self.rounding.method(plan.policy))
        missing = [name for name in names if (*key, name) not in self._found]
        if missing:
            decided = tuple(zip(self._prepared.groups, plan.groups, strict=True))
            references = [self._references[name] for name in missing]
            inputs_of = self.rounding.inputs_of(plan.policy)
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
        inputs_of = self.rounding.inputs_of(plan.policy)
        found = self._bench.agreements(decided, [self._references[name]], inputs_of)
        return _finite(worst_error(found[0]))

    def packed(self, plan: QuantPlan, index: int) -> PackedLinear:
        """The weights of one group of a plan, as its trials have them."""
        sites, inputs_of = self._prepared.groups[index], self.rounding.inputs_of(plan.policy)
        return pack_group(sites, plan.groups[index], self._prepared.source, inputs_of(sites))


def plan_figures(
    candidate: Candidate, target: Target, agreements: Mapping[str, Agreement], damage: float
) -> PlanFigures:
    """A plan's costs and what was found of it.

    Args:
        candidate: the plan.
        target: the GPU that prices its formats.
        agreements: its model's agreement with the original, by output.
        damage: its predicted damage.
    """
    plan = candidate.plan
    mismatches = [f"{key}: {found.mismatch}" for key, found in agreements.items() if found.mismatch]
    known = {k: found for k, found in agreements.items() if not math.isnan(found.cosine_mean)}
    worst = min(known, key=lambda key: known[key].cosine_mean, default=None)
    divergences = [f.kl_divergence for f in known.values() if f.kl_divergence is not None]
    agreed = [f.top1_agreement for f in known.values() if f.top1_agreement is not None]
    return PlanFigures(
        name=candidate.policy.title,
        family=candidate.policy.family,
        speed_cost=target.plan_speed_cost(plan.groups),
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
