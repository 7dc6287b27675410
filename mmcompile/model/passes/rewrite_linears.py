"""Pass: replace every planned group of linears by one `MicroMixLinear` node.

1. The group's MatMul or Gemm nodes (and the Adds that apply their biases) are removed; their
   output tensors keep their names, so that everything after them is untouched.
2. One `MicroMixLinear` reads the group's input; a Transpose stands before it where the layer had
   transA.
3. Where the group has several layers, a Split along the last axis gives each its output.
4. The packed constants are declared (`pending.declare`); the packer writes them later,
   so that the graph is finished before any weight is read.
5. The operator's function is added to the model, and the graph's inputs and outputs are as before.
6. Whatever is not replaced stays as it was, byte for byte. graphsurgeon knows neither every type
   of attribute nor every field, so that it is given the graph's topology only, and the nodes and
   value infos that survive are put back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from mmcompile import ops
from mmcompile.errors import MMCompileError
from mmcompile.model.passes.pending import declare
from mmcompile.model.sites import SiteGroup
from mmcompile.model.walk import all_graphs, all_nodes
from mmcompile.plan import SCALE_WORD, GroupPlan

TRANSPOSE, SPLIT = ".transpose", ".split"
"""What the names of the nodes around a `MicroMixLinear` add to its own."""

MIN_IR_VERSION = 8
MAX_IR_VERSION = 12


def packed_names(group: str) -> tuple[str, str, str, str]:
    """Names of a group's order, weight, scales and bias constants; models have no such names."""
    order, weight, scales, bias = (f"mmcompile.{field.name}.{group}" for field in ops.INPUTS[1:])
    return order, weight, scales, bias


def inner_names(group: str) -> tuple[str, str]:
    """Names of the tensors between a `MicroMixLinear` and its Transpose and Split."""
    return f"mmcompile.x.{group}", f"mmcompile.y.{group}"


def rewrite_linears(
    skeleton: onnx.ModelProto, decided: Sequence[tuple[SiteGroup, GroupPlan]]
) -> onnx.ModelProto:
    """The model with every group replaced; weights that nothing else reads are gone from it."""
    with G_LOGGER.suppress():  # it remarks on types that it hands through as they are
        graph = gs.import_onnx(_topology(skeleton))
        nodes = {node.name: node for node in graph.nodes}
        tensors = graph.tensors()
        for sites, plan in decided:
            _replace(graph, nodes, tensors, sites, plan)
        graph.cleanup().toposort()
        opset: int = graph.opset
        rewritten: onnx.ModelProto = gs.export_onnx(
            graph,
            do_type_check=False,
            opset_imports=[
                *(entry for entry in skeleton.opset_import if entry.domain != ops.DOMAIN),
                helper.make_opsetid(ops.DOMAIN, ops.OP_VERSION),
            ],
        )
    parts = ("", TRANSPOSE, SPLIT)
    _restore(skeleton, rewritten, {plan.name + part for _, plan in decided for part in parts})
    half_blocks = ops.needs_half_blocks(plan for _, plan in decided)
    if decided:
        rewritten.functions.append(ops.function_proto(opset, half_blocks=half_blocks))
    rewritten.ir_version = min(max(skeleton.ir_version, MIN_IR_VERSION), MAX_IR_VERSION)
    return rewritten


