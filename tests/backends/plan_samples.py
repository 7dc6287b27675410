"""Text as TensorRT-RTX writes it into engines, made by hand: a few statements of each kind."""

from __future__ import annotations

import struct

LAYER = "[ONNX Layer: {}]"


def tensor(name, kind, base=""):
    """The description of a tensor; of a part of another where there is a base."""
    head = f'  sub_tensor={{ base="{base}"' if base else "  tensor={ alignment=128"
    return f'{head} dims={{ "rows" 64 }} name="{name}" strides={{ 64 1 }} type={kind} }}\n'


def layers(*nodes):
    """ONNX nodes as an operation names them."""
    return 'layers="' + "\x1f".join(LAYER.format(node) for node in nodes) + '"'


def quoted(names):
    return " ".join(f'"{name}"' for name in names)


def product(name, inputs, output="y", nodes=None, op="fully_connected"):
    """A MatMul or Gemm, or a convolution."""
    return (
        f'  {op}={{ name="{name}" output={{"{output}" }} input={{{quoted(inputs)} }} m=0 '
        f"alpha=3F800000 {layers(*(nodes or [name]))} }}\n"
    )


def kernel(name, inputs, outputs, nodes, op="function"):
    """A generated kernel, or the call of another program."""
    return (
        f"  {op}={{ name={name} fqn={name}_0x1 input_args={{ {quoted(inputs)} }} "
        f"output_args={{ {quoted(outputs)} }} grid = {{ 4 1 1 }} cond = {{ exec = "
        f'"c" grid = {{ 1 1 1 }} block = {{ 2 1 }} }} {layers(*nodes)} swap_ab=false }}\n'
    )


def program(tensors, operations, inputs=("x",), version=5):
    """A whole program."""
    return (
        f"header {{\n  version = {version}\n  region = {{ name=r size=1 }}\n"
        f"  inputs={{ {quoted(inputs)} }}\n}}\ndescriptors {{\n{''.join(tensors)}}}\n"
        f"main {{\n label bb1: \n{''.join(operations)}}}\n"
    )


def engine(*programs):
    """Programs between bytes that are no text."""
    parts = (b"NLYM" + struct.pack("<IQ", 1, len(p)) + p.encode() for p in programs)
    return b"vtrt\0\0\0\0" + b"\0\x01\xff".join(parts) + bytes(range(256)) * 4


FP8 = program(
    [
        tensor("x.1", "fp8_e4m3"),
        tensor("x^deref", "fp8_e4m3", base="x.1"),
        tensor("w", "fp8_e4m3"),
        tensor("alpha", "float"),
        tensor("beta", "float"),
        tensor("y", "half"),
    ],
    [product("fc", ["x^deref", "w", "alpha", "beta"], nodes=["fc/MatMul", "x/DQ", "w/DQ"])],
)
"""One product in FP8."""


def text_record(text):
    """A text as TensorRT-RTX frames it."""
    size = struct.pack("<Q", len(text))
    return b"\x13\x80\x01\0" + size + b"\x01\x80\x0c\x80\x01\0" + size + text


def array_record(name, values):
    """A plugin's field of int32."""
    data = struct.pack(f"<{len(values)}i", *values)
    return (
        text_record(name)
        + b"\x07\x80\x01\0"
        + struct.pack("<I", len(values))
        + text_record(b"INT32")
        + b"\x01\x80\x03\x80\x01\0"
        + struct.pack("<Q", len(data))
        + data
    )


def plugin_record(layer, channels, activations, weights):
    """What an engine keeps of a MicroMixLinear layer."""
    return (
        text_record(layer.encode())
        + b"\x07\x80\x01\0\x05\0\0\0"
        + text_record(b"MicroMixLinear")
        + text_record(b"1")
        + text_record(b"mmcompile")
        + array_record(b"segment_channels", channels)
        + array_record(b"segment_act_formats", activations)
        + array_record(b"segment_weight_formats", weights)
        + text_record(b"V3ONE")
    )
