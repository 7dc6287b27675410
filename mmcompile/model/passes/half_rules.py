"""Which nodes of a graph may compute in half precision, and why the others may not.

A node stays in float32 where

1. its operator is in `FULL_OPS`: squares, sums and exponentials leave float16's range (65504) or
   its 11 bits long before activations do;
2. onnx's schema of the operator has no such type at one of the node's float inputs or outputs
   (`Resize`'s scales), or the operator is not one of the standard domain, or it has a body, or it
   handles sequences;
3. it computes on numbers that come from integers alone: positions, their angles, masks. Positions
   above 2048 are no float16 numbers, and the angle's error grows with them;
4. it multiplies a tensor by itself: a square, see 1;
5. it reads or makes a tensor whose numbers were seen to leave the type's range (`Halving.beyond`);
6. it multiplies by a small constant that is beyond the type's range, or it adds or compares with
   one that vanishes in it, as the ε that a divisor is kept from zero by; and that division;
7. it stands between such nodes only: float32 in, float32 out, as `Add(ε)` in a norm.

A Cast belongs to those who read it: it stays where all of them do. A `MicroMixLinear` computes in
any type; only rule 5 keeps it in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, defs, numpy_helper

from mmcompile import ops
from mmcompile.model.opsets import STANDARD, opset_of
from mmcompile.model.passes.half_types import HalfType
from mmcompile.model.tensors import is_external

REASONS = {
    "range": "its result leaves half precision's range or bits where its inputs do not",
    "sum": "a sum over many elements needs more bits",
    "positions": "it computes on positions or masks, which are counted and not learned",
    "square": "it multiplies a tensor by itself: a square leaves half precision's range early",
    "scales": "its scales stay as they were exported",
    "made-in-type": "its element type is an attribute",
    "no-such-type": "onnx does not define it in this type",
    "foreign": "it is no operator of the standard domain",
    "body": "it has a body, which is not rewritten",
    "magnitude": "calibration saw numbers in it that the type cannot hold",
    "constant": "it computes with a constant that the type cannot hold",
    "between": "it stands between nodes in float32 only",
}
"""Why a node stays in float32, by code."""
FULL_OPS = {
    **dict.fromkeys("Pow Exp Log Reciprocal Sqrt".split(), "range"),
    **dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum "
        "ReduceSumSquare CumSum".split(),
        "sum",
    ),
    **dict.fromkeys("Sin Cos Range".split(), "positions"),
    **dict.fromkeys("QuantizeLinear DequantizeLinear DynamicQuantizeLinear".split(), "scales"),
    **dict.fromkeys(
        "ConstantOfShape EyeLike RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
        "Bernoulli Multinomial".split(),
        "made-in-type",
    ),
}
"""Operators that stay in float32, with the code of the reason."""
_TABLES = frozenset("Gather GatherElements GatherND OneHot".split())
"""Operators that look up a constant table: their results are learned, not counted."""
_PRODUCTS = frozenset(("Mul", "Div"))
_BOUNDS = frozenset("Add Clip Max".split())
"""Operators that keep a divisor from zero by a constant."""
_MOVES = frozenset("Cast Expand Identity Reshape Squeeze Transpose Unsqueeze".split())
"""Operators that may stand between a bound and the division."""


@dataclass(frozen=True)
class Halving:
    """What to turn into half precision.

    Attributes:
        half: the type to compute in.
        narrow: the element type that becomes it: what most of the model computes in.
        linears: names of the nodes that are linears; they are never counted as rule 3.
        beyond: tensors whose numbers were seen to leave the type's range.
        stored: whether weights are converted; else they stay and are read through Casts.
    """

    half: HalfType
    narrow: int
    linears: frozenset[str] = frozenset()
    beyond: frozenset[str] = frozenset()
    stored: bool = True


class HalfRules:
    """The decision for every node of a main graph.

    Args:
        model: the skeleton.
        types: element type of every tensor of the main graph.
        halving: what is asked for.
    """

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, int], halving: Halving) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self._types = types
        self._halving = halving
        self._constants = {t.name for t in self._graph.initializer}
        self._constants -= {value.name for value in self._graph.input}
        self.beyond: set[str] = set()
        """Tensors computed from integers and from a constant beyond the type's range."""
        self.beyond_constants: set[str] = set()
        """Small constants with numbers beyond the type's range."""
        self._vanishing: set[str] = set()
        """Small constants all of whose numbers become zero, and what was made with them."""
        for tensor in self._graph.initializer:
            if tensor.name in self._constants:
                self._look_at(tensor, tensor.name)
        self._counted = self._integer_arithmetic()
        self.reasons = [self._reason(node) for node in self._graph.node]
        """For every node in order: the code of why it stays in float32; None where it does not."""
        self._between()

    def islands(self) -> Counter[str]:
        """How many nodes stay in float32, by the code of the reason; those without floats not."""
        return Counter(
            reason
            for node, reason in zip(self._graph.node, self.reasons, strict=True)
            if reason is not None and self._has_floats(node)
        )

    def nodes_with_floats(self) -> int:
        """How many nodes read or make what may become half precision."""
        return sum(map(self._has_floats, self._graph.node))

    def _has_floats(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ("Cast", "Constant") and node.domain in STANDARD:
            return False
        return any(self._is_narrow(name) for name in (*node.input, *node.output))

    def _reason(self, node: onnx.NodeProto) -> str | None:
        """Rules 1 to 6."""
        misses_a_constant = self._misses_a_constant(node)
        if node.op_type == "Cast" and node.domain in STANDARD:
            return "positions" if self._counted.intersection(node.output) else None
        if not self._halving.beyond.isdisjoint((*node.input, *node.output)):
            return "magnitude"
        if is_compiled(node):
            return None
        if node.domain not in STANDARD:
            return "foreign"
        if node.op_type in FULL_OPS:
            return FULL_OPS[node.op_type]
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            return "body"
        if self._counted.intersection(node.output):
            return "positions"
        if not self._schema_allows(node):
            return "no-such-type"
        if node.op_type == "Mul" and node.input[0] == node.input[1]:
            return "square"
        return "constant" if misses_a_constant else None

    def _schema_allows(self, node: onnx.NodeProto) -> bool:
        try:
            schema = defs.get_schema(node.op_type, self._opset, "")
        except defs.SchemaError:
            return False
        for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for index, name in enumerate(names):
                formal = formals[min(index, len(formals) - 1)]
                if self._is_narrow(name) and self._halving.half.formal not in formal.types:
                    return False
                if name and self._types.get(name) == TensorProto.UNDEFINED:  # a sequence
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
                    if attribute.HasField("t"):
                        self._look_at(attribute.t, node.output[0])
                for found in (self.beyond_constants, self._vanishing):
                    if found.intersection(inputs):
                        found.update(node.output)
                continue
            if node.name in self._halving.linears or node.domain not in STANDARD:
                continue
            if node.op_type in _TABLES and inputs[0] in constants:
                continue
            if all(n in constants or n in counted or self._is_integer(n) for n in inputs):
                floats = [name for name in node.output if self._is_narrow(name)]
                counted.update(floats)
                if not (self.beyond | self.beyond_constants).isdisjoint(inputs):
                    self.beyond.update(floats)
        return counted

    def _between(self) -> None:
        """Rule 7, until nothing changes."""
        nodes = list(self._graph.node)
        readers: dict[str, list[int]] = {}
        makers = {name: index for index, node in enumerate(nodes) for name in node.output}
        for index, node in enumerate(nodes):
            for name in node.input:
                readers.setdefault(name, []).append(index)
        given = {value.name for value in self._graph.output}
        changed = True
        while changed:
            changed = False
            for index, node in enumerate(nodes):
                if self.reasons[index] or node.op_type == "Constant":
                    continue
                if node.name in self._halving.linears or is_compiled(node):
                    continue
                sinks = [i for name in node.output for i in readers.get(name, [])]
                is_given = bool(given.intersection(node.output))
                if node.op_type == "Cast" and node.domain in STANDARD:
                    narrow = self._is_narrow(node.output[0])
                    inside = narrow and bool(sinks or is_given)
                else:
                    sources = list(self._sources(node, makers))
                    inside = bool(sources and sinks) and not is_given
                    inside = inside and all(s is not None and self.reasons[s] for s in sources)
                if inside and all(self.reasons[i] for i in sinks):
                    self.reasons[index] = "between"
                    changed = True

    def _sources(self, node: onnx.NodeProto, makers: Mapping[str, int]) -> Iterator[int | None]:
        """The nodes that make a node's float inputs, Constants left out; None for a graph input."""
        for name in node.input:
            if not self._is_narrow(name) or name in self._constants:
                continue
            maker = makers.get(name)
            if maker is None or self._graph.node[maker].op_type != "Constant":
                yield maker

    def _is_narrow(self, name: str) -> bool:
        return bool(name) and self._types.get(name) == self._halving.narrow

    def _is_integer(self, name: str) -> bool:
        return self._types.get(name, TensorProto.UNDEFINED) not in _FLOAT_TYPES

    def _look_at(self, tensor: onnx.TensorProto, name: str) -> None:
        """Notes whether the type can hold a small constant."""
        if tensor.data_type != self._halving.narrow or is_external(tensor):
            return
        magnitudes = np.abs(numpy_helper.to_array(tensor).astype(np.float32))
        magnitudes = magnitudes[np.isfinite(magnitudes)]
        if (magnitudes > self._halving.half.largest).any():
            self.beyond_constants.add(name)
        if magnitudes.any() and (magnitudes <= self._halving.half.smallest / 2).all():
            self._vanishing.add(name)

    def _misses_a_constant(self, node: onnx.NodeProto) -> bool:
        """Rule 6; what a vanishing constant bounds is followed to the division by it."""
        vanishing = not self._vanishing.isdisjoint(node.input)
        if vanishing and node.op_type in _BOUNDS | _MOVES:
            self._vanishing.update(node.output)
        if node.op_type in _PRODUCTS:
            return vanishing or not self.beyond_constants.isdisjoint(node.input)
        return vanishing and node.op_type in _BOUNDS


def is_compiled(node: onnx.NodeProto) -> bool:
    """Whether a node is one of ours."""
    return node.domain == ops.DOMAIN and node.op_type == ops.OP_TYPE


_FLOAT_TYPES = frozenset(
    (
        TensorProto.UNDEFINED,
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
    )
)
