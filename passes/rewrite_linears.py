"""Pass: replace every planned group of linears by one `MicroMixLinear` node.

1. The group's MatMul or Gemm nodes (and the Adds that apply their biases) are removed; their
   output tensors keep their names, so that everything after them is untouched.
2. One `MicroMixLinear` reads the group's input; a Transpose stands before it where the layer had
   transA.
3. Where the group has several layers, a Split along the last axis gives each its output.
4. The packed constants are declared as external data of `PACKED`; the packer writes them later,
   so that the graph is finished before any weight is read.
5. The operator's function is added to the model, and the graph's inputs and outputs are as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from mmcompile import ops
from mmcompile.plan import GroupPlan
from mmcompile.sites import SiteGroup

PACKED = "mmcompile.packed"
"""Location of tensors that are declared here and written by the packer."""

MIN_IR_VERSION = 8
MAX_IR_VERSION = 12


def packed_names(group: str) -> tuple[str, str, str, str]:
    """Names of a group's order, weight, scales and bias constants."""
    return f"{group}.order", f"{group}.weight", f"{group}.scales", f"{group}.bias"


def rewrite_linears(
    skeleton: onnx.ModelProto, decided: Sequence[tuple[SiteGroup, GroupPlan]]
) -> onnx.ModelProto:
    """The model with every group replaced; weights that nothing else reads are gone from it."""
    graph = gs.import_onnx(skeleton)
    nodes = {node.name: node for node in graph.nodes}
    tensors = graph.tensors()
    for sites, plan in decided:
        _replace(graph, nodes, tensors, sites, plan)
    graph.cleanup().toposort()
    opset = graph.opset
    rewritten = gs.export_onnx(
        graph,
        do_type_check=False,
        opset_imports=[
            *(entry for entry in skeleton.opset_import if entry.domain != ops.DOMAIN),
            helper.make_opsetid(ops.DOMAIN, ops.OP_VERSION),
        ],
    )
    _restore_metadata(skeleton, rewritten)
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
    if first.transpose_input:
        upright = gs.Variable(f"{plan.name}.x", dtype=x.dtype)
        graph.nodes.append(
            gs.Node("Transpose", f"{plan.name}.transpose", {"perm": [1, 0]}, [x], [upright])
        )
        x = upright
    outputs = [tensors[site.output] for site in sites.sites]
    for site in sites.sites:
        for name in (site.node, site.bias_node):
            if name is not None:
                nodes[name].outputs.clear()
    merged = outputs[0]
    if len(outputs) > 1:
        merged = gs.Variable(f"{plan.name}.y", dtype=outputs[0].dtype)
        sizes = gs.Constant(f"{plan.name}.sizes", np.array(plan.out_channels, np.int64))
        split = gs.Node("Split", f"{plan.name}.split", {"axis": -1}, [merged, sizes], outputs)
        graph.nodes.append(split)
    constants = [
        gs.Constant(name, LazyValues(_declare(name, elem_type, shape)))
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
        (TensorProto.INT8, [rows, plan.scale_bytes]),
        (TensorProto.FLOAT, [rows]),
    )


def _declare(name: str, elem_type: int, shape: Sequence[int]) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=elem_type, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=PACKED)
    return tensor


def _restore_metadata(skeleton: onnx.ModelProto, rewritten: onnx.ModelProto) -> None:
    """What graphsurgeon does not carry: metadata and documentation of model, graph and nodes."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(rewritten, field, getattr(skeleton, field))
    rewritten.metadata_props.extend(skeleton.metadata_props)
    rewritten.graph.metadata_props.extend(skeleton.graph.metadata_props)
    before = {node.name: node for node in skeleton.graph.node}
    for node in rewritten.graph.node:
        if origin := before.get(node.name):
            node.metadata_props.extend(origin.metadata_props)
            node.doc_string = node.doc_string or origin.doc_string
    del rewritten.graph.input[:], rewritten.graph.output[:]
    rewritten.graph.input.extend(skeleton.graph.input)
    rewritten.graph.output.extend(skeleton.graph.output)
