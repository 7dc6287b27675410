"""Initializers that a pass has declared and not written: what they hold, and how it is made.

A graph is finished before any large weight is read. `Pending` says how the value of an initializer
comes about, piece by piece; the writer asks for one value after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.model.passes.half_types import HALF_TYPES
from mmcompile.model.source import SourceModel
from mmcompile.model.tensors import is_external, storage_bytes
from mmcompile.model.writer import ModelWriter

LOCATION = "mmcompile.pending"
"""Location of external data that is declared by a pass and written later."""
AnyArray = npt.NDArray[Any]
PIECE = 4 * 2**20
"""Elements that are converted at a time."""


@dataclass
class Pending:
    """Initializers whose values are still to be made, and what is to be said about the graph.

    Attributes:
        made: how each declared initializer's value is made, by name: pieces in C order.
        notes: what the reader of the result should know.
    """

    made: dict[str, Callable[[], Iterable[AnyArray]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def declare(name: str, elem_type: int, shape: Iterable[int]) -> onnx.TensorProto:
    """An initializer without its value."""
    tensor = TensorProto(name=name, data_type=elem_type, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=LOCATION)
    return tensor


def small(name: str, value: AnyArray) -> onnx.TensorProto:
    """An initializer with its value, for scales and shapes."""
    return numpy_helper.from_array(np.asarray(value), name)


def write_weights(
    writer: ModelWriter, model: onnx.ModelProto, source: SourceModel, pending: Pending
) -> None:
    """Writes the pending initializers of a graph and copies those of the source, one at a time.

    Initializers that are neither, nor in the graph, are somebody else's to write.

    Raises:
        EnvironmentProblem: the disk is full, or the source's files have changed.
    """
    for tensor in model.graph.initializer:
        make = pending.made.get(tensor.name)
        if make is not None:
            size = storage_bytes(tensor.data_type, tuple(tensor.dims))
            writer.add_pieces(tensor.name, size, make())
        elif is_external(tensor) and (reference := source.weights.ref(tensor.name)) is not None:
            writer.copy(reference)


def converted(
    pieces: Iterable[AnyArray], elem_type: int, where: str, notes: list[str]
) -> Iterator[AnyArray]:
    """Flat pieces of values as float32, float16 or bfloat16.

    Finite numbers beyond a half-precision type's range become its largest number, and a note is
    made of them: as infinities they would turn a whole row into NaN. Infinities stay.
    """
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    limits = [half.largest for half in HALF_TYPES.values() if half.elem_type == elem_type]
    beyond = 0
    for piece in pieces:
        part = piece.astype(np.float32)
        for largest in limits:
            outside = np.isfinite(part) & (np.abs(part) > largest)
            beyond += int(outside.sum())
            part[outside] = np.copysign(np.float32(largest), part[outside])
        yield part.astype(dtype, copy=False)
    if beyond:
        largest_text = f"±{limits[0]:g}" if limits[0] > 1e6 else f"±{limits[0]:.0f}"
        notes.append(
            f"{where}: {beyond} values beyond {largest_text} became {largest_text} in {dtype.name}"
        )


def to_elem_type(tensor: onnx.TensorProto, elem_type: int, notes: list[str]) -> onnx.TensorProto:
    """A tensor that holds its value, in another element type."""
    values = numpy_helper.to_array(tensor)
    (whole,) = converted([values.reshape(-1)], elem_type, f"constant {tensor.name}", notes)
    return numpy_helper.from_array(whole.reshape(values.shape), tensor.name)
