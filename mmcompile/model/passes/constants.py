"""Which tensors of a graph are constant, and how their values are computed.

A tensor is a constant operand where it is an initializer or a Constant node, or where a chain of
shape, type or dequantizing operators leads to it from such tensors only: weights behind a Cast, a
Transpose, a DequantizeLinear or an Identity.
"""

from __future__ import annotations

import functools

import onnx
from onnx import helper

from mmcompile.model.sites import ConstantSource
from mmcompile.model.source import SourceModel

TRANSPARENT_OPS = frozenset(
    "Add Cast Concat Constant DequantizeLinear Div Expand Flatten Identity Mul Reshape Squeeze "
    "Sub Transpose Unsqueeze".split()
)
_LONGEST_CHAIN = 32


class ConstantFinder:
    """Answers whether a tensor of the main graph is constant, and where its value comes from."""

    def __init__(self, source: SourceModel) -> None:
        graph = source.proto.graph
        self._opsets = source.proto.opset_import
        self._ir_version = source.proto.ir_version
        fed = {value.name for value in graph.input}
        self._initializers = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in fed
        }
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._defaults = {tensor.name for tensor in graph.initializer if tensor.name in fed}
        self._is_constant = functools.cache(self._derive)

    def is_constant(self, name: str) -> bool:
        """Whether the tensor's value is known before any input is."""
        return bool(name) and self._is_constant(name, False, 0)

    def is_replaceable(self, name: str) -> bool:
        """Whether it is constant as long as no caller feeds an input that has a default."""
        return bool(name) and self._is_constant(name, True, 0)

    def _derive(self, name: str, with_defaults: bool, depth: int) -> bool:
        if name in self._initializers or (with_defaults and name in self._defaults):
            return True
        node = self._producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or depth > _LONGEST_CHAIN:
            return False
        if node.op_type not in TRANSPARENT_OPS:
            return False
        return all(
            self._is_constant(value, with_defaults, depth + 1) for value in node.input if value
        )

    def source(self, name: str) -> tuple[ConstantSource, bool] | None:
        """The constant behind a tensor.

        Plain Transposes and Identities of a two-dimensional initializer are looked through, so
        that its bytes can be read in place.

        Returns:
            The constant and whether its two axes are swapped against the tensor; None where the
            expression's type or shape cannot be inferred.
        """
        swapped = False
        leaf = name
        while leaf not in self._initializers:
            node = self._producers[leaf]
            if node.op_type == "Transpose" and _swaps_two_axes(node):
                swapped = not swapped
            elif node.op_type != "Identity":
                break
            leaf = node.input[0]
        if tensor := self._initializers.get(leaf):
            shape = tuple(tensor.dims)
            if len(shape) == 2 or not swapped:
                return ConstantSource(name, (leaf,), None, tensor.data_type, shape), swapped
        expression = self._expression(name)
        return None if expression is None else (expression, False)

    def _expression(self, name: str) -> ConstantSource | None:
        nodes: list[onnx.NodeProto] = []
        tensors: dict[str, onnx.TensorProto] = {}
        self._collect(name, nodes, tensors, set())
        leaves = [t for t in tensors.values() if t.data_location == onnx.TensorProto.EXTERNAL]
        inline = [t for t in tensors.values() if t.data_location != onnx.TensorProto.EXTERNAL]
        graph = helper.make_graph(
            nodes,
            "constant",
            [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in leaves],
            [onnx.ValueInfoProto(name=name)],
            inline,
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except onnx.shape_inference.InferenceError:
            return None
        tensor_type = inferred.graph.output[0].type.tensor_type
        dims = tensor_type.shape.dim
        if not tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
            return None
        shape = tuple(d.dim_value for d in dims)
        names = tuple(leaf.name for leaf in leaves)
        return ConstantSource(name, names, inferred, tensor_type.elem_type, shape)

    def _collect(
        self,
        name: str,
        nodes: list[onnx.NodeProto],
        tensors: dict[str, onnx.TensorProto],
        seen: set[str],
    ) -> None:
        if name in seen:
            return
        seen.add(name)
        if name in self._initializers:
            tensors[name] = self._initializers[name]
            return
        node = self._producers[name]
        for value in node.input:
            if value:
                self._collect(value, nodes, tensors, seen)
        nodes.append(node)


def _swaps_two_axes(node: onnx.NodeProto) -> bool:
    for attribute in node.attribute:
        if attribute.name == "perm":
            return list(attribute.ints) == [1, 0]
    return True  # the default reverses the axes; `source` checks that there are two
