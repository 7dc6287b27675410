"""The compiled model against the original, on inputs that calibration did not see."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from mmcompile.data.dataset import CalibrationData, Sample, trim_padding
from mmcompile.data.options import DataOptions
from mmcompile.errors import UsageError
from mmcompile.model.passes.infer_types import tensor_types
from mmcompile.model.passes.rest_only import RestOnly
from mmcompile.model.passes.upcast_half import uses_bfloat16
from mmcompile.model.selection import Selection
from mmcompile.model.source import SourceModel, load_model
from mmcompile.model.tensors import shown
from mmcompile.pipeline.options import VerifyOptions
from mmcompile.pipeline.prepare import Prepared, input_specs, prepare
from mmcompile.pipeline.run import open_inputs
from mmcompile.progress import Progress
from mmcompile.report.model import LayerError, OutputReport, VerificationReport
from mmcompile.verification.compiled import compiled_nodes, read_nodes
from mmcompile.verification.metrics import Agreement
from mmcompile.verification.nodes import node_excess
from mmcompile.verification.outputs import LayerSpec, compare_layers, compare_outputs, first_below
from mmcompile.verification.runnable import runnable
from mmcompile.verification.unpacked import runs_unpacked

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
        rest: the original with all but its linears in half precision, to be measured apart.
    """

    data: CalibrationData | None
    disjoint: bool = True
    rows: Rows = lambda _: None
    rest: RestOnly | None = None


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
    check_demands(prepared, inputs.held_back, options)
    evidence = Evidence(inputs.held_back)
    return verify_models(prepared, load_model(compiled), evidence, options, progress)


def check_demands(prepared: Prepared, data: CalibrationData | None, options: VerifyOptions) -> None:
    """Refuses, before any work is done, demands that could not be checked in the end.

    Raises:
        UsageError: `fail_below` is asked for and the models will not be run, or there is no such
            output as `logits` names.
    """
    logit_outputs(prepared.source, options)
    if options.fail_below is None:
        return
    if not options.enabled:
        reason, remedy = "verification is switched off", "leave --no-verify out"
    elif data is None:
        reason, remedy = (
            "there are no inputs to run the models with",
            "give --calib or --verify-data",
        )
    else:
        return
    raise UsageError("fail-below-unmeasured", "--fail-below", reason, remedy)


def shortfall(report: VerificationReport) -> tuple[str, str, str]:
    """Where a failed verification failed, by how much, and what may help, in words."""
    worst = min(report.outputs, key=lambda o: o.cosine_mean or -2.0, default=None)
    if worst is None or worst.cosine_mean is None:
        reason = report.note or "the outputs cannot be compared"
        return "verification", reason, "exclude layers, or look at the model with --no-verify"
    reason = f"mean cosine similarity {worst.cosine_mean:.6f}, demanded was {report.threshold}"
    if report.first_bad_layer:
        reason += f"; first bad layer: {report.first_bad_layer}"
    return f"output {worst.name}", reason, "use more bits, exclude layers, or lower --fail-below"


def verify_models(
    prepared: Prepared,
    compiled: SourceModel,
    evidence: Evidence,
    options: VerifyOptions,
    progress: Progress,
) -> VerificationReport:
    """Compares a compiled model with the original.

    What is bfloat16 cannot run in ONNX Runtime on the CPU. It is computed in float32, rounded after
    every node where the original was not bfloat16 itself, and the nodes are held against the
    specification one by one as they are; the report says so.
    """
    check_interface(prepared.source, compiled)
    notes = []
    if uses_bfloat16(compiled.proto) or options.nodes:
        excess = _worst_node(prepared, compiled, evidence.rows, progress)
        notes.append(
            "every MicroMixLinear node was compared with the specification: the worst is at "
            f"{excess:.2f} of the derived error bound"
        )
        if excess > 1:
            found = Found("sampled activations", notes)
            return summarize(prepared, options, found, passed=False)
    if evidence.data is None:
        notes.append("the models were not run: no inputs were given (--calib or --verify-data)")
        return summarize(prepared, options, Found("none", notes), passed=True)
    if not evidence.disjoint:
        notes.append("too few samples to hold any back: these inputs are those of calibration")
    samples = take_samples(prepared, evidence.data, options.samples)
    original = prepared.runnable_source
    logits = logit_outputs(original, options)
    specs = layer_specs(prepared, compiled)
    if uses_bfloat16(compiled.proto):
        how = "" if prepared.is_bfloat16 else ", rounded after every node"
        notes.append(f"bfloat16 was computed in float32{how}: the CPU has no bfloat16")
        compiled = runnable(compiled, rounded=not prepared.is_bfloat16)
    others = [compiled]
    if evidence.rest is not None:
        alone = evidence.rest.in_float32(rounded=True)
        others.append(dataclasses.replace(prepared.source, proto=alone))
    outputs, *rest = compare_outputs(original, others, samples, logits, progress)
    if runs_unpacked(compiled):
        notes.append("the compiled model ran with its weights unpacked by the native module")
    missed = misses(outputs, options.fail_below)
    layers: dict[str, Agreement] = {}
    if options.layers or missed:
        layers = compare_layers(original, compiled, specs, samples, progress)
    alone_outputs = rest[0] if rest else {}
    found = Found(evidence.data.description, notes, len(samples), outputs, layers, alone_outputs)
    return summarize(prepared, options, found, passed=not missed)


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


