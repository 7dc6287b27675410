"""TensorRT's types and shapes in numpy's words."""

from __future__ import annotations

from typing import Any

_DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
}
"""TensorRT's names of the types that inputs and outputs can have, and numpy's."""


def dtype_name(dtype: Any) -> str:
    """Numpy's name of a TensorRT type, or TensorRT's own where numpy has none."""
    name = str(dtype).rpartition(".")[2]
    return _DTYPES.get(name, name)


def dimensions(shape: Any) -> tuple[int | None, ...]:
    """A TensorRT shape with None for what is dynamic."""
    return tuple(None if size < 0 else int(size) for size in shape)
