"""Protobuf wire format: takes the weights out of a serialized model without parsing it.

An ONNX file with embedded weights is one protobuf message that may be gigabytes long. A parser
would copy all of it into memory. This scanner walks over field tags and lengths only, and cuts
`ModelProto.graph.initializer.raw_data` out of the message: what remains, the skeleton, is small,
and each weight that was cut out is described as external data of the file it already lies in.

Sources: protobuf encoding specification; field numbers from onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

import onnx

Buffer = bytes | mmap.mmap

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MODEL_IR_VERSION, _MODEL_GRAPH = 1, 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA, _TENSOR_EXTERNAL_DATA = 9, 13
MAX_FIELDS = 2**22
"""Fields of a graph beyond which a file is refused: a bound on time, far above real models."""
MAX_SKELETON = 2**31 - 1
"""Bytes of a message that protobuf can parse."""


class WireError(Exception):
    """The bytes are not what they should be.

    Args:
        code: code for the user's error: `not-onnx`, `model-truncated`, `model-corrupt` or
            `model-too-large`.
        reason: what is wrong, with the offset in the file.
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(code, reason)


class _PastEnd(WireError):
    """A field is longer than the message around it."""


class Field(NamedTuple):
    """Where a field lies: `start` at its tag, `value` at its payload, `end` behind it."""

    number: int
    kind: int
    start: int
    value: int
    end: int


class Split(NamedTuple):
    """A model without its large weights.

    Attributes:
        skeleton: a serialized `ModelProto`; the cut weights are external data.
        cut: how many initializers were cut out.
    """

    skeleton: bytes
    cut: int


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that fills `data[start:end]`.

    Raises:
        WireError: a group, an impossible tag, or a field that does not fit into the message.
    """
    position = start
    while position < end:
        tag, value = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == _LENGTH:
            size, value = _varint(data, value, end)
            stop = value + size
        elif kind == _VARINT:
            _, stop = _varint(data, value, end)
        elif kind == _FIXED32:
            stop = value + 4
        elif kind == _FIXED64:
            stop = value + 8
        else:
            raise WireError("model-corrupt", f"wire type {kind} at byte {position}")
        if not 0 < number < 2**29:
            raise WireError("model-corrupt", f"field number {number} at byte {position}")
        if stop > end:
            raise _PastEnd(
                "model-corrupt",
                f"field {number} at byte {position} should end at byte {stop}, "
                f"but the data around it ends at byte {end}",
            )
        yield Field(number, kind, position, value, stop)
        position = stop


def split_weights(data: Buffer, location: str, limit: int) -> Split:
    """Cuts the initializers' raw data out of a serialized model.

    Args:
        data: the whole file.
        location: name of the file, as external data will refer to it.
        limit: raw data of more bytes than this is cut out.

    Raises:
        WireError: the bytes are no ONNX model, or a damaged one.
    """
    skeleton = bytearray()
    cut = 0
    is_model = False
    try:
        for field in fields(data, 0, len(data)):
            if field.number == _MODEL_GRAPH and field.kind == _LENGTH:
                is_model = True
                graph, count = _split_graph(data, field, location, limit)
                cut += count
                skeleton += _length_field(_MODEL_GRAPH, len(graph))
                skeleton += graph
            else:
                is_model |= (field.number, field.kind) == (_MODEL_IR_VERSION, _VARINT)
                _keep(skeleton, data, field.start, field.end)
    except WireError as error:
        if not is_model:
            raise WireError("not-onnx", error.reason) from error
        if isinstance(error, _PastEnd):
            raise WireError("model-truncated", error.reason) from error
        raise
    if not is_model:
        raise WireError("not-onnx", "it has no field of an ONNX model")
    return Split(bytes(skeleton), cut)


def _split_graph(data: Buffer, graph: Field, location: str, limit: int) -> tuple[bytearray, int]:
    """The graph's message without its weights, and how many were cut out."""
    body = bytearray()
    kept = graph.value
    cut = seen = 0
    try:
        for field in fields(data, graph.value, graph.end):
            seen += 1
            if field.number != _GRAPH_INITIALIZER or field.kind != _LENGTH:
                continue
            if field.end - field.value <= limit:
                continue
            tensor, count = _split_tensor(data, field, location, limit)
            seen += count
            if seen > MAX_FIELDS:
                break
            if tensor:
                _keep(body, data, kept, field.start)
                body += _length_field(_GRAPH_INITIALIZER, len(tensor))
                body += tensor
                kept = field.end
                cut += 1
    except _PastEnd as error:
        raise WireError("model-corrupt", f"in the graph, {error.reason}") from error
    if seen > MAX_FIELDS:
        raise WireError("model-too-large", f"its graph has more than {MAX_FIELDS} parts")
    _keep(body, data, kept, graph.end)
    return body, cut


def _split_tensor(data: Buffer, tensor: Field, location: str, limit: int) -> tuple[bytes, int]:
    """The tensor's message without raw data, empty if it stays; and how many fields it has."""
    body = bytearray()
    raw: Field | None = None
    seen = 0
    external = False
    for field in fields(data, tensor.value, tensor.end):
        seen += 1
        if seen > MAX_FIELDS:
            return b"", seen
        external |= field.number == _TENSOR_EXTERNAL_DATA
        if field.number == _TENSOR_RAW_DATA and field.kind == _LENGTH:
            if raw is not None:
                raise WireError("model-corrupt", f"a tensor has two values at byte {field.start}")
            raw = field
    if raw is None or raw.end - raw.value <= limit:
        return b"", seen
    if external:
        raise WireError("model-corrupt", f"a tensor has two values at byte {raw.start}")
    _keep(body, data, tensor.value, raw.start)
    _keep(body, data, raw.end, tensor.end)
    # Concatenated messages merge (protobuf encoding specification), so the rest is appended.
    rest = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in external_entries(location, raw.value, raw.end - raw.value):
        rest.external_data.add(key=key, value=value)
    body += rest.SerializeToString()
    return bytes(body), seen


def external_entries(location: str, offset: int, length: int) -> tuple[tuple[str, str], ...]:
    """Keys and values of a tensor's `external_data`."""
    return ("location", location), ("offset", str(offset)), ("length", str(length))


def _keep(target: bytearray, data: Buffer, start: int, end: int) -> None:
    """Appends `data[start:end]`, unless that outgrows what protobuf can parse."""
    if len(target) + end - start > MAX_SKELETON:
        raise WireError("model-too-large", "without its weights it is still larger than 2 GiB")
    target += data[start:end]


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """An unsigned varint and the position behind it."""
    value = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise WireError("model-corrupt", f"a number of more than 64 bits at byte {position}")
    raise _PastEnd("model-corrupt", f"the data ends within a number at byte {position}")


def _length_field(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field; `number` is below 16, so the tag is a byte."""
    encoded = bytearray([number << 3 | _LENGTH])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
