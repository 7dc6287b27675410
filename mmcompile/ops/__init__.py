"""The ONNX operator `mmcompile::MicroMixLinear`: its schema, and its meaning as a function.

This is the one definition of the node. The compiler writes nodes after it, the TensorRT plugin's
creator is tested against it, and every compiled model carries `function_proto`, so that any ONNX
runtime computes the node from standard operators and anybody can read what it does.
"""

from mmcompile.ops.function import function_proto, needs_half_blocks
from mmcompile.ops.schema import (
    ATTRIBUTES,
    DOMAIN,
    INPUTS,
    LAYOUT_VERSION,
    MAX_OPSET,
    MIN_OPSET,
    OP_TYPE,
    OP_VERSION,
    OUTPUTS,
    PLUGIN_VERSION,
    Field,
    node_attributes,
)

__all__ = [
    "ATTRIBUTES",
    "DOMAIN",
    "INPUTS",
    "LAYOUT_VERSION",
    "MAX_OPSET",
    "MIN_OPSET",
    "OP_TYPE",
    "OP_VERSION",
    "OUTPUTS",
    "PLUGIN_VERSION",
    "Field",
    "function_proto",
    "needs_half_blocks",
    "node_attributes",
]
