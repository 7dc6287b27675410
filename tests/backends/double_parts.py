"""The parts of TensorRT's double that have no state: tables, enumerations, what can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

MAGIC = b"double-of-an-engine\n"
PLUGIN = ("MicroMixLinear", "1", "mmcompile")
NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT32": np.int32,
    "INT64": np.int64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
ONNX_TYPES = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.BOOL: "BOOL",
}


class Member:
    """A member of an enumeration, printed as pybind11 prints it."""

    def __init__(self, kind: str, name: str, value: int):
        self.kind, self.label, self.value = kind, name, value

    def __str__(self) -> str:
        return f"{self.kind}.{self.label}"

    def __int__(self) -> int:
        return self.value


def enumeration(kind: str, *names: str) -> type:
    return type(kind, (), {name: Member(kind, name, i) for i, name in enumerate(names)})


@dataclass
class Faults:
    """What is to go wrong.

    Attributes:
        builder: `Builder(...)` fails, as with a driver that is too old.
        node: the parser objects to this node.
        build: the builder returns None after logging these lines; or raises this exception.
        library: `load_library` returns None.
        context: no execution context: out of memory.
        swap: the parser gives the network's inputs in another order.
        rename: the engine calls its first output otherwise.
        cache: the timing cache is one of another GPU.
        enqueue: running fails.
        layers: what the engine inspector says of the layers.
    """

    builder: bool = False
    node: str | None = None
    build: list[str] | Exception | None = None
    library: bool = False
    context: bool = False
    swap: bool = False
    rename: bool = False
    cache: bool = False
    enqueue: bool = False
    layers: list[dict[str, object]] = field(default_factory=list)


@dataclass
class Seen:
    """What the double was told."""

    flags: int | None = None
    level: int | None = None
    workspace: int | None = None
    plugins: list[str] = field(default_factory=list)
    cache: bytes = b""
    bodies: int = 0
    budget: int | None = None
    profiles_set: list[int] = field(default_factory=list)
