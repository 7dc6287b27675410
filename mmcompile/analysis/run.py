"""`analyze_model`: the order of an analysis, from an ONNX model to its files."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcompile.analysis.ground import (
    Observed,
    Rounding,
    Trials,
    choose_plan,
    micromix_policy,
    observe,
    plan_family,
    plan_figures,
    plan_title,
)
from mmcompile.analysis.layers import layers_section
from mmcompile.analysis.options import LAYERS, PARETO, STABILITY, STRESS, AnalyzeOptions
from mmcompile.analysis.pareto import Candidate, pareto_section, sweep_ratios
from mmcompile.analysis.stability import stability_section
from mmcompile.analysis.stress import (
    UNCHANGED,
    StressSet,
    compared_plans,
    stress_section,
    stress_sets,
)
from mmcompile.data.dataset import CalibrationData
from mmcompile.effort import Weights
from mmcompile.errors import UsageError
from mmcompile.output import StagedOutput, disk_errors
from mmcompile.pipeline.calibrate import Inputs, open_inputs
from mmcompile.pipeline.files import check_name
from mmcompile.pipeline.options import VerifyOptions
from mmcompile.pipeline.prepare import Prepared, prepare
from mmcompile.pipeline.reporting import tool_versions
from mmcompile.pipeline.stopwatch import Stopwatch
from mmcompile.pipeline.trial import TrialBench
from mmcompile.pipeline.verification import logit_outputs, take_samples
from mmcompile.pipeline.weights import WeightInputs
from mmcompile.policy.plan_damage import predicted_damage
from mmcompile.progress import Progress, Silent
from mmcompile.report.analysis import (
    ANALYSIS_VERSION,
    Analysis,
    AnalysisData,
    Layers,
    Pareto,
    PlanFigures,
    Stability,
    Stress,
    dump_analysis,
)
from mmcompile.report.analysis_page import render_analysis
from mmcompile.report.model import StageTime

ANALYSIS_JSON = "analysis.json"
ANALYSIS_HTML = "analysis.html"


@dataclass(frozen=True)
class AnalysisResult:
    """What an analysis gave: all figures, and the files written."""

    analysis: Analysis
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Work:
    """What the sections work on.

    Attributes:
        options: what is asked.
        observed: the calibration data.
        others: other calibration data by name.
        chosen: the chosen plan, its policy with the budget in force.
        sets: inputs of the section `stress`, the held-back ones first.
        trials: runs trial models.
        progress: told how far it is.
    """

    options: AnalyzeOptions
    observed: Observed
    others: tuple[tuple[str, CalibrationData], ...]
    chosen: Candidate
    sets: tuple[StressSet, ...]
    trials: Trials
    progress: Progress


def analyze_model(
    path: str | Path, options: AnalyzeOptions, progress: Progress | None = None
) -> AnalysisResult:
    """Analyses a model; writes `analysis.json` and `analysis.html` together or not at all.

    Args:
        path: the ONNX model.
        options: what to do; `data.calibration` is needed.
        progress: told how far the stages are.

    Raises:
        MMCompileError: with the code, the place, the reason and the remedy. Earlier files in the
            folder are then intact.
    """
    progress = progress or Silent()
    check_name(options.output)
    watch = Stopwatch()
    with watch.stage("load"):
        prepared = prepare(Path(path), options.selection)
        _check(prepared, options)
        logits = logit_outputs(prepared.source, VerifyOptions(logits=options.logits))
        inputs = open_inputs(prepared, options.data)
        others = _opened(prepared, options, options.other_calibration)
        foreign = _opened(prepared, options, options.stress_data)
    assert inputs.calibration is not None  # as `_check` has refused
    seed, effort = options.data.seed, options.effort
    sampled = WeightInputs(prepared, inputs.calibration, Weights.GPTQ, effort, seed, progress)
    rounding = Rounding(options.weights, effort, inputs.calibration, sampled)
    with StagedOutput(options.output) as stage, TrialBench(prepared, logits) as bench, sampled:
        analysis = _analyze(
            prepared, inputs, others, foreign, options, bench, rounding, watch, progress
        )
        with disk_errors(stage.folder):
            (stage.folder / ANALYSIS_JSON).write_text(dump_analysis(analysis), encoding="utf-8")
            if options.html:
                page = render_analysis(analysis)
                (stage.folder / ANALYSIS_HTML).write_text(page, encoding="utf-8")
        files = stage.commit()
    if not options.html:
        with disk_errors(options.output):  # an earlier run's page speaks of other figures
            (options.output / ANALYSIS_HTML).unlink(missing_ok=True)
    return AnalysisResult(analysis, files)


def _check(prepared: Prepared, options: AnalyzeOptions) -> None:
    """Refuses what cannot be analysed.

    Raises:
        UsageError: the model has no linear layers, or there is no data.
    """
    if not prepared.groups:
        remedy = "see mmcompile inspect for the reasons"
        reason = "no linear layer was found that could be compiled"
        raise UsageError("nothing-to-analyze", prepared.source.path, reason, remedy)
    if options.data.calibration is None:
        remedy = "give real inputs, or 'random' to try the tool without data"
        raise UsageError("no-calibration-data", "--calib", "there is no data", remedy)


def _opened(
    prepared: Prepared, options: AnalyzeOptions, sources: Sequence[str]
) -> tuple[tuple[str, CalibrationData], ...]:
    """Other data, opened like the calibration data, by names that differ."""
    found: dict[str, CalibrationData] = {}
    for number, source in enumerate(sources, start=1):
        data = dataclasses.replace(options.data, calibration=source, verification=None)
        opened = open_inputs(prepared, data, hold_back_some=False).calibration
        assert opened is not None
        name = _text(Path(source).name)
        found[f"{name} ({number})" if name in found else name] = opened
    return tuple(found.items())


def _analyze(
    prepared: Prepared,
    inputs: Inputs,
    others: tuple[tuple[str, CalibrationData], ...],
    foreign: tuple[tuple[str, CalibrationData], ...],
    options: AnalyzeOptions,
    bench: TrialBench,
    rounding: Rounding,
    watch: Stopwatch,
    progress: Progress,
) -> Analysis:
    """Runs the sections that are asked for."""
    assert inputs.calibration is not None and inputs.held_back is not None
    seed, policy = options.data.seed, options.policy
    ratios = micromix_policy(policy, policy.factor).ratios
    if PARETO in options.sections:
        ratios += sweep_ratios(policy)
    with watch.stage("calibrate"):
        observed = observe(
            prepared, inputs.calibration, policy, ratios, seed, options.effort, progress
        )
        inputs_of = rounding.inputs_of(policy.name)
        plan, policy = choose_plan(observed, policy, inputs_of, progress)
    chosen = Candidate(policy, plan, chosen=True)
    trials = Trials(prepared, bench, rounding)
    with watch.stage("run original"):
        samples = tuple(take_samples(prepared, inputs.held_back, options.samples))
        trials.add(UNCHANGED, samples, progress)
    sets: tuple[StressSet, ...] = ()
    if STRESS in options.sections:
        seen = itertools.chain(inputs.calibration, samples)
        extra = [
            StressSet(
                name,
                "other",
                data.description,
                tuple(take_samples(prepared, data, options.samples)),
            )
            for name, data in foreign
        ]
        sets = tuple(stress_sets(prepared, seen, samples, extra, seed))
    work = _Work(options, observed, others, chosen, sets, trials, progress)
    # Stress first: what it measures on the held-back inputs need not be measured again.
    stress = _stress(work, watch)
    with watch.stage("chosen plan"):
        figures = _chosen_figures(work)
    pareto = _pareto(work, watch)
    stability = _stability(work, figures, watch)
    layers = _layers(work, figures.error, watch)
    return Analysis(
        version=ANALYSIS_VERSION,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=_text(options.command),
        versions=tool_versions(),
        model=str(prepared.source.path),
        linears=sum(len(group.sites) for group in prepared.groups),
        groups=len(prepared.groups),
        groups_without_gradient=len(observed.gradients.missing),
        objective=policy.objective.value,
        policy=policy.name,
        parameters=plan.parameters,
        weights=rounding.method(policy.name).value,
        data=AnalysisData(
            calibration=observed.stats.description,
            fit=observed.stats.fit,
            samples=observed.stats.samples,
            tokens=observed.stats.tokens,
            held_back=inputs.held_back.description,
            held_back_samples=len(samples),
            disjoint=inputs.disjoint,
        ),
        chosen=figures,
        pareto=pareto,
        stability=stability,
        stress=stress,
        layers=layers,
        stages=tuple(StageTime(name, seconds) for name, seconds in watch.seconds.items()),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _chosen_figures(work: _Work) -> PlanFigures:
    observed, chosen = work.observed, work.chosen
    harm = predicted_damage(
        observed.prepared.groups,
        observed.stats,
        observed.gradients,
        [chosen.plan],
        observed.prepared.source,
        work.progress,
    )
    agreements = work.trials.agreements(chosen.plan, [UNCHANGED])[0]
    name, family = plan_title(chosen.policy), plan_family(chosen.policy)
    return plan_figures(name, family, chosen.plan, agreements, float(harm.sum()))


def _pareto(work: _Work, watch: Stopwatch) -> Pareto | None:
    options = work.options
    if PARETO not in options.sections:
        return None
    with watch.stage(PARETO):
        return pareto_section(
            work.observed,
            options.policy,
            work.chosen,
            options.budgets,
            work.trials,
            UNCHANGED,
            work.progress,
        )


def _stability(work: _Work, figures: PlanFigures, watch: Stopwatch) -> Stability | None:
    if STABILITY not in work.options.sections:
        return None
    with watch.stage(STABILITY):
        return stability_section(
            work.observed,
            work.chosen.policy,
            (work.chosen.plan, figures),
            work.others,
            work.trials,
            UNCHANGED,
            work.options.data.seed,
            work.options.effort,
            work.progress,
        )


def _stress(work: _Work, watch: Stopwatch) -> Stress | None:
    options = work.options
    if STRESS not in options.sections:
        return None
    with watch.stage(STRESS):
        plans = compared_plans(work.observed, options.policy, work.chosen)
        return stress_section(
            work.observed,
            plans,
            work.sets,
            work.trials,
            options.data.seed,
            work.progress,
        )


def _layers(work: _Work, error: float | None, watch: Stopwatch) -> Layers | None:
    if LAYERS not in work.options.sections:
        return None
    with watch.stage(LAYERS):
        return layers_section(
            work.observed,
            work.chosen.plan,
            error,
            work.options.layers,
            work.trials,
            UNCHANGED,
            work.progress,
        )


def _text(name: str) -> str:
    """A name as text that a file in UTF-8 can hold, whatever bytes are in it."""
    return os.fsencode(name).decode("utf-8", "replace")
