"""The compiled model against the original, on inputs that calibration did not see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from mmcompile.calib.data import CalibrationData, Sample, trim_padding
from mmcompile.errors import UsageError
from mmcompile.graph import SourceModel, load_model
from mmcompile.passes.find_linears import Selection
from mmcompile.pipeline.calibrate import open_inputs
from mmcompile.pipeline.options import DataOptions, VerifyOptions
from mmcompile.pipeline.prepare import Prepared, input_specs, prepare
from mmcompile.progress import Progress
from mmcompile.report.model import LayerError, OutputReport, VerificationReport
from mmcompile.verify.compiled import compiled_nodes, read_nodes
from mmcompile.verify.metrics import Agreement
from mmcompile.verify.nodes import node_excess
from mmcompile.verify.outputs import LayerSpec, compare_layers, compare_outputs, first_below

BAD_LAYER_COSINE = 0.9
"""Without --fail-below, a layer whose cosine similarity is below this is called bad."""
NODE_ROWS = 16
"""Rows that each node is held against the specification with."""

Rows = Callable[[str], npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class Evidence:
    """What a verification rests on.

    Attributes:
        data: the inputs; None where there are none.
        disjoint: False where calibration has seen them.
        rows: sampled activations by tensor name, or None.
    """

    data: CalibrationData | None
    disjoint: bool = True
    rows: Rows = lambda name: None  # noqa: E731


def verify_files(
    original: Path,
    compiled: Path,
    data: DataOptions,
    options: VerifyOptions,
    progress: Progress,
) -> VerificationReport:
    """Compares two models on disk; `data.verification` names the inputs."""
    prepared = prepare(original, Selection(heads=True))
    inputs = open_inputs(prepared, data)
    evidence = Evidence(inputs.held_back)
    return verify_models(prepared, load_model(compiled), evidence, options, progress)


def verify_models(
    prepared: Prepared,
    compiled: SourceModel,
    evidence: Evidence,
    options: VerifyOptions,
    progress: Progress,
) -> VerificationReport:
    """Compares a compiled model with the original.

    A bfloat16 model cannot run in ONNX Runtime on the CPU. Its nodes are then held against the
    specification one by one, and the report says so.
    """
    _check_interface(prepared.source, compiled)
    notes = []
    if prepared.is_bfloat16 or options.nodes:
        excess = _worst_node(prepared, compiled, evidence.rows, progress)
        notes.append(
            "every MicroMixLinear node was compared with the specification: the worst is at "
            f"{excess:.2f} of the derived error bound"
        )
        if excess > 1:
            return _report(options, "sampled activations", 0, {}, {}, prepared, notes, passed=False)
    if prepared.is_bfloat16:
        notes.insert(0, "ONNX Runtime's CPU provider has no bfloat16, so no whole model was run")
        return _report(options, "sampled activations", 0, {}, {}, prepared, notes, passed=True)
    if evidence.data is None:
        notes.append("the models were not run: no inputs were given (--calib or --verify-data)")
        passed = options.fail_below is None
        return _report(options, "none", 0, {}, {}, prepared, notes, passed=passed)
    if not evidence.disjoint:
        notes.append("too few samples to hold any back: these inputs are those of calibration")
    samples = take_samples(prepared, evidence.data, options.samples)
    source = prepared.source
    logits = logit_outputs(source, options)
    outputs = compare_outputs(source.path, compiled.path, samples, logits, progress)
    missed = _misses(outputs, options.fail_below)
    layers: dict[str, Agreement] = {}
    if options.layers or missed:
        layers = compare_layers(source, compiled, _layers(prepared, compiled), samples, progress)
    return _report(
        options,
        evidence.data.description,
        len(samples),
        outputs,
        layers,
        prepared,
        notes,
        passed=not missed,
    )


def take_samples(prepared: Prepared, data: CalibrationData, limit: int) -> list[Sample]:
    """The first samples of the data, padding cut off where the model's shapes allow it."""
    specs = input_specs(prepared.runnable)
    return [trim_padding(sample, specs) for sample in itertools.islice(data, limit)]


