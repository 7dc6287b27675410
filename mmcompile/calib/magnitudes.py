"""The largest magnitude that each tensor of a model reaches, from runs over some samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.calib.collect import run_sample
from mmcompile.calib.instrument import prune
from mmcompile.data.dataset import Sample
from mmcompile.model.session import open_session

_SCOPE = "mmcompile.magnitude"
_ATTRIBUTES = {
    "Concat": helper.make_attribute("axis", 0),
    "ReduceMax": helper.make_attribute("keepdims", 0),
}


def largest_magnitudes(
    skeleton: onnx.ModelProto, folder: Path, tensors: Sequence[str], samples: Iterable[Sample]
) -> dict[str, float]:
    """The largest finite |x| of some tensors over all samples, by name; NaN counts as nothing.

    Infinities are no measure: any floating-point type holds those of a mask.

    Args:
        skeleton: the graph to run.
        folder: where its external data lies.
        tensors: float32 tensors of its main graph.
        samples: the inputs, each one run.

    Raises:
        UnsupportedModelError: the model cannot run.
        UsageError: a sample does not fit the model.
    """
    found = dict.fromkeys(tensors, 0.0)
    session = open_session(_measuring(skeleton, tensors), folder)
    names = [output.name for output in session.get_outputs()]
    for number, sample in enumerate(samples):
        values = run_sample(session, names, sample, number)
        for tensor, value in zip(tensors, values, strict=True):
            found[tensor] = max(found[tensor], float(np.nan_to_num(value, posinf=0.0)))
    return found


def _measuring(skeleton: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model whose only outputs are the magnitudes, in order."""
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    graph = model.graph
    zero, flat = f"{_SCOPE}.zero", f"{_SCOPE}.flat"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.zeros(1, np.float32), zero),
            numpy_helper.from_array(np.array([-1], np.int64), flat),
        ]
    )
    del graph.output[:]
    for number, tensor in enumerate(tensors):
        scope = f"{_SCOPE}.{number}"
        steps = (
            ("IsInf", [tensor], "infinite"),
            ("Where", [f"{scope}.infinite", zero, tensor], "finite"),
            ("Abs", [f"{scope}.finite"], "absolute"),
            ("Reshape", [f"{scope}.absolute", flat], "row"),
            # ReduceMax refuses tensors without elements.
            ("Concat", [f"{scope}.row", zero], "longer"),
            ("ReduceMax", [f"{scope}.longer"], "largest"),
        )
        for op_type, inputs, name in steps:
            output = f"{scope}.{name}"
            node = helper.make_node(op_type, inputs, [output], output)
            if op_type in _ATTRIBUTES:
                node.attribute.append(_ATTRIBUTES[op_type])
            graph.node.append(node)
        value = helper.make_tensor_value_info(f"{scope}.largest", TensorProto.FLOAT, [])
        graph.output.append(value)
    prune(graph)
    return model
