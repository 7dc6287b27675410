"""Pass: find every linear layer of a graph, and say why any candidate is none.

A candidate is a MatMul or a Gemm. It is a linear where one operand is constant:

1. `MatMul(x, W)` with W[K, N] constant, W possibly behind a Transpose, Cast, Identity or
   DequantizeLinear (`passes.constants`).
2. Rule 1 followed by an `Add` of a constant that broadcasts to [N]: the Add is taken along.
3. `Gemm(x, W, C)` with W constant and C absent or a constant that broadcasts to [N]; transA,
   transB, alpha and beta may have any value.

Everything else is left alone with a reason code (`REASONS`).
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from mmcompile.model.passes.constants import ConstantFinder
from mmcompile.model.selection import Selection
from mmcompile.model.sites import ConstantSource, LinearSite
from mmcompile.model.source import SourceModel
from mmcompile.plan import LeftAlone

REASONS = {
    "two-activations": "multiplies two activations, as attention does; it has no weight",
    "two-constants": "has no activation; its product is a constant",
    "constant-left": "its weight is the left operand; the layer would have to be transposed",
    "weight-is-input": "its weight is also an input, which a caller may set",
    "subgraph": "lies inside an If, Loop or Scan body, which is not rewritten",
    "function": "lies inside a model-local function, which is not rewritten; inline it first",
    "weight-rank": "its weight is not two-dimensional",
    "weight-type": "its weight is not float32, float16 or bfloat16",
    "weight-unknown": "the type or shape of its weight cannot be inferred",
    "bias-shape": "Gemm's C is not a constant row of N values",
    "too-small": "has fewer than 32 input or 16 output channels; nothing would be gained",
    "output-head": "leads to a graph output; heads are kept unless --quantize-heads is given",
    "excluded": "matches a pattern of --exclude",
    "not-included": "matches no pattern of --include",
    "already-quantized": "is already quantized by another tool",
}
_CANDIDATES = ("MatMul", "Gemm")
_FOREIGN = frozenset(
    "MatMulInteger QLinearMatMul MatMulNBits MatMulBnb4 QGemm DynamicQuantizeMatMul "
    "MatMulIntegerToFloat MatMulFpQ4".split()
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SHAPE_ONLY = frozenset("Identity Cast Reshape Squeeze Unsqueeze Flatten Transpose Slice".split())
_WITH_CONSTANT = frozenset(("Add", "Sub", "Mul", "Div"))
MIN_IN_CHANNELS = 32
MIN_OUT_CHANNELS = 16


@dataclass(frozen=True)
class Linears:
    """The linears of a graph in graph order, and the candidates that are none."""

    sites: tuple[LinearSite, ...]
    left_alone: tuple[LeftAlone, ...]


def find_linears(source: SourceModel, selection: Selection) -> Linears:
    """All linears of the main graph, with a reason for every candidate that is not taken."""
    search = _Search(source, selection)
    sites: list[LinearSite] = []
    left: list[LeftAlone] = []
    for node in source.proto.graph.node:
        for body in _bodies(node):
            left.extend(_leave(name, "subgraph") for name in _buried(body.node, node.name))
        if node.op_type in _FOREIGN:
            left.append(_leave(node.name, "already-quantized"))
        elif node.op_type in _CANDIDATES and node.domain in ("", "ai.onnx"):
            found = search.examine(node)
            if isinstance(found, LinearSite):
                sites.append(found)
            else:
                left.append(_leave(node.name, found))
    for function in source.proto.functions:
        left.extend(_leave(name, "function") for name in _buried(function.node, function.name))
    return Linears(tuple(sites), tuple(left))


def _leave(node: str, code: str) -> LeftAlone:
    return LeftAlone(node, code, REASONS[code])


def _buried(nodes: Iterable[onnx.NodeProto], scope: str) -> Iterator[str]:
    """Names of the candidates in a body or function and, inside these, in further bodies."""
    for node in nodes:
        name = f"{scope}/{node.name or node.op_type}"
        if node.op_type in _CANDIDATES:
            yield name
        for body in _bodies(node):
            yield from _buried(body.node, name)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


class _Search:
    """Indices of one graph, and the examination of one candidate."""

    def __init__(self, source: SourceModel, selection: Selection) -> None:
        graph = source.proto.graph
        self._selection = selection
        self._constants = ConstantFinder(source)
        self._outputs = {value.name for value in graph.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = {}
        self._uses = Counter(name for node in graph.node for name in _reads(node))
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    def examine(self, node: onnx.NodeProto) -> LinearSite | str:
        """The linear that a candidate is, or the reason code why it is none."""
        left, right = (self._constants.is_constant(name) for name in node.input[:2])
        if left:
            return "two-constants" if right else "constant-left"
        if not right:
            replaceable = self._constants.is_replaceable(node.input[1])
            return "weight-is-input" if replaceable else "two-activations"
        site = self._gemm(node) if node.op_type == "Gemm" else self._matmul(node)
        if isinstance(site, str):
            return site
        return self._rejection(site) or site

    def _matmul(self, node: onnx.NodeProto) -> LinearSite | str:
        weight = self._weight(node.input[1])
        if isinstance(weight, str):
            return weight
        constant, channels_first = weight
        rows, columns = constant.shape
        in_channels, out_channels = (rows, columns) if channels_first else (columns, rows)
        bias_node, bias = self._following_bias(node.output[0], out_channels)
        return LinearSite(
            node=node.name,
            bias_node=bias_node.name if bias_node else None,
            input=node.input[0],
            output=bias_node.output[0] if bias_node else node.output[0],
            weight=constant,
            channels_first=channels_first,
            in_channels=in_channels,
            out_channels=out_channels,
            bias=bias,
            alpha=1.0,
            beta=1.0,
            transpose_input=False,
            elem_type=constant.elem_type,
        )

    def _gemm(self, node: onnx.NodeProto) -> LinearSite | str:
        weight = self._weight(node.input[1])
        if isinstance(weight, str):
            return weight
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        constant, channels_first = weight
        channels_first ^= bool(attributes.get("transB", 0))
        rows, columns = constant.shape
        in_channels, out_channels = (rows, columns) if channels_first else (columns, rows)
        bias = None
        if len(node.input) > 2 and node.input[2]:
            bias = self._row(node.input[2], out_channels)
            if bias is None:
                return "bias-shape"
        return LinearSite(
            node=node.name,
            bias_node=None,
            input=node.input[0],
            output=node.output[0],
            weight=constant,
            channels_first=channels_first,
            in_channels=in_channels,
            out_channels=out_channels,
            bias=bias,
            alpha=float(attributes.get("alpha", 1.0)),
            beta=float(attributes.get("beta", 1.0)),
            transpose_input=bool(attributes.get("transA", 0)),
            elem_type=constant.elem_type,
        )

    def _weight(self, name: str) -> tuple[ConstantSource, bool] | str:
        """The weight and whether it is stored [K, N] where the tensor is [K, N]."""
        found = self._constants.source(name)
        if found is None:
            return "weight-unknown"
        constant, swapped = found
        if len(constant.shape) != 2:
            return "weight-rank"
        if constant.elem_type not in _FLOATS:
            return "weight-type"
        return constant, not swapped

    def _row(self, name: str, width: int) -> ConstantSource | None:
        """A constant that broadcasts to [width] along the last axis only, or None."""
        if not self._constants.is_constant(name):
            return None
        found = self._constants.source(name)
        if found is None:
            return None
        constant, swapped = found
        *leading, last = constant.shape or (1,)
        if swapped or last not in (1, width) or any(size != 1 for size in leading):
            return None
        return constant

    def _following_bias(
        self, output: str, width: int
    ) -> tuple[onnx.NodeProto | None, ConstantSource | None]:
        """The Add that gives a MatMul its bias, where it is the MatMul's only reader."""
        readers = self._consumers.get(output, [])
        if output in self._outputs or self._uses[output] != 1 or len(readers) != 1:
            return None, None
        (add,) = readers
        if add.op_type != "Add" or add.domain not in ("", "ai.onnx"):
            return None, None
        other = add.input[1] if add.input[0] == output else add.input[0]
        row = self._row(other, width)
        return (add, row) if row and len(row.shape) <= 1 else (None, None)

    def _rejection(self, site: LinearSite) -> str | None:
        """The reason code why a linear is not taken, or None."""
        names = (site.node, site.weight.name, *site.weight.leaves)
        if _matches(names, self._selection.exclude):
            return "excluded"
        if self._selection.include and not _matches(names, self._selection.include):
            return "not-included"
        if site.in_channels < MIN_IN_CHANNELS or site.out_channels < MIN_OUT_CHANNELS:
            return "too-small"
        if not self._selection.heads and self._leads_to_output(site.output):
            return "output-head"
        return None

    def _leads_to_output(self, name: str) -> bool:
        """Whether a tensor becomes a graph output through operators of shape and type only.

        A bias or a factor on the way, by a constant, makes no difference.
        """
        pending, seen = [name], {name}
        while pending:
            name = pending.pop()
            if name in self._outputs:
                return True
            for node in self._consumers.get(name, []):
                if self._hands_through(node, name):
                    pending.extend(set(node.output) - seen)
                    seen.update(node.output)
        return False

    def _hands_through(self, node: onnx.NodeProto, name: str) -> bool:
        if node.op_type in _WITH_CONSTANT:
            return all(self._constants.is_constant(other) for other in node.input if other != name)
        return node.op_type in _SHAPE_ONLY and node.input[0] == name


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """All tensors that a node reads, those read inside its bodies included."""
    yield from node.input
    for body in _bodies(node):
        for inner in body.node:
            yield from _reads(inner)
        yield from (value.name for value in body.output)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
