"""Refuses models that are damaged, or of a kind that mmcompile does not know.

The own checks here name the cause in plain words; what they leave, `onnx.checker` finds: nodes
out of order, inputs that nothing produces, unknown operators, attributes that do not belong.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.checker

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.tensors import is_external, shown, storage_bytes
from mmcompile.model.walk import all_graphs, all_nodes
from mmcompile.ops import MAX_OPSET, MIN_OPSET

MIN_IR, MAX_IR = 3, 13
"""IR 13 is the newest that the ONNX Runtime used here reads (1.31)."""
_DEFAULT_DOMAINS = ("", "ai.onnx")
_RUNTIME_OPS = {"LayerNormalization", "SimplifiedLayerNormalization"}
"""Operators that ONNX Runtime's optimizer writes in the standard domain, whatever the opset."""
_UNCHECKED_DOMAIN = "mmcompile.unchecked"
_NODE_NAME = re.compile(r"\bname: (\S+)\s+OpType", re.IGNORECASE)
"""How messages of onnx.checker tell which node they are about."""


def check_structure(proto: onnx.ModelProto, path: Path) -> None:
    """Checks names, versions and the graph's inputs, outputs and weights, in plain words.

    Args:
        proto: the model without its weights.
        path: its file, for error messages.

    Raises:
        UnsupportedModelError: with the first thing that is wrong.
    """
    _check_text(proto, path)
    _check_versions(proto, path)
    _check_graph(proto.graph, path)


def check_operators(proto: onnx.ModelProto, path: Path) -> None:
    """Runs `onnx.checker` on a copy that it can judge.

    External weights are inputs in it, so that no file is opened; what common tools write though
    the standard forbids it (inputs without a shape, ONNX Runtime's operators) is made legal.

    Args:
        proto: the model; only initializers of its main graph are external data.
        path: its file, for error messages.

    Raises:
        UnsupportedModelError: with the first thing that is wrong.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(t for t in proto.graph.initializer if not is_external(t))
    declared = {value.name for value in bare.graph.input}
    for tensor in proto.graph.initializer:
        if is_external(tensor) and tensor.name not in declared:
            bare.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    for value in (*bare.graph.input, *bare.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    for node in all_nodes(bare):
        if node.op_type in _RUNTIME_OPS and node.domain in _DEFAULT_DOMAINS:
            node.domain = _UNCHECKED_DOMAIN
    for scope in (bare, *bare.functions):
        scope.opset_import.add(domain=_UNCHECKED_DOMAIN, version=1)
    try:
        onnx.checker.check_model(bare)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).partition("\n\n==> Context")[0].split())
        reason = shown(message.rstrip("."), 300)
        named = _NODE_NAME.search(str(error))
        where = f"{path}, node '{shown(named[1])}'" if named else path
        raise _refuse("model-malformed", where, reason) from None


def _refuse(code: str, where: object, reason: str, remedy: str = "") -> UnsupportedModelError:
    remedy = remedy or "export the model again, and check it with onnx.checker"
    return UnsupportedModelError(code, where, reason, remedy)


def _check_text(proto: onnx.ModelProto, path: Path) -> None:
    """Names that are no UTF-8; protobuf hands them out as bytes instead of str."""
    for text in _texts(proto):
        if not isinstance(text, str):
            raise _refuse(
                "model-corrupt", path, f"the name {shown(repr(text))} in it is no valid text"
            )


def _texts(proto: onnx.ModelProto) -> Iterator[object]:
    yield from (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    for item in proto.opset_import:
        yield item.domain
    for property_ in proto.metadata_props:
        yield from (property_.key, property_.value)
    for graph in all_graphs(proto):
        yield from (graph.name, graph.doc_string)
        for tensor in graph.initializer:
            yield tensor.name
            for entry in tensor.external_data:
                yield from (entry.key, entry.value)
        for sparse in graph.sparse_initializer:
            yield sparse.values.name
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            for dimension in value.type.tensor_type.shape.dim:
                yield from (dimension.dim_param, dimension.denotation)
    for function in proto.functions:
        yield from (function.name, function.domain, function.doc_string)
        yield from (*function.input, *function.output, *function.attribute)
        for item in function.opset_import:
            yield item.domain
    for node in all_nodes(proto):
        yield from (node.name, node.op_type, node.domain, node.doc_string)
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)


def _check_versions(proto: onnx.ModelProto, path: Path) -> None:
    if not proto.HasField("graph"):
        raise _refuse("model-incomplete", path, "it holds no graph", "export the model again")
    if not MIN_IR <= proto.ir_version <= MAX_IR:
        raise _refuse(
            "model-ir-version",
            path,
            f"its IR version is {proto.ir_version}, mmcompile reads {MIN_IR} to {MAX_IR}",
            "save it with a matching version of onnx, or set model.ir_version before saving",
        )
    versions = {item.version for item in proto.opset_import if item.domain in _DEFAULT_DOMAINS}
    remedy = f"export or convert it (onnx.version_converter) to opset {MIN_OPSET} to {MAX_OPSET}"
    if len(versions) != 1:
        what = " and ".join(map(str, sorted(versions))) or "no opset"
        raise _refuse("model-opset", path, f"it imports {what} of the standard domain", remedy)
    opset = versions.pop()
    if not MIN_OPSET <= opset <= MAX_OPSET:
        reason = f"its opset is {opset}, mmcompile supports {MIN_OPSET} to {MAX_OPSET}"
        raise _refuse("model-opset", path, reason, remedy)


def _check_graph(graph: onnx.GraphProto, path: Path) -> None:
    names = [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise _refuse("model-malformed", path, f"two weights share the name '{shown(twice[0])}'")
    if "" in names:
        raise _refuse("model-malformed", path, "a weight has no name")
    for what, found in (
        ("node", len(graph.node)),
        ("input", len({value.name for value in graph.input} - set(names))),
        ("output", len(graph.output)),
    ):
        if not found:
            reason = f"its graph has no {what}"
            raise _refuse("model-incomplete", path, reason, "export the model again")
    for tensor in graph.initializer:
        if not is_external(tensor):
            _check_inline(tensor, path)
    produced = set(names).union(value.name for value in graph.input)
    produced.update(name for node in graph.node for name in node.output)
    for value in graph.output:
        if value.name not in produced:
            reason = f"nothing produces its output '{shown(value.name)}'"
            raise _refuse("model-malformed", path, reason)


def _check_inline(tensor: onnx.TensorProto, path: Path) -> None:
    """The size of a small initializer's raw data."""
    if not tensor.HasField("raw_data"):
        return  # onnx.checker looks at values of the other kinds
    where = f"{path}, weight '{shown(tensor.name)}'"
    shape = tuple(tensor.dims)
    try:
        needed = storage_bytes(tensor.data_type, shape)
    except ValueError as error:
        raise _refuse("weight-invalid", where, str(error)) from None
    if len(tensor.raw_data) != needed:
        reason = f"{len(tensor.raw_data)} bytes are stored, its shape {list(shape)} needs {needed}"
        raise _refuse("weight-size", where, reason)
