"""One-node models of `MicroMixLinear`, with operands exposed, and references from the spec."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from mmcompile import ops
from mmcompile.plan import GroupPlan, Segment, format_order
from mmcompile.quantize import (
    dequantize_blocks,
    pack_codes,
    quantize_blocks,
    quantize_blocks_searched,
)
from tests import running

ELEM_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def group(segments, order, out_channels, act_scale=1.0, weight_scale=1.0):
    order = np.asarray(order)
    segments = tuple(
        s if isinstance(s, Segment) else Segment(s[0], s[1], s[2], *(s[3:] or (1.75, 1.75)))
        for s in segments
    )
    return GroupPlan(
        name="linear",
        input="x",
        nodes=("linear",),
        in_channels=int((order >= 0).sum()),
        out_channels=(out_channels,),
        order=format_order(order),
        segments=segments,
        act_tensor_scale=act_scale,
        weight_tensor_scale=weight_scale,
    )


def permute(rows, order):
    """[M, K] -> [M, K_pad] in the permuted order, by plain indexing."""
    result = np.zeros((rows.shape[0], len(order)), np.float32)
    for position, channel in enumerate(order):
        if channel >= 0:
            result[:, position] = rows[:, channel]
    return result


def spec_operand(rows, plan, side):
    """Dequantized operand [M, K_pad] after the numpy reference; side is 'act' or 'weight'."""
    permuted = permute(np.asarray(rows, np.float32), plan.channel_order())
    scale = plan.act_tensor_scale if side == "act" else plan.weight_tensor_scale
    parts, start = [], 0
    for segment in plan.segments:
        fmt = segment.activation if side == "act" else segment.weight
        part = permuted[:, start : start + segment.channels]
        factor = scale if fmt.scale == "e4m3" else 1.0
        if side == "act":
            codes, scales = quantize_blocks(part, fmt, segment.act_threshold, factor)
        else:
            codes, scales = spec_weight_blocks(part, segment, factor)
        parts.append(dequantize_blocks(codes, scales, fmt, tensor_scale=factor))
        start += segment.channels
    return np.concatenate(parts, axis=1)


def spec_weight_blocks(part, segment, tensor_scale):
    """Codes and scales of a segment's weights, whichever way its scales are found."""
    if segment.weight_scales == "searched":
        return quantize_blocks_searched(part, segment.weight, tensor_scale)
    return quantize_blocks(part, segment.weight, segment.weight_threshold, tensor_scale)


def spec_pack(weight, plan):
    """Packed codes[N, row_bytes] and scales[scale_words, N, 4] of weight[N, K], in numpy."""
    permuted = permute(np.asarray(weight, np.float32), plan.channel_order())
    codes, scales, start = [], [], 0
    for segment in plan.segments:
        fmt = segment.weight
        factor = plan.weight_tensor_scale if fmt.scale == "e4m3" else 1.0
        part = permuted[:, start : start + segment.channels]
        c, s = spec_weight_blocks(part, segment, factor)
        codes.append(padded_to(pack_codes(c, fmt.element.bits), 16))
        scales.append(words_first(s))
        start += segment.channels
    return np.concatenate(codes, axis=1), np.concatenate(scales)


def padded_to(rows, multiple):
    """[N, bytes] with zeros behind every row, up to a multiple."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % multiple)))


def words_first(scales):
    """The scale bytes [N, blocks] of one segment as words [ceil(blocks / 4), N, 4]."""
    padded = padded_to(scales, 4)
    return padded.reshape(len(scales), padded.shape[1] // 4, 4).transpose(1, 0, 2)


def node_model(plan, codes, scales, bias, *, opset=18, elem_type=TensorProto.FLOAT, rank=2):
    lead = [f"d{i}" for i in range(rank - 1)]
    constants = {
        "order": plan.channel_order(),
        "weight": codes.view(np.int8),
        "scales": scales.view(np.int8),
        "bias": np.asarray(bias, np.float32),
    }
    node = helper.make_node(
        ops.OP_TYPE,
        ["x", *constants],
        ["y"],
        name=plan.name,
        domain=ops.DOMAIN,
        **ops.node_attributes(plan),
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("x", elem_type, [*lead, plan.in_channels])],
        [helper.make_tensor_value_info("y", elem_type, [*lead, sum(plan.out_channels)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(ops.DOMAIN, 1)],
        functions=[ops.function_proto(opset, half_blocks=ops.needs_half_blocks([plan]))],
        ir_version=10,
    )


def with_operands(model):
    """The model inlined, with the dequantized operands as further outputs."""
    inlined = onnx.inliner.inline_local_functions(model)
    for name in ("dequantized_x", "dequantized_weight"):
        exposed = next(o for node in inlined.graph.node for o in node.output if o.startswith(name))
        inlined.graph.output.append(onnx.ValueInfoProto(name=exposed))
        inlined.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    return inlined


def run(model, x, outputs=None):
    return running.run(model, {"x": x}, outputs)


def summation_bound(x_hat, w_hat, bias):
    """Bound of |fp32 sum - exact sum| of x_hat · w_hatᵀ + bias, per output.

    Any order of adding n terms errs by at most gamma_n = n·u / (1 - n·u) times the sum of the
    magnitudes (Higham, Accuracy and Stability, 4.2); n = K products, one bias, and one rounding
    per product where no fused multiply-add is used: K + 2 roundings on any path.
    """
    unit = 2.0**-24
    steps = x_hat.shape[1] + 2
    gamma = steps * unit / (1 - steps * unit)
    magnitude = np.abs(x_hat.astype(np.float64)) @ np.abs(w_hat.astype(np.float64)).T
    return gamma * (magnitude + np.abs(bias)) + 2.0**-149 * steps
