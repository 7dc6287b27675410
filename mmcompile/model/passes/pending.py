"""Constants of a baseline that are not written yet: what they hold, and how they are made.

A graph is finished before any large weight is read. `Pending` says how the value of an initializer
comes about; the writer asks for one value after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from mmcompile.model.passes.half_rules import HALF_MAX

LOCATION = "mmcompile.baseline"
"""Location of external data that is declared by a pass and written later."""
AnyArray = npt.NDArray[Any]
_CHUNK = 4 * 2**20
"""Elements that are converted at a time."""


@dataclass
class Pending:
    """Initializers whose values are still to be made, and what is to be said about the graph.

    Attributes:
        made: how each declared initializer's value is made, by name.
        notes: what the reader of the result should know.
    """

    made: dict[str, Callable[[], AnyArray]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def declare(name: str, elem_type: int, shape: tuple[int, ...]) -> onnx.TensorProto:
    """An initializer without its value."""
    tensor = TensorProto(name=name, data_type=elem_type, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=LOCATION)
    return tensor


def small(name: str, value: AnyArray) -> onnx.TensorProto:
    """An initializer with its value, for scales and shapes."""
    return numpy_helper.from_array(np.asarray(value), name)


def converted(values: AnyArray, elem_type: int, where: str, notes: list[str]) -> AnyArray:
    """Values as float16 or float32, of the same shape.

    Finite numbers beyond float16's range become its largest number, and a note is made of them:
    as infinities they would turn a whole row into NaN. Infinities stay what they are.
    """
    if elem_type == TensorProto.FLOAT:
        return values.astype(np.float32)
    result = np.empty(values.shape, np.float16)
    flat, target = values.reshape(-1), result.reshape(-1)
    beyond = 0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float32)
        outside = np.isfinite(part) & (np.abs(part) > HALF_MAX)
        beyond += int(outside.sum())
        part[outside] = np.copysign(np.float32(HALF_MAX), part[outside])
        target[start : start + _CHUNK] = part.astype(np.float16)
    if beyond:
        notes.append(f"{where}: {beyond} values beyond ±65504 became ±65504 in float16")
    return result


def to_elem_type(tensor: onnx.TensorProto, elem_type: int, notes: list[str]) -> onnx.TensorProto:
    """A tensor that holds its value, in another element type."""
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(
        converted(values, elem_type, f"constant {tensor.name}", notes), tensor.name
    )
