"""What is known of a graph's tensors before it runs: element types, shapes, constant values."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from mmcompile.model.tensors import is_external

Dimension = int | str | None
Shape = tuple[Dimension, ...]

_FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
)
_INVENTED = re.compile(r"unk__\d+")
"""Names that shape inference gives to sizes it does not know."""


@dataclass(frozen=True)
class TensorFacts:
    """Element types, shapes and small constants of a graph by tensor name.

    Attributes:
        types: `onnx.TensorProto` element types.
        shapes: shapes; two dimensions with the same symbol have the same size.
        constants: values of initializers and Constant nodes that lie in the skeleton.
        weights: initializers that lie outside of it.
    """

    types: dict[str, int]
    shapes: dict[str, Shape]
    constants: dict[str, onnx.TensorProto]
    weights: frozenset[str]

    def may_be_float(self, name: str) -> bool:
        """Whether a tensor can carry a gradient; True where its type is not known."""
        return self.types.get(name, TensorProto.FLOAT) in _FLOATS

    def rank(self, name: str) -> int | None:
        """Number of dimensions, None where it is not known."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a small constant, None for any other tensor."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def same_shape(self, first: str, second: str) -> bool:
        """Whether two tensors are known to have the same shape in every run."""
        one, other = self.shapes.get(first), self.shapes.get(second)
        return one is not None and None not in one and one == other


def learn_facts(model: onnx.ModelProto) -> TensorFacts:
    """The facts of a skeleton, by ONNX's shape inference; what it cannot tell is absent."""
    inferred = model
    with contextlib.suppress(Exception):  # facts only make the backward cheaper
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if not kind.elem_type:
            continue
        types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(_dimension(dim) for dim in kind.shape.dim)
    constants: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
        shapes[tensor.name] = tuple(tensor.dims)
        if not is_external(tensor):
            constants[tensor.name] = tensor
    for value in graph.input:  # what a caller may set is no constant
        constants.pop(value.name, None)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            _note_constant(node, constants)
    weights = frozenset(t.name for t in graph.initializer if is_external(t))
    return TensorFacts(types, shapes, constants, weights)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> Dimension:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    if not dim.dim_param or _INVENTED.fullmatch(dim.dim_param):
        return None
    return str(dim.dim_param)


def _note_constant(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    attribute = node.attribute[0]
    name = node.output[0]
    match attribute.name:
        case "value":
            constants[name] = attribute.t
        case "value_int":
            constants[name] = numpy_helper.from_array(np.array(attribute.i, np.int64))
        case "value_ints":
            constants[name] = numpy_helper.from_array(np.array(attribute.ints, np.int64))
        case "value_float":
            constants[name] = numpy_helper.from_array(np.array(attribute.f, np.float32))
        case "value_floats":
            constants[name] = numpy_helper.from_array(np.array(attribute.floats, np.float32))
