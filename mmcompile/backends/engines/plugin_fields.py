"""Finds the fields of MicroMixLinear layers in a serialized engine: the formats that they run.

TensorRT stores what a plugin gives it to keep, name by name, after the layer's tactics. The fields
are ours; how TensorRT-RTX 1.7.1 frames them is not documented and was found in its engines, so a
layer whose record does not look exactly so has no formats here, and nothing else happens. Numbers
are little-endian:

    text:   13 80 01 00, u64 length, 01 80 0c 80 01 00, u64 length, the bytes
    array:  text name, 07 80 01 00, u32 count, text type, 01 80 03 80 01 00, u64 bytes, the values
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping

import numpy as np

from mmcompile.backends.engines.plan_text import EngineBytes
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.ops import OP_TYPE

_BEFORE, _AFTER = 1 << 16, 1 << 18
"""Bytes around a record's begin: its layer's tactics stand before it, its fields after."""
MAX_RECORDS = 100_000
_TEXT = rb"\x13\x80\x01\x00.{8}\x01\x80\x0c\x80\x01\x00(.{8})"
_NAME = re.compile(_TEXT, re.DOTALL)
_RECORD = re.compile(_TEXT + re.escape(OP_TYPE.encode()), re.DOTALL)
_ARRAY = re.compile(
    rb"(segment_channels|segment_act_formats|segment_weight_formats)\x07\x80\x01\x00(.{4})"
    rb"\x13\x80\x01\x00.{8}\x01\x80\x0c\x80\x01\x00.{8}INT32\x01\x80\x03\x80\x01\x00(.{8})",
    re.DOTALL,
)
_FORMATS = {form.id: form.name.upper() for form in BLOCK_FORMATS.values()}


def read_segments(engine: EngineBytes, layers: Collection[str]) -> dict[str, str]:
    """The segments of MicroMixLinear layers, in words; see `segments_text`.

    Args:
        engine: a serialized engine.
        layers: ids of the plugin layers' tactics, as the engine's text has them.

    Returns:
        By id; a layer whose record is not understood is absent.
    """
    view = memoryview(engine).cast("B")
    ids = {name.encode("utf-8", "replace"): name for name in layers}
    found: dict[str, str] = {}
    records = list(itertools.islice(_RECORD.finditer(view), MAX_RECORDS)) if ids else []
    starts = [record.start() for record in records]
    for record, previous, following in zip(
        records, [0, *starts], [*starts[1:], len(view)], strict=False
    ):
        start, end = record.span()
        layer = _named(bytes(view[max(previous, start - _BEFORE) : start]), ids)
        text = _segments(bytes(view[end : min(following, end + _AFTER)]))
        if layer is not None and text:
            # Two records of one layer that differ: neither is to be trusted.
            found[layer] = text if found.get(layer, text) == text else ""
    return {layer: text for layer, text in found.items() if text}


def segments_text(channels: list[int], activations: list[int], weights: list[int]) -> str:
    """Segments in words: format and channels, e.g. `NVFP4 96 + MXFP8 32`.

    Args:
        channels: channels of every segment.
        activations: ids of the activations' formats.
        weights: ids of the weights' formats.

    Returns:
        `A × W` for a format where activations and weights differ; empty where the lists do not fit
        each other, an id is none, or a segment has no channels.
    """
    if not len(channels) == len(activations) == len(weights):
        return ""
    if not {*activations, *weights} <= _FORMATS.keys() or min(channels, default=0) <= 0:
        return ""
    said = []
    for count, x, weight in zip(channels, activations, weights, strict=True):
        pair = _FORMATS[x] if x == weight else f"{_FORMATS[x]} × {_FORMATS[weight]}"
        said.append(f"{pair} {count}")
    return " + ".join(said)


def _named(data: bytes, ids: Mapping[bytes, str]) -> str | None:
    """The one of the ids that stands in the data as a text; None for none or several."""
    found = set()
    for text in _NAME.finditer(data):
        size = int.from_bytes(text[1], "little")
        found.add(ids.get(data[text.end() : text.end() + size]))
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _segments(data: bytes) -> str:
    """The segments that a record's fields describe; empty where they are not understood."""
    arrays: dict[bytes, list[int]] = {}
    for array in _ARRAY.finditer(data):
        count, size = (int.from_bytes(part, "little") for part in array.group(2, 3))
        values = data[array.end() : array.end() + size]
        if size != 4 * count or len(values) != size:
            return ""
        arrays[array[1]] = np.frombuffer(values, "<i4").tolist()
    names = (b"segment_channels", b"segment_act_formats", b"segment_weight_formats")
    if not arrays.keys() >= set(names):
        return ""
    return segments_text(*(arrays[name] for name in names))
