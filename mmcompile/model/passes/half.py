"""Pass: compute in half precision where that is safe (`half_rules`).

1. One element type, that of most linears, becomes float16 or bfloat16. Islands of another float
   type, which the model was written with, stay.
2. A tensor may exist in several versions: the type it had, half precision, float32. Every node
   reads the version that it computes in; a Cast stands right behind the producer.
3. The version that a node makes or that is stored has the tensor's own name, others have a suffix
   (`t.float16`, `t.float32`). Inputs, outputs and what bodies read keep their name and type.
4. A weight is stored once, in half precision where anything reads it so; it is declared here and
   converted when it is written, one at a time. Small constants are stored in every version.
5. Inputs and outputs keep names, types and dimensions; Casts stand at the border.
6. Masks: a tensor made of integers and of a constant beyond the type's range is clipped to an
   eighth of that range before its Cast. Scores may be added to it then without becoming −∞, and −∞
   in all of a row makes a Softmax NaN.
7. `MicroMixLinear` reads and gives any type; its bias stays in float32.

A second run changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.opsets import STANDARD
from mmcompile.model.passes.half_rules import HalfRules, Halving, is_compiled
from mmcompile.model.passes.infer_types import tensor_types
from mmcompile.model.passes.pending import (
    PIECE,
    Pending,
    converted,
    declare,
    small,
    to_elem_type,
)
from mmcompile.model.sites import LinearSite
from mmcompile.model.source import SourceModel
from mmcompile.model.tensors import is_external

_LIMITS = ("mmcompile.half.lowest", "mmcompile.half.highest")
_TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_dtype"))
_FULL = TensorProto.FLOAT


@dataclass(frozen=True)
class Halved:
    """What became of a graph's nodes.

    Attributes:
        nodes: nodes that compute on floats of the type that was turned into half precision.
        islands: how many of them stay in float32, by reason (`half_rules.REASONS`).
        tensors: the activations that exist in half precision: what such a version is called, by
            the name that the tensor had.
    """

    nodes: int
    islands: Counter[str]
    tensors: Mapping[str, str]


def to_half(
    model: onnx.ModelProto, source: SourceModel, halving: Halving, pending: Pending
) -> Halved:
    """Turns a skeleton into one that computes in half precision, in place.

    Args:
        model: the skeleton, every node named.
        source: where its weights lie.
        halving: what to turn into what.
        pending: receives the converted weights and notes.

    Raises:
        UnsupportedModelError: the type of a tensor cannot be inferred, or a model that is not
            float32 has nodes with bodies.
    """
    return _Conversion(model, source, halving, pending).run()


def main_type(linears: Iterable[LinearSite]) -> int:
    """The element type of most of the linears, by weights; float32 where there are none."""
    sizes: Counter[int] = Counter()
    for site in linears:
        sizes[site.elem_type] += site.in_channels * site.out_channels
    return sizes.most_common(1)[0][0] if sizes else _FULL


class _Conversion:
    """One run of the pass: which versions of every tensor there are, and which are needed."""

    def __init__(
        self, model: onnx.ModelProto, source: SourceModel, halving: Halving, pending: Pending
    ) -> None:
        self._types = tensor_types(model)
        self._graph = model.graph
        self._source = source
        self._halving = halving
        self._half = halving.half.elem_type
        self._narrow = halving.narrow
        self._pending = pending
        self._check()
        self._rules = HalfRules(model, self._types, halving)
        fed = {value.name for value in self._graph.input}
        self._bound = fed | {value.name for value in self._graph.output}
        """Tensors whose own name belongs to the type that they had."""
        for node in self._graph.node:
            self._bound.update(_captured(node))
        fed.update(sparse.values.name for sparse in self._graph.sparse_initializer)
        self._fed = sorted(filter(self._is_narrow, fed))
        self._weights = [
            t for t in self._graph.initializer if t.name not in fed and self._is_narrow(t.name)
        ]
        self._have = dict.fromkeys(self._fed, self._narrow)
        """The version of a tensor that is fed, made by its producer, or stored."""
        self._needs: dict[str, set[int]] = {}
        """The versions of a tensor that are read."""
        self._names: dict[tuple[str, int], str] = {}
        self._taken = set(self._types)

    def run(self) -> Halved:
        """Rewrites the graph of the model."""
        nodes = list(self._graph.node)
        count, islands = self._rules.nodes_with_floats(), self._rules.islands()
        versions = list(map(self._version, nodes, self._rules.reasons))
        reads = [self._settle(node, v) for node, v in zip(nodes, versions, strict=True)]
        for value in self._graph.output:
            self._need(value.name, self._narrow)
        constants = [node.output[0] for node in nodes if self._is_plain_constant(node)]
        for name in (*constants, *(t.name for t in self._weights if self._is_copied(t))):
            needs = self._needs.get(name, set())
            self._have[name] = self._half if self._half in needs else min(needs, default=_FULL)
        cast = [tensor.name for tensor in self._weights if not self._is_copied(tensor)]
        for name in cast:
            converts = self._halving.stored and self._half in self._needs.get(name, set())
            self._have[name] = self._half if converts else self._narrow
        initializers = list(self._initializers())
        emitted = [node for name in (*self._fed, *cast) for node in self._casts(name)]
        for node, version, read in zip(nodes, versions, reads, strict=True):
            if self._is_plain_constant(node):
                emitted.extend(self._constant(node))
                continue
            emitted.append(self._rewritten(node, version, read))
            for name in node.output:
                emitted.extend(self._casts(name))
        self._replace(emitted, initializers)
        tensors = {name: self._name(name, self._half) for name in self._in_half(constants)}
        return Halved(count, islands, tensors)

    def _in_half(self, constants: Iterable[str]) -> Iterator[str]:
        """The activations that are made or read in half precision."""
        left_out = {tensor.name for tensor in self._weights}.union(constants)
        for name, version in self._have.items():
            if name not in left_out and self._half in (version, *self._needs.get(name, ())):
                yield name

    def _check(self) -> None:
        """Refuses graphs whose types are not all known, and bodies that would have to change."""
        for node in self._graph.node:
            where = f"node {node.name} ({node.domain or 'ai.onnx'}::{node.op_type})"
            for name in node.output:
                if name and name not in self._types:
                    raise UnsupportedModelError(
                        "half-types",
                        where,
                        f"the type of its output '{name}' cannot be inferred",
                        "export the model without operators that onnx does not know",
                    )
            if self._narrow != _FULL and self._has_narrow_body(node):
                raise UnsupportedModelError(
                    "half-bodies",
                    where,
                    "a half-precision model with nodes that have bodies keeps its type",
                    "export the model in float32",
                )

    def _version(self, node: onnx.NodeProto, reason: str | None) -> int:
        """The version that a node computes in; a Cast to an output makes it as it was."""
        if reason == "between" and node.op_type == "Cast" and node.output[0] in self._bound:
            return self._narrow
        return _FULL if reason else self._half

    def _has_narrow_body(self, node: onnx.NodeProto) -> bool:
        """Whether a node has bodies, and reads or makes what would change its type."""
        if not any(a.HasField("g") or a.graphs for a in node.attribute):
            return False
        return any(map(self._is_narrow, (*node.input, *node.output, *_captured(node))))

    def _settle(self, node: onnx.NodeProto, version: int) -> list[int]:
        """Notes which versions a node reads and makes; the version of every input."""
        if self._is_plain_constant(node):
            return []
        reads = [version] * len(node.input)
        if node.op_type == "Cast" and node.domain in STANDARD:
            reads = [self._have.get(name, self._narrow) for name in node.input]
        elif is_compiled(node):
            reads[1:] = [_FULL] * len(reads[1:])
        for name, read in zip(node.input, reads, strict=True):
            self._need(name, read)
        for name in _captured(node):
            self._need(name, self._narrow)
        for name in filter(self._is_narrow, node.output):
            self._have[name] = version
        return reads

    def _need(self, name: str, version: int) -> None:
        if self._is_narrow(name):
            self._needs.setdefault(name, set()).add(version)

    def _name(self, name: str, version: int) -> str:
        """What a version of a tensor is called."""
        if version == (self._narrow if name in self._bound else self._have[name]):
            return name
        if (name, version) not in self._names:
            target = f"{name}.{helper.tensor_dtype_to_np_dtype(version).name}"
            while target in self._taken:
                target += "_"
            self._taken.add(target)
            self._names[name, version] = target
        return self._names[name, version]

    def _rewritten(self, node: onnx.NodeProto, version: int, reads: list[int]) -> onnx.NodeProto:
        """The node in one version, its tensors named accordingly."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, (name, read) in enumerate(zip(node.input, reads, strict=True)):
            if self._is_narrow(name):
                copy.input[index] = self._name(name, read)
        for index, name in enumerate(node.output):
            if self._is_narrow(name):
                copy.output[index] = self._name(name, version)
        for attribute in copy.attribute:
            if attribute.HasField("t") and attribute.t.data_type == self._narrow:
                tensor = to_elem_type(attribute.t, version, self._pending.notes)
                attribute.t.CopyFrom(tensor)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == self._narrow:
                attribute.i = version
        return copy

    def _casts(self, name: str) -> Iterator[onnx.NodeProto]:
        """The Casts that make the missing versions of a tensor from the one there is."""
        if not self._is_narrow(name):
            return
        version = self._have[name]
        existing = self._name(name, version)
        for missing in sorted(self._needs.get(name, set()) - {version}):
            target, read = self._name(name, missing), existing
            if missing == self._half and name in self._rules.beyond:
                read = f"{target}.clipped"
                yield helper.make_node("Clip", [existing, *_LIMITS], [read], f"clip.{target}")
            yield helper.make_node("Cast", [read], [target], f"cast.{target}", to=missing)

    def _constant(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """A Constant in every version that is needed."""
        (name,) = node.output
        value = helper.get_node_attr_value(node, node.attribute[0].name)
        tensor = (
            value if isinstance(value, TensorProto) else small(name, np.array(value, np.float32))
        )
        for version in sorted(self._needs.get(name, set())):
            target = self._name(name, version)
            new = to_elem_type(tensor, version, self._pending.notes)
            label = node.name if target == name else f"{node.name}.{version}"
            yield helper.make_node("Constant", [], [target], label, value=new)

    def _initializers(self) -> Iterator[TensorProto]:
        """The graph's initializers in the versions that are stored; unread ones are left out."""
        weights = {tensor.name for tensor in self._weights}
        for tensor in self._graph.initializer:
            if tensor.name not in weights:
                yield tensor
            elif needs := self._needs.get(tensor.name, set()):
                versions = needs if self._is_copied(tensor) else {self._have[tensor.name]}
                yield from (self._stored(tensor, version) for version in sorted(versions))

    def _is_copied(self, tensor: TensorProto) -> bool:
        """Whether an initializer is small, and stored in every version that is read."""
        if is_external(tensor):
            return False
        return self._halving.stored or tensor.name in self._rules.beyond_constants

    def _stored(self, tensor: TensorProto, version: int) -> TensorProto:
        name, target = tensor.name, self._name(tensor.name, version)
        notes = self._pending.notes
        if version == self._narrow and target == name:
            return tensor
        if not is_external(tensor):
            new = to_elem_type(tensor, version, notes)
            new.name = target
            return new
        self._pending.made[target] = lambda: converted(
            self._source.weights.pieces(name, PIECE), version, f"weight {name}", notes
        )
        return declare(target, version, tensor.dims)

    def _replace(self, nodes: list[onnx.NodeProto], initializers: list[TensorProto]) -> None:
        """Gives the graph its new content."""
        graph = self._graph
        known = {tensor.name for tensor in initializers}
        if any(name in node.input for node in nodes for name in set(_LIMITS) - known):
            limit = np.array(self._halving.half.mask, np.float32)
            limits = zip(_LIMITS, (-limit, limit), strict=True)
            initializers.extend(small(name, value) for name, value in limits)
        copies = [TensorProto.FromString(t.SerializeToString()) for t in initializers]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(copies)
        made = {name for node in nodes for name in node.output}
        values = [v for v in graph.value_info if v.name in made or not self._is_narrow(v.name)]
        for value in values:
            if self._is_narrow(value.name):
                version = self._narrow if value.name in self._bound else self._have[value.name]
                value.type.tensor_type.elem_type = version
        kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in values]
        del graph.value_info[:]
        graph.value_info.extend(kept)

    def _is_plain_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a float Constant, which is stored in every version that is read."""
        return node.op_type == "Constant" and self._is_narrow(node.output[0])

    def _is_narrow(self, name: str) -> bool:
        return bool(name) and self._types.get(name) == self._narrow


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node's bodies read, from outside or inside."""
    for attribute in node.attribute:
        graphs: Iterable[onnx.GraphProto] = attribute.graphs
        for body in (*graphs, *([attribute.g] if attribute.HasField("g") else [])):
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from inner.input
                yield from _captured(inner)
