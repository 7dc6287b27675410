"""Pass: make a bfloat16 graph run on runtimes that have no bfloat16 arithmetic.

1. Every bfloat16 initializer is read through a Cast to float32; its bytes are untouched. It is no
   input any more, where it was one that a caller may leave out.
2. Inputs, outputs, value infos, Constants and the targets of Casts become float32.

Activations are then computed in float32. That serves calibration, which asks for magnitudes; the
rewritten model stays bfloat16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.model.walk import all_graphs, all_nodes

SUFFIX = ".bfloat16"
_TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_dtype", "stash_type", "softmax_precision"))
"""Attributes of standard operators that hold an element type."""


def uses_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether the model computes in bfloat16.

    Storing weights in bfloat16 and casting them before use does not count: runtimes can do that.
    """
    narrow = {
        tensor.name
        for graph in all_graphs(model)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.BFLOAT16
    }
    if any(v.type.tensor_type.elem_type == TensorProto.BFLOAT16 for v in model.graph.input):
        return True
    return any(
        (node.op_type != "Cast" and not narrow.isdisjoint(node.input))
        or any(a.name in _TYPE_ATTRIBUTES and a.i == TensorProto.BFLOAT16 for a in node.attribute)
        for node in all_nodes(model)
    )


def upcast_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the skeleton that computes in float32."""
    upcast = onnx.ModelProto()
    upcast.CopyFrom(model)
    for graph in all_graphs(upcast):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        casts = []
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.BFLOAT16:
                wide, tensor.name = tensor.name, tensor.name + SUFFIX
                casts.append(
                    helper.make_node(
                        "Cast", [tensor.name], [wide], name=f"upcast.{wide}", to=TensorProto.FLOAT
                    )
                )
        constants = {cast.output[0] for cast in casts}
        for value in [value for value in graph.input if value.name in constants]:
            graph.input.remove(value)
        nodes = [*casts, *graph.node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    for node in all_nodes(upcast):
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.BFLOAT16:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
    return upcast
