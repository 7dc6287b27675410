"""Gathers what the stages found into one `Report`."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import math
import os
import platform
import resource
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from mmcompile import __version__
from mmcompile.backends.engines.bundle import polygraphy_lines
from mmcompile.backends.engines.precision import precision_lines
from mmcompile.calib.stats import TensorStats
from mmcompile.effort import Weights
from mmcompile.model.sites import SiteGroup
from mmcompile.output import MODEL_FILE
from mmcompile.packed import SiteRounding
from mmcompile.pipeline.decision import Decision
from mmcompile.pipeline.delivery import Delivery, outcome_line
from mmcompile.pipeline.files import PLAN_FILE
from mmcompile.pipeline.forecast import fp16_bytes
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.run import Run
from mmcompile.plan import UNFIT, GroupPlan, QuantPlan
from mmcompile.report.model import (
    REPORT_VERSION,
    CalibrationInfo,
    EngineInfo,
    LayerReport,
    ModelInfo,
    PolicyInfo,
    Report,
    RestInfo,
    StageTime,
    TargetInfo,
    VerificationReport,
    WeightRounding,
    channel_profile,
)
from mmcompile.targets.target import Objective, Target

BLOCK = 32
"""Channels that every segment's length is a multiple of."""
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "polygraphy")


@dataclass(frozen=True)
class LayerFigures:
    """What packing measured about one group; None where no activations were at hand."""

    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    output_cosine: float | None = None
    rounding: tuple[SiteRounding, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        seconds: time per stage.
        model_bytes: size of the compiled model; an estimate for a dry run.
        rest: what became of all but the compiled linears.
        figures: what packing measured, by group name; empty for a dry run.
        verification: the comparison with the original, if one was made.
        delivery: what became of the engine; None for a dry run or a failed verification.
        weights: how weights are rounded, and why so.
    """

    seconds: Mapping[str, float]
    model_bytes: int
    rest: RestInfo
    figures: Mapping[str, LayerFigures] = field(default_factory=dict)
    verification: VerificationReport | None = None
    delivery: Delivery | None = None
    weights: tuple[str, str] = ("", "")


def build_report(run: Run, decision: Decision, options: CompileOptions, outcome: Outcome) -> Report:
    """The report of a run: the model, its plan, the GPU, what was asked and what came out."""
    prepared, source, plan = run.prepared, run.prepared.source, decision.plan
    nothing = LayerFigures()
    layers = tuple(
        _layer(decision.tensor_stats(sites), sites, group, outcome.figures.get(group.name, nothing))
        for sites, group in decision.decided
    )
    granularity = plan.parameters.get("granularity")
    return Report(
        version=REPORT_VERSION,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=_text(options.command),
        versions=tool_versions(),
        model=ModelInfo(
            path=str(source.path),
            bytes_before=source.size_bytes,
            bytes_after=outcome.model_bytes,
            parameters=sum(math.prod(t.dims) for t in source.proto.graph.initializer),
            opset=prepared.opset,
            dtype=_dtype(decision),
            estimated=options.dry_run,
            bytes_fp16=fp16_bytes(source),
        ),
        target=TargetInfo(
            name=run.target.name,
            description=_describe(run.target, decision),
            remark=_remark(run.target, plan),
        ),
        policy=PolicyInfo(
            name=plan.policy,
            parameters=plan.parameters,
            granularity_channels=granularity if isinstance(granularity, int) else BLOCK,
            weights=outcome.weights[0],
            weights_reason=outcome.weights[1],
        ),
        calibration=_calibration(decision, options, outcome.seconds),
        layers=layers,
        left_alone=plan.left_alone,
        verification=outcome.verification,
        rest=outcome.rest,
        engine=_engine(outcome.delivery),
        stages=tuple(
            StageTime(name=name, seconds=value) for name, value in outcome.seconds.items()
        ),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        reproduce=_reproduce(prepared, options, outcome),
    )


def _engine(delivery: Delivery | None) -> EngineInfo | None:
    if delivery is None:
        return None
    choices, built = delivery.bundle.choices, delivery.engine
    return EngineInfo(
        summary=_text(outcome_line(delivery)),
        bytes=None if built is None else built.engine.bytes,
        builder=None if built is None else built.builder,
        gpu=None if built is None else built.gpu,
        loaded=built is not None and built.loaded,
        plugin=delivery.bundle.plugin.library is not None,
        profiles=tuple(
            " ".join(f"{name}:{span}" for name, span in profile.items())
            for profile in choices.profiles
        ),
        precision=()
        if built is None
        else tuple(_text(line) for line in precision_lines(built.precision)),
    )


def _layer(
    stats: TensorStats | None,
    sites: SiteGroup,
    group: GroupPlan,
    figures: LayerFigures,
) -> LayerReport:
    profile: tuple[tuple[float, ...], tuple[float, ...], int] = ((), (), 1)
    if stats is not None:
        profile = channel_profile(*_ordered_magnitudes(stats, group))
    largest, mean, step = profile
    element = onnx.helper.tensor_dtype_to_np_dtype(sites.sites[0].weight.elem_type).itemsize
    return LayerReport(
        name=group.name,
        nodes=group.nodes,
        input=group.input,
        in_channels=group.in_channels,
        out_channels=group.out_channels,
        segments=group.segments,
        act_bits=group.act_bits(),
        weight_bits=group.weight_bits(),
        bytes_before=group.in_channels * sum(group.out_channels) * element,
        bytes_after=group.packed_bytes + 4 * group.padded_channels,
        weight_sqnr_db=figures.weight_sqnr_db,
        output_sqnr_db=figures.output_sqnr_db,
        output_cosine=figures.output_cosine,
        rounding=tuple(
            WeightRounding(node=one.node, gain_db=one.gain_db, reason=one.reason)
            for one in figures.rounding
        ),
        channel_max=largest,
        channel_mean=mean,
        channel_step=step,
    )


def _ordered_magnitudes(stats: TensorStats, group: GroupPlan) -> tuple[np.ndarray, np.ndarray]:
    """max|x| and mean|x| in the chosen order; padding channels are zero."""
    order = group.channel_order()
    real = order >= 0
    mean = stats.abs_sum / max(1, stats.tokens)
    return (
        np.where(real, stats.abs_max[np.maximum(order, 0)], np.float32(0)),
        np.where(real, mean[np.maximum(order, 0)], 0.0),
    )


def _calibration(
    decision: Decision, options: CompileOptions, seconds: Mapping[str, float]
) -> CalibrationInfo:
    stats, description = decision.stats, decision.plan.calibration
    if stats is None:
        if options.plan is not None:
            description = f"plan given; it was made from: {description}"
        fit = not decision.plan.calibration.endswith(UNFIT)
        return CalibrationInfo(description=description, samples=None, tokens=None, fit=fit)
    return CalibrationInfo(
        description=stats.description,
        samples=stats.samples,
        tokens=stats.tokens,
        fit=stats.fit,
        cached=decision.cached,
        masked_tokens=stats.masked_tokens,
        seconds=seconds.get("calibrate"),
    )


def _dtype(decision: Decision) -> str:
    names = {
        onnx.helper.tensor_dtype_to_np_dtype(sites.sites[0].elem_type).name
        for sites, _ in decision.decided
    }
    return ", ".join(sorted(names)) or "none"


def _describe(target: Target, decision: Decision) -> str:
    """The target, and the limits that its model gives for this plan; modelled, not measured."""
    groups = [group for _, group in decision.decided]
    if not groups:
        return target.description
    compute = target.compute_limit(groups)
    weights = sum(group.in_channels * sum(group.out_channels) for group in groups)
    memory = 2 * weights / sum(group.packed_bytes for group in groups)
    return (
        f"{target.description}; modelled limit of the rewritten layers over FP16: "
        f"{compute:.1f}× compute-bound, {memory:.1f}× bound by weight bytes"
    )


def _remark(target: Target, plan: QuantPlan) -> str:
    """What an owner of the target has to know of such a plan."""
    objective = plan.parameters.get("objective", Objective.PREFILL)
    known = set(Objective)
    return target.remark(Objective(objective) if objective in known else Objective.PREFILL)


def tool_versions() -> dict[str, str]:
    """Versions of mmcompile and of what it uses, by name."""
    found = {"mmcompile": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _reproduce(prepared: Prepared, options: CompileOptions, outcome: Outcome) -> tuple[str, ...]:
    """Commands that repeat the run; of error feedback only the whole run, as it needs the data."""
    compiled, plan, original = (
        shlex.quote(str(path))
        for path in (options.output / MODEL_FILE, options.output / PLAN_FILE, prepared.source.path)
    )
    lines = [_text(options.command)] if options.command else []
    if outcome.weights[0] != Weights.GPTQ:
        lines.append(f"mmcompile {original} --gpu {options.gpu} --plan {plan} -o OTHER")
    lines += polygraphy_lines(original, compiled)
    if outcome.delivery is not None:
        lines.append(_text(outcome.delivery.finish))
    return tuple(lines)


def _text(command: str) -> str:
    """A command as text that a file in UTF-8 can hold, whatever bytes are in its arguments."""
    return os.fsencode(command).decode("utf-8", "replace")