def _replace(
    graph: gs.Graph,
    nodes: dict[str, gs.Node],
    tensors: dict[str, gs.Tensor],
    sites: SiteGroup,
    plan: GroupPlan,
) -> None:
    first = sites.sites[0]
    x = tensors[first.input]
    inner_x, inner_y = inner_names(plan.name)
    if first.transpose_input:
        upright = gs.Variable(inner_x, dtype=x.dtype)
        graph.nodes.append(
            gs.Node("Transpose", plan.name + TRANSPOSE, {"perm": [1, 0]}, [x], [upright])
        )
        x = upright
    outputs = [tensors[site.output] for site in sites.sites]
    for site in sites.sites:
        for name in (site.node, site.bias_node):
            if name is not None:
                nodes[name].outputs.clear()
    merged = outputs[0]
    if len(outputs) > 1:
        merged = gs.Variable(inner_y, dtype=outputs[0].dtype)
        sizes = gs.Constant(f"mmcompile.sizes.{plan.name}", np.array(plan.out_channels, np.int64))
        split = gs.Node("Split", plan.name + SPLIT, {"axis": -1}, [merged, sizes], outputs)
        graph.nodes.append(split)
    constants = [
        gs.Constant(name, LazyValues(declare(name, elem_type, shape)))
        for name, (elem_type, shape) in zip(
            packed_names(plan.name), _constant_types(plan), strict=True
        )
    ]
    node = gs.Node(
        ops.OP_TYPE,
        plan.name,
        ops.node_attributes(plan),
        [x, *constants],
        [merged],
        domain=ops.DOMAIN,
    )
    graph.nodes.append(node)


def _constant_types(plan: GroupPlan) -> tuple[tuple[int, list[int]], ...]:
    rows = sum(plan.out_channels)
    return (
        (TensorProto.INT32, [plan.padded_channels]),
        (TensorProto.INT8, [rows, plan.row_bytes]),
        (TensorProto.INT8, [plan.scale_words, rows, SCALE_WORD]),
        (TensorProto.FLOAT, [rows]),
    )


def _topology(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the skeleton with nothing but tensors, nodes and the subgraphs of nodes."""
    bare = onnx.ModelProto()
    bare.CopyFrom(skeleton)
    del bare.functions[:], bare.graph.value_info[:]
    for node in all_nodes(bare):
        bodies = [a for a in node.attribute if a.HasField("g") or a.graphs]
        kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in bodies]
        del node.attribute[:]
        node.attribute.extend(kept)
    return bare


def _restore(skeleton: onnx.ModelProto, rewritten: onnx.ModelProto, added: set[str]) -> None:
    """Puts back what graphsurgeon was not shown or does not carry; `added` nodes are new."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(rewritten, field, getattr(skeleton, field))
    rewritten.metadata_props.extend(skeleton.metadata_props)
    before, after = skeleton.graph, rewritten.graph
    originals = {_signature(node): node for node in before.node}
    for node in after.node:
        if original := originals.get(_signature(node)):
            node.CopyFrom(original)
        elif node.name not in added:
            raise MMCompileError(
                "node-changed",
                f"node {node.name} ({node.op_type})",
                "it came back with other inputs or outputs than it had",
                "this is a bug in mmcompile, please report it",
            )
    _restore_initializers(before, rewritten)
    produced = {name for node in after.node for name in node.output}
    after.value_info.extend(value for value in before.value_info if value.name in produced)
    after.quantization_annotation.extend(
        entry for entry in before.quantization_annotation if entry.tensor_name in produced
    )
    after.metadata_props.extend(before.metadata_props)
    del after.input[:], after.output[:]
    after.input.extend(before.input)
    after.output.extend(before.output)
    rewritten.functions.extend(skeleton.functions)


def _restore_initializers(before: onnx.GraphProto, rewritten: onnx.ModelProto) -> None:
    """The initializers that are still needed; graphsurgeon moves those of subgraphs into them."""
    after = rewritten.graph
    needed = {name for node in all_nodes(rewritten) for name in node.input}
    needed.update(value.name for value in before.input)
    needed.update(value.name for graph in all_graphs(rewritten) for value in graph.output)
    kept = [tensor for tensor in before.initializer if tensor.name in needed]
    known = {tensor.name for tensor in kept}
    kept.extend(
        onnx.TensorProto.FromString(tensor.SerializeToString())
        for tensor in after.initializer
        if tensor.name not in known
    )
    del after.initializer[:], after.sparse_initializer[:]
    after.initializer.extend(kept)
    after.sparse_initializer.extend(
        tensor for tensor in before.sparse_initializer if tensor.values.name in needed
    )


def _signature(node: onnx.NodeProto) -> tuple[object, ...]:
    """What tells a node from every other one of a graph, whose tensors have one producer each."""
    return node.domain, node.op_type, tuple(node.input), tuple(node.output)