def check_interface(source: SourceModel, compiled: SourceModel) -> None:
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
    return ", ".join(map(_declaration, values))


def _declaration(value: onnx.ValueInfoProto) -> str:
    """An input or output in words, e.g. `logits float32[batch, 128, ?]`."""
    tensor = value.type.tensor_type
    dims = (
        d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return shown(f"{value.name} {dtype}[{', '.join(map(str, dims))}]")


def layer_specs(prepared: Prepared, compiled: SourceModel) -> list[LayerSpec]:
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
    types = tensor_types(compiled.proto)
    casts = {n.output[0]: n.input[0] for n in compiled.proto.graph.node if n.op_type == "Cast"}
    worst = 0.0
    total = len(compiled_nodes(compiled))
    for _, plan, packed in progress.track(read_nodes(compiled), "checking nodes", total):
        rows = rows_of(casts.get(plan.input, plan.input))
        if rows is None:
            random = np.random.default_rng(plan.in_channels)
            rows = random.standard_normal((NODE_ROWS, plan.in_channels), dtype=np.float32)
        elem_type = types[plan.input]
        worst = max(worst, node_excess(plan, packed, rows[:NODE_ROWS], elem_type, prepared.opset))
    return worst


def misses(outputs: Mapping[str, Agreement], bound: float | None) -> bool:
    """Whether any output misses a bound on its mean cosine, or cannot be compared at all."""
    if any(agreement.mismatch for agreement in outputs.values()):
        return True
    cosines = [agreement.cosine_mean for agreement in outputs.values()]
    return bound is not None and any(math.isnan(c) or c < bound for c in cosines)


@dataclass(frozen=True)
class Found:
    """What a comparison found.

    Attributes:
        inputs: what was run, in words.
        notes: for the reader.
        samples: how many.
        outputs: agreement by output.
        layers: agreement by layer.
        rest_alone: agreement by output of the original with its rest in half precision.
    """

    inputs: str
    notes: list[str]
    samples: int = 0
    outputs: Mapping[str, Agreement] = field(default_factory=dict)
    layers: Mapping[str, Agreement] = field(default_factory=dict)
    rest_alone: Mapping[str, Agreement] = field(default_factory=dict)


def summarize(
    prepared: Prepared, options: VerifyOptions, found: Found, *, passed: bool
) -> VerificationReport:
    """The report of a comparison."""
    logits = logit_outputs(prepared.source, options)
    mismatches = [f"{name}: {o.mismatch}" for name, o in found.outputs.items() if o.mismatch]
    bound = options.fail_below
    return VerificationReport(
        inputs=found.inputs,
        samples=found.samples,
        outputs=_outputs(prepared.source, found.outputs, logits),
        rest_alone=_outputs(prepared.source, found.rest_alone, logits),
        layers=tuple(
            LayerError(name=name, cosine=layer.cosine_mean, sqnr_db=layer.sqnr_db)
            for name, layer in found.layers.items()
        ),
        first_bad_layer=first_below(found.layers, BAD_LAYER_COSINE if bound is None else bound),
        threshold=None if bound is None else f"mean cosine of every output at least {bound:g}",
        passed=passed,
        note="; ".join([*found.notes, *mismatches]) or None,
    )


def _outputs(
    source: SourceModel, found: Mapping[str, Agreement], logits: frozenset[str]
) -> tuple[OutputReport, ...]:
    return tuple(
        _output(value, found[value.name], value.name in logits)
        for value in source.proto.graph.output
        if value.name in found
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
