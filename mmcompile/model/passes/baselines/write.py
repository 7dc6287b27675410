"""`write_baseline`: one baseline of a model, written to a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from mmcompile.model.check import check_operators
from mmcompile.model.opsets import opset_of
from mmcompile.model.passes.baselines.functions import (
    FP4_DEQUANTIZE,
    FP4_QUANTIZE,
    FP4_UNPACK,
    OWN,
    TRT,
    function_protos,
)
from mmcompile.model.passes.baselines.kinds import Kind, baseline_kind
from mmcompile.model.passes.baselines.linears import HalfModel, quantize_linears
from mmcompile.model.passes.baselines.raise_opset import raise_opset
from mmcompile.model.passes.half import main_type, to_half
from mmcompile.model.passes.half_rules import Halving
from mmcompile.model.passes.half_types import FP16
from mmcompile.model.passes.infer_types import infer_types
from mmcompile.model.passes.pending import Pending, write_weights
from mmcompile.model.sites import LinearSite, SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.model.walk import all_graphs
from mmcompile.model.writer import ModelWriter
from mmcompile.output import DATA_FILE, MODEL_FILE, StagedOutput, disk_errors
from mmcompile.plan import LeftAlone

RUNNABLE_FILE = "model.onnxruntime.onnx"
"""The copy for ONNX Runtime, where it differs; shares the data file."""


@dataclass(frozen=True)
class BaselineResult:
    """A baseline on disk.

    Attributes:
        kind: `fp16`, `fp8`, `mxfp8` or `nvfp4`.
        path: the model for TensorRT.
        runnable: the model for ONNX Runtime; the same file where all operators are standard.
        bytes: size of `path` and its data file.
        weight_bits: mean bits of a weight over all linears, block scales included.
        quantized: names of the linears that are quantized.
        left_alone: the linears that are not, with the reason.
        notes: what else a reader should know: numbers out of range, nodes kept in float32.
    """

    kind: str
    path: Path
    runnable: Path
    bytes: int
    weight_bits: float
    quantized: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]
    notes: tuple[str, ...]


def write_baseline(
    kind: str,
    source: SourceModel,
    groups: Sequence[SiteGroup],
    amax: Mapping[str, float],
    folder: Path,
    *,
    per_channel: bool = False,
) -> BaselineResult:
    """Writes a baseline of a model; inputs and outputs keep names, types and dimensions.

    The memory needed is that of the graph and of the largest weight.

    Args:
        kind: `fp16`, `fp8`, `mxfp8` or `nvfp4`.
        source: the model, every node named.
        groups: the linears that MicroMix would take.
        amax: largest |x| of every group's input, by tensor name, from the same calibration as
            MicroMix's; `fp16` and `mxfp8` need none.
        folder: receives model.onnx, model.onnx.data and, for `mxfp8` and `nvfp4`,
            model.onnxruntime.onnx; all of them or none.
        per_channel: FP8 weights have one scale per output channel instead of one each.

    Raises:
        UsageError: the kind is unknown, calibration has not seen a tensor, or the folder is the
            model's own.
        UnsupportedModelError: the model cannot be turned into this baseline.
        EnvironmentProblem: the folder cannot be written to.
    """
    found = baseline_kind(kind)
    pending = Pending()
    model = onnx.ModelProto()
    model.CopyFrom(source.proto)
    ranks = _ranks(model)
    before = opset_of(model)
    if raise_opset(model, found.min_opset):
        pending.notes.append(f"opset {before} raised to {found.min_opset}: all operators agree")
    model.ir_version = max(model.ir_version, found.min_ir)
    sites = [site for group in groups for site in group.sites]
    half_types = _halve(model, source, sites, pending)
    quantized: tuple[str, ...] = ()
    left: tuple[LeftAlone, ...] = ()
    if found.is_quantized:
        if not found.needs_data:
            amax = dict.fromkeys((group.input for group in groups), 0.0)  # scales are dynamic
        half = HalfModel(model, source, pending, ranks, half_types)
        result = quantize_linears(half, groups, amax, found, per_channel=per_channel)
        quantized, left = result.nodes, result.left_alone
        if any(node.domain == TRT for node in model.graph.node):
            model.opset_import.append(helper.make_opsetid(TRT, 1))
    _prune(model, pending)
    check_operators(model, source.path)
    with StagedOutput(folder, protect=source.files) as stage:
        with ModelWriter(stage.folder) as writer:
            write_weights(writer, model, source, pending)
            writer.finish(model)
        runnable = _runnable(model, found, stage.folder)
        files = stage.commit()
    written = {file.name for file in files}
    with disk_errors(folder):  # what an earlier run left speaks of another model
        for name in {DATA_FILE, RUNNABLE_FILE} - written:
            (folder / name).unlink(missing_ok=True)
    weights = {site.node: site.in_channels * site.out_channels for site in sites}
    narrow = sum(weights[name] for name in quantized)
    total = sum(weights.values())
    bits = (narrow * found.weight_bits + (total - narrow) * 16) / total if total else 16.0
    return BaselineResult(
        kind=kind,
        path=folder / MODEL_FILE,
        runnable=folder / (RUNNABLE_FILE if runnable else MODEL_FILE),
        bytes=sum(f.stat().st_size for f in files if f.name in (MODEL_FILE, DATA_FILE)),
        weight_bits=bits,
        quantized=quantized,
        left_alone=left,
        notes=tuple(pending.notes),
    )


def _halve(
    model: onnx.ModelProto, source: SourceModel, sites: Sequence[LinearSite], pending: Pending
) -> frozenset[int]:
    """Turns a skeleton into float16, in place; the original's types that are float16 now."""
    narrow = main_type(sites)
    if narrow == FP16.elem_type:
        pending.notes.append("the model computes in float16 and was left as it is")
    else:
        names = frozenset(site.node for site in sites)
        found = to_half(model, source, Halving(FP16, narrow, names), pending)
        kept = found.islands.total()
        pending.notes.append(f"{kept} of {found.nodes} nodes stay in float32 (half_rules)")
    return frozenset((narrow, FP16.elem_type))


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of dimensions of every tensor that shape inference knows."""
    graph = infer_types(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }


def _prune(model: onnx.ModelProto, pending: Pending) -> None:
    """Removes constant expressions and initializers that nothing reads any more."""
    graph = model.graph
    kept = {value.name for value in (*graph.output, *graph.input)}
    kept.update(name for body in all_graphs(model) if body is not graph for name in _reads(body))
    nodes = []
    for node in reversed(graph.node):  # readers come before what they read
        if not kept.isdisjoint(node.output):
            kept.update(node.input)
            nodes.append(node)
    nodes.reverse()
    tensors = [tensor for tensor in graph.initializer if tensor.name in kept]
    values = [value for value in graph.value_info if value.name in kept]
    for name in {tensor.name for tensor in graph.initializer} - kept:
        pending.made.pop(name, None)
    _replace(graph.node, nodes)
    _replace(graph.initializer, tensors)
    _replace(graph.value_info, values)


def _replace(field: Any, items: list[Any]) -> None:
    """Gives a repeated field of a graph new content, which may be part of the old one."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _reads(graph: onnx.GraphProto) -> list[str]:
    names = [value.name for value in graph.output]
    return names + [name for node in graph.node for name in node.input]


def _runnable(model: onnx.ModelProto, kind: Kind, folder: Path) -> bool:
    """Writes the copy for ONNX Runtime; False where the model itself runs there.

    Its FLOAT4E2M1 constants are the same bytes, declared as UINT8 of half the length.
    """
    functions = function_protos(kind.name, opset_of(model))
    if not functions or not any(node.domain == TRT for node in model.graph.node):
        return False
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    packed = set()
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT4E2M1:
            packed.add(tensor.name)
            tensor.data_type = TensorProto.UINT8
            tensor.dims[-1] //= 2
    dynamic = {node.output[0] for node in copy.graph.node if node.op_type == FP4_QUANTIZE}
    for node in copy.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in packed | dynamic:
            node.op_type = FP4_UNPACK if node.input[0] in packed else FP4_DEQUANTIZE
            node.domain = OWN
    if packed or dynamic:
        copy.opset_import.append(helper.make_opsetid(OWN, 1))
    copy.functions.extend(functions)
    check_operators(copy, folder / RUNNABLE_FILE)
    with disk_errors(folder):
        (folder / RUNNABLE_FILE).write_bytes(copy.SerializeToString(deterministic=True))
    return True
