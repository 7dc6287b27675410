"""Looks at an engine's file without loading it: what precision it runs, and what its model asks."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx

from mmcompile.backends.engines.expectations import expected_by_graph
from mmcompile.backends.engines.layer_precision import Expected, PrecisionCheck
from mmcompile.backends.engines.meta import META_FILE, EngineMeta, describe_file, read_meta
from mmcompile.backends.engines.precision import INSPECTOR, compare, realized, realized_file
from mmcompile.errors import MMCompileError, UsageError
from mmcompile.output import MODEL_FILE

_HEAD = 64


class EngineReport(msgspec.Struct, frozen=True):
    """What is known of an engine.

    Attributes:
        engine: its file, or the file with the inspector's JSON.
        bytes: size of the file.
        counts: number of layers by precision.
        compared_with: the model that it was built of; empty where that is not beside it.
        precision: what it runs, beside what that model asks for.
    """

    engine: str
    bytes: int
    counts: dict[str, int]
    compared_with: str
    precision: PrecisionCheck


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, or the engine inspector's JSON, by its content.

    Engines begin with `ftrt` or `vtrt`; a serialized ONNX model never begins so.
    """
    try:
        head = _head(path)
    except OSError:
        return False
    return head[1:4] == b"trt" or head.lstrip().startswith(b"{")


def engine_report(path: Path) -> EngineReport:
    """Reads an engine, or the JSON of its inspector, as `trtexec --exportLayerInfo` writes it.

    What the inspector told when the engine was built wins, where its description lies beside it.
    Where the model that it was built of lies there too, both are compared.

    Raises:
        UsageError: the file cannot be read.
    """
    meta = _meta_beside(path)
    expected, model = ((), "") if meta is None else _expected_beside(path, meta)
    try:
        size = path.stat().st_size
        if _head(path).lstrip().startswith(b"{"):
            found = realized(b"", path.read_bytes(), expected)
        elif meta is not None and _is_inspected(path, meta):
            found = meta.precision.realized
        else:
            found = realized_file(path, "", expected)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError("engine-unreadable", path, reason, "name an engine's file") from None
    return EngineReport(
        engine=str(path),
        bytes=size,
        counts=found.counts,
        compared_with=model,
        precision=compare(expected, found),
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _meta_beside(path: Path) -> EngineMeta | None:
    """The description beside a file, if it is of a file of that name."""
    try:
        meta = read_meta(path.with_name(META_FILE), EngineMeta)
    except MMCompileError:
        return None
    return meta if meta.engine.name == path.name else None


def _is_inspected(path: Path, meta: EngineMeta) -> bool:
    """Whether the description has the inspector's word of this very engine."""
    return INSPECTOR in meta.precision.realized.source and describe_file(path) == meta.engine


def _expected_beside(path: Path, meta: EngineMeta) -> tuple[tuple[Expected, ...], str]:
    """What the engine's model asks for, and its file; nothing where it is not that one."""
    model = path.with_name(MODEL_FILE)
    try:
        if describe_file(model).sha256 != meta.model_sha256:
            return (), ""
        return expected_by_graph(onnx.load(model, load_external_data=False)), str(model)
    except OSError:
        return (), ""
