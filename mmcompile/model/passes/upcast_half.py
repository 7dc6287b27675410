"""Pass: make a graph of a half-precision type compute in float32, for runtimes without it.

1. Every initializer of the type is read through a Cast to float32; its bytes are untouched. It is
   no input any more, where it was one that a caller may leave out.
2. Inputs, outputs, value infos, Constants and the targets of Casts become float32.
3. With `rounded`, what a node gives is rounded to the type, and its float32 tensor holds numbers
   of the type: the numbers of a runtime that rounds after every node. Operators that only move
   numbers round nothing.

Without rounding it serves calibration, which asks for magnitudes, and comparisons that are not to
see what half precision costs. The model that is written keeps its type.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.model.opsets import STANDARD
from mmcompile.model.passes.infer_types import tensor_types
from mmcompile.model.walk import all_graphs, all_nodes

_TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_dtype", "stash_type", "softmax_precision"))
"""Attributes of standard operators that hold an element type."""
_MOVES = frozenset(
    "Concat Constant Expand Flatten Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze "
    "Where".split()
)
"""Operators whose results are among the numbers that they read."""


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


def upcast_half(
    model: onnx.ModelProto,
    elem_type: int = TensorProto.BFLOAT16,
    *,
    rounded: bool = False,
    exact: Set[str] = frozenset(),
) -> onnx.ModelProto:
    """A copy of the skeleton that computes in float32.

    Args:
        model: the skeleton.
        elem_type: the type that becomes float32.
        rounded: round what the nodes of the main graph give to the type.
        exact: tensors that are not rounded all the same; a weight among them that is read through
            a Cast is read as it is.

    Raises:
        UnsupportedModelError: with `rounded`, the types contradict each other.
    """
    suffix = f".{helper.tensor_dtype_to_np_dtype(elem_type).name}"
    types = tensor_types(model) if rounded else {}
    upcast = onnx.ModelProto()
    upcast.CopyFrom(model)
    for graph in all_graphs(upcast):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == elem_type:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        casts = []
        for tensor in graph.initializer:
            if tensor.data_type == elem_type:
                wide, tensor.name = tensor.name, tensor.name + suffix
                casts.append(_cast(tensor.name, wide, TensorProto.FLOAT, f"upcast.{wide}"))
        constants = {cast.output[0] for cast in casts}
        for value in [value for value in graph.input if value.name in constants]:
            graph.input.remove(value)
        nodes = [*casts, *graph.node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    for node in all_nodes(upcast):
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == elem_type:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == elem_type:
                value = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
    if rounded:
        stored = {tensor.name for tensor in model.graph.initializer}
        written = {name for name, kind in types.items() if kind == elem_type} - stored - exact
        as_read = {
            node.output[0]: node.input[0]
            for node in upcast.graph.node
            if node.op_type == "Cast" and node.output[0] in exact and node.input[0] in stored
        }
        nodes = [n for node in upcast.graph.node for n in _rounding(node, written, elem_type)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del upcast.graph.node[:]
        upcast.graph.node.extend(n for n in copies if as_read.keys().isdisjoint(n.output))
        for node in upcast.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = as_read.get(name, name)
    return upcast


def _rounding(node: onnx.NodeProto, written: Set[str], elem_type: int) -> Iterator[onnx.NodeProto]:
    """A node with the Casts there and back that round those of its outputs."""
    exact = node.domain in STANDARD and node.op_type in _MOVES
    names = [] if exact else [name for name in node.output if name in written]
    renamed = onnx.NodeProto()
    renamed.CopyFrom(node)
    for index, name in enumerate(node.output):
        if name in names:
            renamed.output[index] = f"{name}.unrounded"
    yield renamed
    for name in names:
        yield _cast(f"{name}.unrounded", f"{name}.rounded", elem_type, f"round.{name}")
        yield _cast(f"{name}.rounded", name, TensorProto.FLOAT, f"widen.{name}")


def _cast(read: str, target: str, elem_type: int, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [read], [target], name=name, to=elem_type)
