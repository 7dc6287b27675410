"""The original with all but its linears in half precision: what that step alone does to a model.

It is never written. It reads the original's weights, through Casts, and is run in float32:

1. without rounding, it shows how large the numbers become that half precision has to hold: masks
   are clipped in it already, as they will be;
2. with rounding after every node, it shows the error. The linears that will be compiled compute
   and sum in float32, with their weights as they are, and round once: a compiled node does so, too,
   and what quantization costs is not to be counted here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from mmcompile.model.passes.half import Halved, to_half
from mmcompile.model.passes.half_rules import Halving
from mmcompile.model.passes.half_types import BF16
from mmcompile.model.passes.pending import Pending
from mmcompile.model.passes.upcast_half import upcast_half, uses_bfloat16
from mmcompile.model.sites import LinearSite
from mmcompile.model.source import SourceModel


@dataclass(frozen=True)
class RestOnly:
    """The graph, and what is known of it.

    Attributes:
        proto: the skeleton; its weights are the original's.
        halving: what was turned into what.
        halved: what became of its nodes.
        exact: tensors that a compiled linear does not round.
    """

    proto: onnx.ModelProto
    halving: Halving
    halved: Halved
    exact: frozenset[str]

    def in_float32(self, *, rounded: bool) -> onnx.ModelProto:
        """A skeleton that computes in float32, with or without rounding after every node."""
        half = self.halving.half
        wide = upcast_half(self.proto, half.elem_type, rounded=rounded, exact=self.exact)
        # The model's own bfloat16, where that is not what the Casts round to.
        own = half is not BF16 and uses_bfloat16(wide)
        return upcast_half(wide, BF16.elem_type) if own else wide


def rest_only(source: SourceModel, sites: Sequence[LinearSite], halving: Halving) -> RestOnly:
    """The original with all but its linears in half precision.

    Args:
        source: the original, every node named.
        sites: the linears that will be compiled.
        halving: what to turn into what; which nodes are linears, `sites` says.

    Raises:
        UnsupportedModelError: the pass `half` refuses the model.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source.proto)
    names = frozenset(site.node for site in sites)
    unstored = dataclasses.replace(halving, linears=names, stored=False)
    halved = to_half(model, source, unstored, Pending())
    return RestOnly(model, halving, halved, frozenset(_exact(model.graph, sites)))


def _exact(graph: onnx.GraphProto, sites: Iterable[LinearSite]) -> Iterator[str]:
    """Products that wait for their bias, and constants of linears and of tables.

    What is gathered from a table is rounded afterwards; the whole table need not be.
    """
    nodes = {node.name: node for node in graph.node}
    makers = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    for site in sites:
        linear = nodes[site.node]
        yield from _constants(linear.input[1:], makers, weights)
        if site.bias_node is not None:
            (product,) = linear.output
            yield product
            bias = [name for name in nodes[site.bias_node].input if name != product]
            yield from _constants(bias, makers, weights)
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for node in graph.node:
        is_weight = node.op_type == "Cast" and node.input[0] in weights
        if is_weight and readers.get(node.output[0]) == {"Gather"}:
            yield node.output[0]


def _constants(
    names: Iterable[str], makers: Mapping[str, onnx.NodeProto], weights: set[str]
) -> Iterator[str]:
    """The tensors that constant operands are computed through, themselves among them."""
    pending = list(names)
    seen = set(weights)
    while pending:
        name = pending.pop()
        if name and name not in seen:
            seen.add(name)
            yield name
            pending.extend(makers[name].input)
