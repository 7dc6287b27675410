"""Pass: compute in float16 where that is safe (`half_rules`), whatever the model was written in.

1. The type that most of the linears compute in becomes float16: float32 or bfloat16. A model that
   computes in float16 already is left as it is, its own float32 islands included.
2. A tensor `t` may exist twice, as `t` in float32 and as `t.float16`. Every node reads the version
   that it computes in; a Cast stands right behind the producer of the other.
3. Weights are stored in the version that is read. Large ones are declared here and converted when
   they are written, one at a time.
4. Inputs and outputs keep names, types and dimensions; Casts stand at the border.
5. A bfloat16 tensor's float32 version is `t.float32`: bfloat16 is left at the border only.
6. Masks: a tensor made of integers and of a constant beyond float16's range is clipped to ±65504
   before its Cast; −∞ in a mask can make a row of a Softmax NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.passes.baselines.constants import (
    Pending,
    converted,
    declare,
    small,
    to_elem_type,
)
from mmcompile.model.passes.baselines.half_rules import HALF_MAX, HalfRules
from mmcompile.model.passes.baselines.raise_opset import STANDARD
from mmcompile.model.sites import LinearSite
from mmcompile.model.source import SourceModel
from mmcompile.model.tensors import is_external

HALF_SUFFIX, FULL_SUFFIX = ".float16", ".float32"
_LIMITS = ("mmcompile.half.lowest", "mmcompile.half.highest")
_TYPE_ATTRIBUTES = frozenset(("to", "dtype", "output_dtype"))
_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def to_half(
    model: onnx.ModelProto, source: SourceModel, linears: Sequence[LinearSite], pending: Pending
) -> frozenset[int]:
    """Turns a skeleton into one that computes in float16, in place.

    Args:
        model: the skeleton, every node named.
        source: where its weights lie.
        linears: its linears.
        pending: receives the converted weights and notes.

    Returns:
        The element types of the original that are float16 now.

    Raises:
        UnsupportedModelError: the type of a tensor cannot be inferred, or a bfloat16 model has
            nodes with bodies.
    """
    narrow = main_type(linears)
    if narrow == _HALF:
        pending.notes.append("the model computes in float16 and was left as it is")
    else:
        names = frozenset(site.node for site in linears)
        _Conversion(model, source, narrow, names, pending).run()
    return frozenset((narrow, _HALF))


def main_type(linears: Iterable[LinearSite]) -> int:
    """The element type of most of the linears, by weights; float32 where there are none."""
    sizes: Counter[int] = Counter()
    for site in linears:
        sizes[site.elem_type] += site.in_channels * site.out_channels
    return sizes.most_common(1)[0][0] if sizes else _FULL


def infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred types and shapes; weights are not read.

    Raises:
        UnsupportedModelError: the types contradict each other.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedModelError(
            "baseline-types",
            "model",
            f"its types cannot be inferred: {str(error).splitlines()[0][:200]}",
            "export the model again, and check it with onnx.checker",
        ) from error


class _Conversion:
    """One run of the pass: which versions of every tensor exist and are needed."""

    def __init__(
        self,
        model: onnx.ModelProto,
        source: SourceModel,
        narrow: int,
        linears: frozenset[str],
        pending: Pending,
    ) -> None:
        graph = infer_types(model).graph
        self._types = {t.name: t.data_type for t in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.HasField("tensor_type"):
                self._types[value.name] = value.type.tensor_type.elem_type
        self._model = model
        self._source = source
        self._narrow = narrow
        self._pending = pending
        self._rules = HalfRules(model, self._types, narrow, linears)
        self._inputs = {value.name for value in model.graph.input}
        self._initializers = {
            t.name: t for t in model.graph.initializer if t.name not in self._inputs
        }
        self._have: dict[str, int] = {}
        self._needs: dict[str, set[int]] = {}

    def run(self) -> None:
        """Rewrites the graph of the model."""
        graph = self._model.graph
        nodes = [
            self._rewrite(node, _FULL if full else _HALF)
            for node, full in zip(graph.node, self._rules.full, strict=True)
        ]
        for value in graph.output:
            if self._is_narrow(value.name):
                self._need(value.name, self._have.get(value.name, _FULL))
                if self._narrow == _FULL:
                    self._need(value.name, _FULL)
        emitted = [node for name in sorted(self._inputs) for node in self._casts(name)]
        for original, node in zip(graph.node, nodes, strict=True):
            if self._is_plain_constant(original):
                emitted.extend(self._constant(original))
                continue
            emitted.append(node)
            for name in original.output:
                emitted.extend(self._casts(name))
        emitted.extend(self._border())
        self._convert_initializers()
        if any(name in node.input for node in emitted for name in _LIMITS):
            limits = zip(_LIMITS, (-HALF_MAX, HALF_MAX), strict=True)
            graph.initializer.extend(small(name, np.array(v, np.float32)) for name, v in limits)
        kept = [v for v in graph.value_info if not self._is_narrow(v.name)]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(emitted)
        graph.value_info.extend(kept)
        self._pending.notes.append(
            f"{sum(self._rules.full)} of {len(nodes)} nodes stay in float32 (half_rules)"
        )

    def _rewrite(self, node: onnx.NodeProto, version: int) -> onnx.NodeProto:
        """The node in one version, its tensors named accordingly."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if self._is_plain_constant(node):
            return copy
        for name in node.output:
            if name and name not in self._types:
                raise UnsupportedModelError(
                    "baseline-types",
                    f"node {node.name} ({node.domain or 'ai.onnx'}::{node.op_type})",
                    f"the type of its output '{name}' cannot be inferred",
                    "export the model without operators that onnx does not know",
                )
        self._check_bodies(node)
        is_cast = node.op_type == "Cast" and node.domain in STANDARD
        for index, name in enumerate(node.input):
            if self._is_narrow(name):
                read = self._have.get(name, _FULL) if is_cast else version
                copy.input[index] = self._need(name, read)
        for index, name in enumerate(node.output):
            if self._is_narrow(name):
                self._have[name] = version
                copy.output[index] = self._name(name, version)
        for attribute in copy.attribute:
            if attribute.HasField("t") and attribute.t.data_type == self._narrow:
                tensor = to_elem_type(attribute.t, version, self._pending.notes)
                attribute.t.CopyFrom(tensor)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == self._narrow:
                attribute.i = version
        return copy

    def _check_bodies(self, node: onnx.NodeProto) -> None:
        """Bodies stay as they are; what they read from outside is needed in float32."""
        captured = set(_captured(node))
        if captured and self._narrow != _FULL:
            raise UnsupportedModelError(
                "baseline-bodies",
                f"node {node.name} ({node.op_type})",
                "a bfloat16 model with nodes that have bodies cannot be turned into float16",
                "export the model in float32",
            )
        for name in captured:
            if self._is_narrow(name):
                self._need(name, _FULL)

    def _need(self, name: str, version: int) -> str:
        self._needs.setdefault(name, set()).add(version)
        return self._name(name, version)

    def _name(self, name: str, version: int) -> str:
        if version == _HALF:
            return name + HALF_SUFFIX
        return name if self._narrow == _FULL else name + FULL_SUFFIX

    def _casts(self, name: str) -> Iterator[onnx.NodeProto]:
        """The Casts that make the missing versions of a tensor from the one there is."""
        if name in self._inputs:
            if not self._is_narrow(name):
                return
            existing, version = name, self._narrow
        elif name in self._have:
            version = self._have[name]
            existing = self._name(name, version)
        else:
            return
        for missing in sorted(self._needs.get(name, set()) - {version}):
            target = self._name(name, missing)
            if missing == _HALF and name in self._rules.beyond:
                clipped = f"{target}.clipped"
                yield helper.make_node("Clip", [existing, *_LIMITS], [clipped], f"clip.{target}")
                existing = clipped
            yield helper.make_node("Cast", [existing], [target], f"cast.{target}", to=missing)

    def _border(self) -> Iterator[onnx.NodeProto]:
        """bfloat16 outputs, from whatever version there is."""
        if self._narrow == _FULL:
            return
        for value in self._model.graph.output:
            name = value.name
            if self._is_narrow(name) and name not in self._inputs:
                read = self._name(name, min(self._needs[name]))
                if name in self._have:
                    read = self._name(name, self._have[name])
                yield helper.make_node("Cast", [read], [name], f"cast.{name}", to=self._narrow)

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
            yield helper.make_node("Constant", [], [target], f"{node.name}.{version}", value=new)

    def _convert_initializers(self) -> None:
        graph = self._model.graph
        kept = []
        for tensor in graph.initializer:
            if tensor.name in self._inputs or not self._is_narrow(tensor.name):
                kept.append(tensor)
                continue
            versions = sorted(self._needs.get(tensor.name, set()))
            kept.extend(self._initializer(tensor, version) for version in versions)
        copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)

    def _initializer(self, tensor: TensorProto, version: int) -> TensorProto:
        target = self._name(tensor.name, version)
        if version == self._narrow:
            return tensor
        notes = self._pending.notes
        if not is_external(tensor):
            new = to_elem_type(tensor, version, notes)
            new.name = target
            return new
        name = tensor.name
        self._pending.made[target] = lambda: converted(
            self._source.weights.read(name), version, f"weight {name}", notes
        )
        return declare(target, version, tuple(tensor.dims))

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