def logit_outputs(source: SourceModel, options: VerifyOptions) -> frozenset[str]:
    """Names of the outputs that are logits, by their names or as the user says.

    Raises:
        UsageError: the user names an output that the model does not have.
    """
    names = [value.name for value in source.proto.graph.output]
    for name in options.logits:
        if name not in names:
            reason = f"the model has no output '{name}'"
            raise UsageError("no-such-output", "--logits", reason, f"use one of {', '.join(names)}")
    return frozenset(n for n in names if "logit" in n.lower() or n in options.logits)


def _check_interface(source: SourceModel, compiled: SourceModel) -> None:
    """Inputs and outputs must be the original's in name, type, shape and order."""
    for kind in ("input", "output"):
        before = list(getattr(source.proto.graph, kind))
        after = list(getattr(compiled.proto.graph, kind))
        if [v.SerializeToString() for v in before] != [v.SerializeToString() for v in after]:
            raise UsageError(
                "interface-differs",
                compiled.path,
                f"its {kind}s are {_names(after)}, those of {source.path.name} {_names(before)}",
                "compare a model with the one it was compiled from",
            )


def _names(values: list[onnx.ValueInfoProto]) -> str:
    return ", ".join(onnx.printer.to_text(value) for value in values)


def _layers(prepared: Prepared, compiled: SourceModel) -> list[LayerSpec]:
    """The layers of the original that a node of the compiled model now computes."""
    rewritten = {name for node in compiled_nodes(compiled) for name in node.outputs}
    return [
        LayerSpec(site.node, site.output, site.out_channels)
        for sites in prepared.groups
        for site in sites.sites
        if site.output in rewritten
    ]


def _worst_node(
    prepared: Prepared, compiled: SourceModel, rows_of: Rows, progress: Progress
) -> float:
    """The largest error of any node against the specification, in units of its bound."""
    types = {
        site.output: site.elem_type for sites in prepared.groups for site in sites.sites
    }
    worst = 0.0
    total = len(compiled_nodes(compiled))
    for node, plan, packed in progress.track(read_nodes(compiled), "checking nodes", total):
        rows = rows_of(plan.input)
        if rows is None:
            random = np.random.default_rng(plan.in_channels)
            rows = random.standard_normal((NODE_ROWS, plan.in_channels), dtype=np.float32)
        elem_type = types.get(node.outputs[0], onnx.TensorProto.FLOAT)
        worst = max(
            worst, node_excess(plan, packed, rows[:NODE_ROWS], elem_type, prepared.opset)
        )
    return worst


def _misses(outputs: dict[str, Agreement], bound: float | None) -> bool:
    if any(agreement.mismatch for agreement in outputs.values()):
        return True
    cosines = [agreement.cosine_mean for agreement in outputs.values()]
    return bound is not None and any(math.isnan(c) or c < bound for c in cosines)


def _report(
    options: VerifyOptions,
    inputs: str,
    samples: int,
    outputs: dict[str, Agreement],
    layers: dict[str, Agreement],
    prepared: Prepared,
    notes: list[str],
    *,
    passed: bool,
) -> VerificationReport:
    logits = logit_outputs(prepared.source, options)
    notes += [f"{name}: {found.mismatch}" for name, found in outputs.items() if found.mismatch]
    bound = options.fail_below
    return VerificationReport(
        inputs=inputs,
        samples=samples,
        outputs=tuple(
            _output(value, outputs[value.name], value.name in logits)
            for value in prepared.source.proto.graph.output
            if value.name in outputs
        ),
        layers=tuple(
            LayerError(name=name, cosine=found.cosine_mean, sqnr_db=found.sqnr_db)
            for name, found in layers.items()
        ),
        first_bad_layer=first_below(layers, bound or BAD_LAYER_COSINE),
        threshold=None if bound is None else f"mean cosine of every output at least {bound:g}",
        passed=passed,
        note="; ".join(notes) or None,
    )


def _output(value: onnx.ValueInfoProto, agreement: Agreement, is_logits: bool) -> OutputReport:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    return OutputReport(
        name=value.name,
        dtype=dtype,
        cosine_mean=agreement.cosine_mean,
        cosine_min=agreement.cosine_min,
        sqnr_db=agreement.sqnr_db,
        max_abs_error=agreement.max_abs_error,
        kl_divergence_nats=agreement.kl_divergence,
        top1_agreement=agreement.top1_agreement,
        is_logits=is_logits,
    )
