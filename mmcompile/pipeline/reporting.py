"""Gathers what the stages found into one `Report`."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import resource
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from mmcompile import __version__
from mmcompile.calib.stats import TensorStats
from mmcompile.pipeline.decision import Decision
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.prepare import Prepared
from mmcompile.plan import GroupPlan
from mmcompile.report.model import (
    REPORT_VERSION,
    CalibrationInfo,
    LayerReport,
    ModelInfo,
    PolicyInfo,
    Report,
    StageTime,
    TargetInfo,
    VerificationReport,
    channel_profile,
)
from mmcompile.sites import SiteGroup
from mmcompile.target import Target

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnx-graphsurgeon", "polygraphy")


@dataclass(frozen=True)
class LayerFigures:
    """What packing measured about one group; None where no activations were at hand."""

    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    output_cosine: float | None = None


def build_report(
    prepared: Prepared,
    decision: Decision,
    target: Target,
    options: CompileOptions,
    figures: Mapping[str, LayerFigures],
    verification: VerificationReport | None,
    seconds: Mapping[str, float],
    written_bytes: int,
) -> Report:
    """The report of a run.

    Args:
        prepared: the model.
        decision: its plan.
        target: the GPU.
        options: what was asked.
        figures: what packing measured, by group name; empty for a dry run.
        verification: the comparison with the original, if one was made.
        seconds: time per stage.
        written_bytes: size of the compiled model; 0 estimates it from the plan.
    """
    source = prepared.source
    plan = decision.plan
    layers = tuple(
        _layer(prepared, decision, sites, group, figures.get(group.name, LayerFigures()))
        for sites, group in decision.decided
    )
    saved = sum(layer.bytes_before - layer.bytes_after for layer in layers)
    parameters = sum(int(np.prod(t.dims)) for t in source.proto.graph.initializer)
    granularity = plan.parameters.get("granularity", 32)
    return Report(
        version=REPORT_VERSION,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        versions=_versions(),
        model=ModelInfo(
            path=str(source.path),
            bytes_before=source.size_bytes,
            bytes_after=written_bytes or source.size_bytes - saved,
            parameters=parameters,
            opset=prepared.opset,
            dtype=_dtype(decision),
        ),
        target=TargetInfo(name=target.name, description=_describe(target, decision)),
        policy=PolicyInfo(
            name=plan.policy,
            parameters=plan.parameters,
            granularity_channels=int(granularity),
        ),
        calibration=_calibration(decision, seconds),
        layers=layers,
        left_alone=plan.left_alone,
        verification=verification,
        stages=tuple(StageTime(name=name, seconds=value) for name, value in seconds.items()),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        reproduce=_reproduce(prepared, options),
    )


def _layer(
    prepared: Prepared,
    decision: Decision,
    sites: SiteGroup,
    group: GroupPlan,
    figures: LayerFigures,
) -> LayerReport:
    profile: tuple[tuple[float, ...], tuple[float, ...], int] = ((), (), 1)
    stats = decision.tensor_stats(sites)
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
        channel_max=largest,
        channel_mean=mean,
        channel_step=step,
    )


def _ordered_magnitudes(
    stats: TensorStats, group: GroupPlan
) -> tuple[np.ndarray, np.ndarray]:
    """max|x| and mean|x| in the chosen order; padding channels are zero."""
    order = group.channel_order()
    real = order >= 0
    mean = stats.abs_sum / max(1, stats.tokens)
    return (
        np.where(real, stats.abs_max[np.maximum(order, 0)], np.float32(0)),
        np.where(real, mean[np.maximum(order, 0)], 0.0),
    )


def _calibration(decision: Decision, seconds: Mapping[str, float]) -> CalibrationInfo:
    stats = decision.stats
    if stats is None:
        return CalibrationInfo(
            description=f"plan given; it was made from: {decision.plan.calibration}",
            samples=None,
            tokens=None,
            fit="unfit" not in decision.plan.calibration,
        )
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


def _versions() -> dict[str, str]:
    found = {"mmcompile": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _reproduce(prepared: Prepared, options: CompileOptions) -> tuple[str, ...]:
    output = options.output
    compiled = shlex.quote(str(output / "model.onnx"))
    plan = shlex.quote(str(output / "plan.json"))
    original = shlex.quote(str(prepared.source.path))
    lines = [options.command] if options.command else []
    lines.append(f"mmcompile {original} --gpu {options.gpu} --plan {plan} -o OTHER")
    lines.append(f"polygraphy run {original} {compiled} --onnxrt --atol 0.1 --rtol 0.1")
    return tuple(lines)
