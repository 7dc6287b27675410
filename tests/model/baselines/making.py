"""Baselines of small models, from a graph to a result on disk and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmcompile.model.passes.baselines import BaselineResult, write_baseline
from mmcompile.model.session import open_session
from tests.compiling import Prepared, prepare
from tests.running import run


def make(
    kind: str,
    model: onnx.ModelProto | Path,
    folder: Path,
    amax: Mapping[str, float] | float = 4.0,
    **options: object,
) -> BaselineResult:
    """The baseline of a model, heads included; one amax may serve all tensors."""
    prepared = prepare(model, folder)
    return make_from(kind, prepared, folder / kind, amax, **options)


def make_from(
    kind: str,
    prepared: Prepared,
    folder: Path,
    amax: Mapping[str, float] | float = 4.0,
    **options: object,
) -> BaselineResult:
    """The baseline of a prepared model."""
    if isinstance(amax, float):
        amax = {group.input: amax for group in prepared.groups}
    return write_baseline(
        kind,
        prepared.source,
        prepared.groups,
        amax,
        folder,
        **options,  # type: ignore[arg-type]
    )


def run_bfloat16(path: Path, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of a model with bfloat16 inputs and outputs, fed and answered in float32.

    numpy knows no bfloat16, so that Casts are put at the border of a copy.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    before, after = [], []
    for values, nodes in ((graph.input, before), (graph.output, after)):
        for value in values:
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                inner, value.name = value.name, f"{value.name}.wide"
                names = [value.name, inner] if nodes is before else [inner, value.name]
                to = TensorProto.BFLOAT16 if nodes is before else TensorProto.FLOAT
                nodes.append(helper.make_node("Cast", names[:1], names[1:], to=to))
                value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*before, *[onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]]
    del graph.node[:]
    graph.node.extend([*nodes, *after])
    wide = path.with_name("wide.onnx")
    onnx.save(model, wide)
    return run(wide, {f"{name}.wide": value.astype(np.float32) for name, value in feed.items()})


def largest(prepared: Prepared, feed: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Largest |x| of every group's input, from a run of the original."""
    model = onnx.ModelProto()
    model.CopyFrom(prepared.source.proto)
    names = [group.input for group in prepared.groups]
    known = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    inside = [name for name in names if name not in feed]
    values = open_session(model, prepared.source.folder).run(inside, dict(feed)) if inside else []
    found = dict(zip(inside, values, strict=True)) | {n: feed[n] for n in names if n in feed}
    return {name: float(np.abs(value).max()) for name, value in found.items()}
