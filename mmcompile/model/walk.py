"""The places of a model where nodes and tensors can be: graphs, subgraphs, functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import onnx


def all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph of a node in it or in a function, outermost first."""
    yield from _graphs(proto.graph)
    for function in proto.functions:
        yield from _subgraphs(function.node)


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graphs and functions."""
    for graph in all_graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def tensors_outside_initializers(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is no initializer of the main graph: in subgraphs, attributes, sparse."""
    main = proto.graph
    for graph in all_graphs(proto):
        if graph is not main:
            yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    defaults = [a for function in proto.functions for a in function.attribute_proto]
    for attribute in itertools.chain((a for n in all_nodes(proto) for a in n.attribute), defaults):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    yield from _subgraphs(graph.node)


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for graph in attribute.graphs:
                yield from _graphs(graph)
