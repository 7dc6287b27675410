"""Which nodes of a graph may compute in float16, and why the others may not.

A node stays in float32 where

1. its operator is in `FULL_OPS`: squares, sums and exponentials leave float16's range (65504) or
   its 11 bits long before activations do;
2. onnx's schema of the operator has no float16 at one of the node's float inputs or outputs
   (`Resize`'s scales), or the operator is not one of the standard domain, or it has a body;
3. it computes on numbers that come from integers alone: positions, their angles, masks. Positions
   above 2048 are no float16 numbers, and the angle's error grows with them;
4. it multiplies a tensor by itself: a square, see 1;
5. it stands between such nodes only: float32 in, float32 out, as `Add(ε)` in a norm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, defs, numpy_helper

from mmcompile.model.opsets import STANDARD, opset_of

HALF_MAX = 65504.0
"""The largest finite float16."""
_RANGE = "its result leaves float16's range or precision where its inputs do not"
FULL_OPS = {
    **dict.fromkeys("Pow Exp Log Reciprocal Sqrt".split(), _RANGE),
    **dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum "
        "ReduceSumSquare CumSum".split(),
        "a sum over many elements needs more than 11 bits",
    ),
    **dict.fromkeys("Sin Cos Range".split(), "positions above 2048 are no float16 numbers"),
    **dict.fromkeys(
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear".split(),
        "its scales stay as they were exported",
    ),
    **dict.fromkeys(
        "ConstantOfShape EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
        "Bernoulli Multinomial".split(),
        "its element type is an attribute",
    ),
}
"""Operators that stay in float32, with the reason."""
_TABLES = frozenset("Gather GatherElements GatherND OneHot".split())
"""Operators that look up a constant table: their results are learned, not counted."""


class HalfRules:
    """The decision for every node of a main graph.

    Args:
        model: the skeleton.
        types: element type of every tensor of the main graph.
        narrow: the element type that becomes float16: FLOAT, or BFLOAT16.
        linears: names of the nodes that are linears; they are never counted as rule 3.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        types: Mapping[str, int],
        narrow: int,
        linears: frozenset[str],
    ) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self._types = types
        self._narrow = narrow
        self._linears = linears
        self._constants = {t.name for t in self._graph.initializer}
        self._constants -= {value.name for value in self._graph.input}
        self.beyond: set[str] = set()
        """Tensors computed from integers and from a constant beyond float16's range."""
        self._beyond_constants = {
            t.name for t in self._graph.initializer if self._is_beyond(t)
        } & self._constants
        self._counted = self._integer_arithmetic()
        full = [self._stays(node) for node in self._graph.node]
        self.full = self._between(full)
        """For every node in order: whether it computes in float32."""

    def _stays(self, node: onnx.NodeProto) -> bool:
        """Rules 1 to 4."""
        if node.op_type == "Cast" and node.domain in STANDARD:
            return bool(self._counted.intersection(node.output))
        if node.domain not in STANDARD or node.op_type in FULL_OPS:
            return True
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            return True
        if self._counted.intersection(node.output) or not self._schema_allows(node):
            return True
        return node.op_type == "Mul" and node.input[0] == node.input[1]

    def _schema_allows(self, node: onnx.NodeProto) -> bool:
        try:
            schema = defs.get_schema(node.op_type, self._opset, "")
        except defs.SchemaError:
            return False
        for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for index, name in enumerate(names):
                formal = formals[min(index, len(formals) - 1)]
                if self._is_narrow(name) and "tensor(float16)" not in formal.types:
                    return False
        return True

    def _integer_arithmetic(self) -> set[str]:
        """Rule 3: the float tensors that depend on integers and constants only."""
        counted: set[str] = set()
        constants = set(self._constants)
        for node in self._graph.node:
            inputs = [name for name in node.input if name]
            if all(name in constants for name in inputs) and not node.op_type.startswith("Random"):
                constants.update(node.output)
                for attribute in node.attribute:
                    if attribute.HasField("t") and self._is_beyond(attribute.t):
                        self._beyond_constants.update(node.output)
                if self._beyond_constants.intersection(inputs):
                    self._beyond_constants.update(node.output)
                continue
            if node.name in self._linears or node.domain not in STANDARD:
                continue
            if node.op_type in _TABLES and inputs[0] in constants:
                continue
            if all(n in constants or n in counted or self._is_integer(n) for n in inputs):
                floats = [name for name in node.output if self._is_narrow(name)]
                counted.update(floats)
                if not (self.beyond | self._beyond_constants).isdisjoint(inputs):
                    self.beyond.update(floats)
        return counted

    def _between(self, full: list[bool]) -> list[bool]:
        """Rule 5, until nothing changes."""
        nodes = list(self._graph.node)
        readers: dict[str, list[int]] = {}
        makers = {name: index for index, node in enumerate(nodes) for name in node.output}
        for index, node in enumerate(nodes):
            for name in node.input:
                readers.setdefault(name, []).append(index)
        outputs = {value.name for value in self._graph.output}
        changed = True
        while changed:
            changed = False
            for index, node in enumerate(nodes):
                if full[index] or node.op_type == "Constant" or node.name in self._linears:
                    continue
                sources = [makers[n] for n in node.input if n in makers and self._is_narrow(n)]
                sources = [s for s in sources if nodes[s].op_type != "Constant"]
                fed = [n for n in node.input if self._is_narrow(n) and n not in makers]
                fed = [name for name in fed if name not in self._constants]
                sinks = [i for name in node.output for i in readers.get(name, [])]
                if fed or not sources or not sinks or outputs.intersection(node.output):
                    continue
                if all(full[i] for i in sources) and all(full[i] for i in sinks):
                    full[index] = changed = True
        return full

    def _is_narrow(self, name: str) -> bool:
        return self._types.get(name) == self._narrow

    def _is_integer(self, name: str) -> bool:
        return self._types.get(name, TensorProto.UNDEFINED) not in _FLOAT_TYPES

    def _is_beyond(self, tensor: onnx.TensorProto) -> bool:
        if tensor.data_type != self._narrow or tensor.data_location == TensorProto.EXTERNAL:
            return False
        values = numpy_helper.to_array(tensor).astype(np.float32)
        return bool((np.abs(values[np.isfinite(values)]) > HALF_MAX).any())


_FLOAT_TYPES = frozenset(
    (
        TensorProto.UNDEFINED,
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
    )
)
