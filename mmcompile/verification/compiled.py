"""Reads the `MicroMixLinear` nodes of a compiled model, so that what was written is verified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from mmcompile import ops
from mmcompile.errors import UnsupportedModelError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.model.source import SourceModel
from mmcompile.packed import PackedLinear
from mmcompile.plan import PADDING, SCALE_WORD, GroupPlan, Segment, find_problem, format_order


@dataclass(frozen=True)
class CompiledNode:
    """A node with the tensors that leave it, the Split after it looked through.

    A tensor that leaves it in half precision may be there in float32, too, under another name.
    """

    name: str
    outputs: tuple[str, ...]
    node: onnx.NodeProto


def compiled_nodes(model: SourceModel) -> tuple[CompiledNode, ...]:
    """All `MicroMixLinear` nodes of a model in graph order."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.proto.graph.node:
        if node.op_type != ops.OP_TYPE or node.domain != ops.DOMAIN:
            continue
        outputs = tuple(node.output)
        following = readers.get(outputs[0], [])
        if len(following) == 1 and following[0].name == f"{node.name}.split":
            outputs = tuple(following[0].output)
        casts = [n for name in outputs for n in readers.get(name, []) if n.op_type == "Cast"]
        outputs += tuple(cast.output[0] for cast in casts)
        found.append(CompiledNode(node.name, outputs, node))
    return tuple(found)


def read_nodes(model: SourceModel) -> Iterator[tuple[CompiledNode, GroupPlan, PackedLinear]]:
    """Every node with its plan and its constants, one at a time.

    Raises:
        UnsupportedModelError: a node is of another version, or its constants do not fit.
    """
    formats = {fmt.id: name for name, fmt in BLOCK_FORMATS.items()}
    for compiled in compiled_nodes(model):
        node = compiled.node
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        remedy = "compile the original model with this version of mmcompile"
        if attributes.get("layout_version") != ops.LAYOUT_VERSION:
            reason = f"layout version {attributes.get('layout_version')} is not known"
            raise UnsupportedModelError("layout-version", f"node {node.name}", reason, remedy)
        try:
            order, weight, scales, bias = (model.weights.read(name) for name in node.input[1:5])
            segments = tuple(
                Segment(channels, formats[act], formats[weights], threshold, 2.0)
                for channels, act, weights, threshold in zip(
                    attributes["segment_channels"],
                    attributes["segment_act_formats"],
                    attributes["segment_weight_formats"],
                    attributes["segment_act_thresholds"],
                    strict=True,
                )
            )
            plan = GroupPlan(
                name=node.name,
                input=node.input[0],
                nodes=(node.name,),
                in_channels=int(np.count_nonzero(order != PADDING)),
                out_channels=(weight.shape[0],),
                order=format_order(order),
                segments=segments,
                act_tensor_scale=attributes["act_tensor_scale"],
                weight_tensor_scale=attributes["weight_tensor_scale"],
            )
            if problem := find_problem(plan):
                raise ValueError(problem)
            found = [f"{a.dtype}{list(a.shape)}" for a in (order, weight, scales, bias)]
            rows = weight.shape[0]
            expected = [
                f"int32[{plan.padded_channels}]",
                f"int8[{rows}, {plan.row_bytes}]",
                f"int8[{plan.scale_words}, {rows}, {SCALE_WORD}]",
                f"float32[{rows}]",
            ]
            if found != expected:
                raise ValueError(f"its constants are {found}, its attributes ask for {expected}")
        except (KeyError, TypeError, ValueError) as error:
            where = f"node {node.name}"
            raise UnsupportedModelError("node-malformed", where, str(error), remedy) from error
        yield compiled, plan, PackedLinear(order, weight, scales, bias, math.nan)
