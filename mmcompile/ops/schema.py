"""The schema of `MicroMixLinear`: inputs, output, attributes, versions.

    y = dequantize(quantize(x[order])) · dequantize(weight)ᵀ + bias

The numbers are specified in docs/spec.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcompile.plan import GroupPlan

DOMAIN = "mmcompile"
OP_TYPE = "MicroMixLinear"
OP_VERSION = 1
PLUGIN_VERSION = "1"
LAYOUT_VERSION = 2
"""Version of the packed layout of `weight` and `scales` (docs/spec.md, layout)."""

MIN_OPSET = 15
MAX_OPSET = 25


@dataclass(frozen=True)
class Field:
    """An input, output or attribute of the operator; `kind` is its ONNX type."""

    name: str
    kind: str
    meaning: str


INPUTS = (
    Field("x", "T[..., K]", "activations; T is float, float16 or bfloat16"),
    Field("order", "int32[K_pad]", "source channel of every permuted channel; -1 is a zero"),
    Field("weight", "int8[N, row_bytes]", "packed weight codes in layout `layout_version`"),
    Field("scales", "int8[scale_words, N, 4]", "weight block scales in layout `layout_version`"),
    Field("bias", "float[N]", "added in fp32 before the one rounding to T"),
)
OUTPUTS = (Field("y", "T[..., N]", "the layer's output, rounded once from fp32"),)
ATTRIBUTES = (
    Field("segment_channels", "INTS", "channels of every segment; multiples of 32, sum K_pad"),
    Field("segment_act_formats", "INTS", "id of every segment's activation format"),
    Field("segment_weight_formats", "INTS", "id of every segment's weight format"),
    Field("segment_act_thresholds", "FLOATS", "mantissa threshold in [1, 2] of the block exponent"),
    Field("act_tensor_scale", "FLOAT", "NVFP4 tensor scale of x, a power of two"),
    Field("weight_tensor_scale", "FLOAT", "NVFP4 tensor scale of the weights, a power of two"),
    Field("layout_version", "INT", "version of the packed layout"),
    Field("plugin_version", "STRING", "version of the TensorRT plugin"),
    Field("plugin_namespace", "STRING", "namespace of the TensorRT plugin"),
)


def node_attributes(group: GroupPlan) -> dict[str, object]:
    """The attributes of the node that carries out a group's plan, in the schema's order."""
    segments = group.segments
    return {
        "segment_channels": [segment.channels for segment in segments],
        "segment_act_formats": [segment.activation.id for segment in segments],
        "segment_weight_formats": [segment.weight.id for segment in segments],
        "segment_act_thresholds": [float(segment.act_threshold) for segment in segments],
        "act_tensor_scale": float(group.act_tensor_scale),
        "weight_tensor_scale": float(group.weight_tensor_scale),
        "layout_version": LAYOUT_VERSION,
        "plugin_version": PLUGIN_VERSION,
        "plugin_namespace": DOMAIN,
    }
