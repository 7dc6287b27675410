"""What precision a graph asks of its products, before TensorRT decides what it builds.

A MatMul or Gemm asks for a narrow product where both operands come from DequantizeLinear or from
one of TensorRT's own operators, with nothing but changes of type and shape in between: TensorRT's
explicit quantization. Where its weight is a constant in 16 bits, it asks for a product in 16 bits.
A MicroMixLinear node asks for its plugin and the formats of its segments. Other products, of
float32 or of activations, may be what TensorRT makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto

from mmcompile.backends.engines.layer_precision import Expected
from mmcompile.backends.engines.plugin_fields import segments_text
from mmcompile.model.passes.baselines.functions import (
    FP4_QUANTIZE,
    MXFP8_DEQUANTIZE,
    TRT,
)
from mmcompile.ops import DOMAIN, OP_TYPE

_RESHAPED = {"Transpose", "Reshape", "Identity", "Flatten", "Squeeze", "Unsqueeze"}
"""Operators that an operand may pass on its way to the product, besides Cast."""
_ELEMENTS: dict[tuple[int, int], str] = {
    (TensorProto.INT8, 0): "INT8",
    (TensorProto.FLOAT8E4M3FN, 0): "FP8",
    (TensorProto.FLOAT4E2M1, 16): "NVFP4",
}
"""Precision by the type of the codes and the length of a block, 0 where there is none."""
_HALVES: dict[int, str] = {TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16"}
UNDEFINED = int(TensorProto.UNDEFINED)
_STEPS = 16


def expected_products(nodes: Iterable[str], precision: str) -> tuple[Expected, ...]:
    """One precision for all of the nodes."""
    return tuple(Expected(node, precision) for node in nodes)


def expected_by_graph(model: onnx.ModelProto) -> tuple[Expected, ...]:
    """What a model's own nodes ask for; its weights need not be loaded.

    Args:
        model: as TensorRT gets it, every node that matters named.
    """
    graph = _Graph(model.graph)
    found = []
    for node in model.graph.node:
        if node.op_type == OP_TYPE and node.domain == DOMAIN:
            found.append(Expected(node.name, _segments(node), plugin=True))
        elif node.op_type in ("MatMul", "Gemm") and len(node.input) >= 2:
            x, weight = (graph.quantized(name) for name in node.input[:2])
            asked = x if x == weight else None
            if asked is None and weight is None:
                asked = graph.half(node.input[1])
            if asked is not None:
                found.append(Expected(node.name, asked))
    return tuple(found)


class _Graph:
    """The part of a graph that says how a tensor was quantized."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._types = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}

    def quantized(self, tensor: str) -> str | None:
        """The precision that an operand was dequantized from; None where it was not."""
        for _ in range(_STEPS):
            maker = self._makers.get(tensor)
            if maker is None:
                return None
            if maker.op_type == MXFP8_DEQUANTIZE and maker.domain == TRT:
                return "MXFP8"
            if maker.op_type == "DequantizeLinear":
                block = next((int(a.i) for a in maker.attribute if a.name == "block_size"), 0)
                return _ELEMENTS.get((self._element(maker), block))
            if maker.op_type not in _RESHAPED and maker.op_type != "Cast":
                return None
            tensor = maker.input[0]
        return None

    def half(self, tensor: str) -> str | None:
        """The type of a constant operand of 16 bits; None for all others."""
        for _ in range(_STEPS):
            maker = self._makers.get(tensor)
            if maker is None:
                return _HALVES.get(self._types.get(tensor, UNDEFINED))
            if maker.op_type not in _RESHAPED:
                return None
            tensor = maker.input[0]
        return None

    def _element(self, dequantize: onnx.NodeProto) -> int:
        """The ONNX type of the codes; UNDEFINED where the graph does not tell."""
        codes = dequantize.input[0]
        if codes in self._types:
            return self._types[codes]
        if len(dequantize.input) > 2:
            return self._types.get(dequantize.input[2], UNDEFINED)
        maker = self._makers.get(codes)
        if maker is not None and maker.op_type == FP4_QUANTIZE and maker.domain == TRT:
            return int(TensorProto.FLOAT4E2M1)
        return UNDEFINED


def _segments(node: onnx.NodeProto) -> str:
    """The segments of a MicroMixLinear node, in words."""
    values: Mapping[str, list[int]] = {a.name: list(a.ints) for a in node.attribute}
    names = ("segment_channels", "segment_act_formats", "segment_weight_formats")
    return segments_text(*(values.get(name, []) for name in names))
