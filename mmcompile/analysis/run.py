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
    UNCHANGED,
    Candidate,
    Ground,
    Observed,
    Rounding,
    Trials,
    observe,
)
from mmcompile.analysis.layers import layers_section
from mmcompile.analysis.options import LAYERS, PARETO, STABILITY, STRESS, AnalyzeOptions
from mmcompile.analysis.pareto import pareto_section, sweep_ratios
from mmcompile.analysis.stability import stability_section
from mmcompile.analysis.stress import StressSet, stress_section, stress_sets
from mmcompile.data.dataset import CalibrationData, Sample
from mmcompile.effort import Weights
from mmcompile.errors import UsageError
from mmcompile.output import StagedOutput, disk_errors
from mmcompile.pipeline.files import check_name
from mmcompile.pipeline.options import VerifyOptions
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.reporting import tool_versions
from mmcompile.pipeline.run import Run, Settings, open_inputs, start_run
from mmcompile.pipeline.search import smallest_within
from mmcompile.pipeline.trial import TrialBench
from mmcompile.pipeline.verification import logit_outputs, take_samples
from mmcompile.pipeline.weights import WeightInputs
from mmcompile.policy.plan_damage import predicted_damage
from mmcompile.policy.protocol import Budgeted
from mmcompile.progress import Progress, Silent
from mmcompile.report.analysis import ANALYSIS_VERSION, Analysis, AnalysisData, dump_analysis
from mmcompile.report.analysis_page import render_analysis
from mmcompile.report.model import StageTime
from mmcompile.targets.names import parse_target

ANALYSIS_JSON = "analysis.json"
ANALYSIS_HTML = "analysis.html"

NamedData = tuple[tuple[str, CalibrationData], ...]


@dataclass(frozen=True)
class AnalysisResult:
    """What an analysis gave: all figures, and the files written."""

    analysis: Analysis
    files: tuple[Path, ...]


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
    check_name(options.output)
    settings = Settings(
        parse_target(options.gpu), options.selection, options.effort, progress or Silent()
    )
    _check_data(options)
    run = start_run(Path(path), options.data, settings)
    _check_model(run.prepared)
    logits = logit_outputs(run.prepared.source, VerifyOptions(logits=options.logits))
    with run.watch.stage("load"):
        others = _opened(run.prepared, options, options.other_calibration)
        foreign = _opened(run.prepared, options, options.stress_data)
    assert run.inputs.calibration is not None  # as `_check_data` has refused
    sampled = WeightInputs(run, Weights.GPTQ)
    rounding = Rounding(options.weights, options.effort, run.inputs.calibration, sampled)
    bench = TrialBench(run.prepared, logits)
    with StagedOutput(options.output) as stage, bench, sampled:
        trials = Trials(run.prepared, bench, rounding)
        analysis = _analyze(run, options, trials, others, foreign)
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


def _check_model(prepared: Prepared) -> None:
    """Refuses what cannot be analysed.

    Raises:
        UsageError: the model has no linear layers.
    """
    if not prepared.groups:
        remedy = "see mmcompile inspect for the reasons"
        reason = "no linear layer was found that could be compiled"
        raise UsageError("nothing-to-analyze", prepared.source.path, reason, remedy)


def _check_data(options: AnalyzeOptions) -> None:
    """Refuses to analyse without data.

    Raises:
        UsageError: there is none.
    """
    if options.data.calibration is None:
        remedy = "give real inputs, or 'random' to try the tool without data"
        raise UsageError("no-calibration-data", "--calib", "there is no data", remedy)


def _opened(prepared: Prepared, options: AnalyzeOptions, sources: Sequence[str]) -> NamedData:
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
    run: Run, options: AnalyzeOptions, trials: Trials, others: NamedData, foreign: NamedData
) -> Analysis:
    """Runs the sections that are asked for."""
    inputs, watch = run.inputs, run.watch
    assert inputs.calibration is not None and inputs.held_back is not None
    ratios = (*options.policy.ratios, *options.micromix_policy.ratios)
    if PARETO in options.sections:
        ratios += sweep_ratios(options)
    with watch.stage("calibrate"):
        observed = observe(run, inputs.calibration, ratios)
        chosen = _choose(observed, options, trials)
    with watch.stage("run original"):
        samples = tuple(take_samples(run.prepared, inputs.held_back, options.samples))
        trials.add(UNCHANGED, samples, run.progress)
    ground = Ground(options, observed, chosen, trials)
    # Stress first: what it measures on the held-back inputs need not be measured again.
    stress = pareto = stability = layers = None
    if STRESS in options.sections:
        sets = _stress_sets(run, options, samples, foreign)
        with watch.stage(STRESS):
            stress = stress_section(ground, sets)
    with watch.stage("chosen plan"):
        harm = predicted_damage(observed.evidence, [chosen.plan])
        figures = ground.figures(chosen, float(harm.sum()))
    if PARETO in options.sections:
        with watch.stage(PARETO):
            pareto = pareto_section(ground)
    if STABILITY in options.sections:
        with watch.stage(STABILITY):
            stability = stability_section(ground, figures, others)
    if LAYERS in options.sections:
        with watch.stage(LAYERS):
            layers = layers_section(ground, figures.error)
    return Analysis(
        version=ANALYSIS_VERSION,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=_text(options.command),
        versions=tool_versions(),
        model=str(run.prepared.source.path),
        linears=sum(len(group.sites) for group in run.prepared.groups),
        groups=len(run.prepared.groups),
        groups_without_gradient=len(observed.gradients.missing),
        objective=options.cost_policy.objective.value,
        policy=chosen.policy.name,
        parameters=chosen.plan.parameters,
        weights=trials.rounding.method(chosen.policy.name).value,
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


def _choose(observed: Observed, options: AnalyzeOptions, trials: Trials) -> Candidate:
    """The plan that the options ask for; its policy has the budget that `max_error` came to."""
    policy, evidence = options.policy, observed.evidence
    if isinstance(policy, Budgeted) and policy.max_error is not None:
        inputs_of = trials.rounding.inputs_of(policy.name)
        plan, found = smallest_within(observed.run, policy, evidence, inputs_of)
        return Candidate(found, plan, chosen=True)
    return Candidate(policy, policy.plan(evidence), chosen=True)


def _stress_sets(
    run: Run, options: AnalyzeOptions, samples: Sequence[Sample], foreign: NamedData
) -> tuple[StressSet, ...]:
    assert run.inputs.calibration is not None
    extra = [
        StressSet(
            name,
            "other",
            data.description,
            tuple(take_samples(run.prepared, data, options.samples)),
        )
        for name, data in foreign
    ]
    seen = itertools.chain(run.inputs.calibration, samples)
    return tuple(stress_sets(run, seen, samples, extra))


def _text(name: str) -> str:
    """A name as text that a file in UTF-8 can hold, whatever bytes are in it."""
    return os.fsencode(name).decode("utf-8", "replace")
