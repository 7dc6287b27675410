"""`TensorRef`: where a weight lies on disk, checked before anything reads it.

The descriptions come from a file that may be damaged or hostile. A reference is made only if its
file is a regular file inside the model's folder, its range lies within that file, and its length
is what shape and element type ask for.
"""

from __future__ import annotations

import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mmcompile.errors import EnvironmentProblem, UnsupportedModelError

INLINE_LIMIT = 1024
"""Bytes up to which a weight is part of the graph, as shapes and other small constants are."""
_PACKED_BITS = {
    "INT4": 4,
    "UINT4": 4,
    "FLOAT4E2M1": 4,
    "INT2": 2,
    "UINT2": 2,
    "FLOAT6E2M3": 6,
    "FLOAT6E3M2": 6,
}
"""Element types that are stored in less than a byte each (onnx.proto, `raw_data`)."""
_GIT_LFS = b"version https://git-lfs"
_EXPORT_AGAIN = "save or export the model again"


@dataclass(frozen=True)
class TensorRef:
    """A weight on disk.

    Attributes:
        name: name of the initializer.
        elem_type: an `onnx.TensorProto.DataType`.
        shape: its dimensions.
        path: the file, links resolved.
        offset: first byte in the file; any alignment.
        nbytes: length in bytes, as shape and element type ask for.
    """

    name: str
    elem_type: int
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class DataFile:
    """A file that weights are read from, as it was when the model was loaded."""

    path: Path
    size: int
    mtime_ns: int

    def unchanged(self) -> bool:
        """Whether size and time of modification are still the same."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's value lies outside the message."""
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def shown(text: str, limit: int = 80) -> str:
    """A name from a model as an error message may show it: printable, and not without end."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def is_packed(elem_type: int) -> bool:
    """Whether elements take less than a byte each."""
    return onnx.TensorProto.DataType.Name(elem_type) in _PACKED_BITS


def storage_bytes(elem_type: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor's raw data.

    Raises:
        ValueError: a type without raw data, or a negative dimension.
    """
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape {list(shape)} has a negative dimension")
    try:
        name = onnx.TensorProto.DataType.Name(elem_type)
        if name in _PACKED_BITS:
            return (math.prod(shape) * _PACKED_BITS[name] + 7) // 8
        dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    except (KeyError, ValueError) as error:
        raise ValueError(f"element type {elem_type} is unknown") from error
    if dtype.hasobject:
        raise ValueError(f"element type {name} has no fixed size")
    return math.prod(shape) * dtype.itemsize


class ModelFolder:
    """The folder of one model, and the files in it that its weights refer to.

    Args:
        model: the model's file; names it in errors.
        folder: the folder that `location` entries are relative to, links resolved.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._files: dict[str, DataFile] = {}

    @property
    def files(self) -> tuple[DataFile, ...]:
        """The distinct files that were referred to, in order of first use."""
        return tuple({file.path: file for file in self._files.values()}.values())

    def ref(self, tensor: onnx.TensorProto) -> TensorRef:
        """Checks where an external tensor lies.

        Raises:
            UnsupportedModelError: it lies nowhere, outside the folder, or in too few bytes.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = f"{self._model}, weight '{shown(tensor.name)}'"
        shape = tuple(tensor.dims)
        try:
            needed = storage_bytes(tensor.data_type, shape)
            offset = _count(entries.get("offset", "0"), "offset")
            length = _count(entries["length"], "length") if "length" in entries else needed
        except ValueError as error:
            reason = str(error)
            raise UnsupportedModelError("weight-invalid", where, reason, _EXPORT_AGAIN) from None
        file = self._file(entries.get("location", ""), where)
        if length != needed:
            reason = f"{length} bytes are stored, but its shape {list(shape)} needs {needed}"
            raise UnsupportedModelError("weight-size", where, reason, _EXPORT_AGAIN)
        if offset + needed > file.size:
            reason = (
                f"it should end at byte {offset + needed} of {file.path.name}, "
                f"which has {file.size} bytes"
            )
            remedy = git_lfs_remedy(file.path) or "copy or download the data file again"
            raise UnsupportedModelError("weight-truncated", where, reason, remedy)
        return TensorRef(tensor.name, tensor.data_type, shape, file.path, offset, needed)

    def _file(self, location: str, where: str) -> DataFile:
        """The file at a location, checked once."""
        if location not in self._files:
            self._files[location] = self._checked(location, where)
        return self._files[location]

    def _checked(self, location: str, where: str) -> DataFile:
        if not location or "\0" in location:
            reason = "its external data names no file"
            raise UnsupportedModelError("weight-invalid", where, reason, _EXPORT_AGAIN)
        inside = "put the data file into the model's folder and refer to it by its name"
        if Path(location).is_absolute() or ".." in Path(location).parts:
            reason = f"its data file '{shown(location)}' is not inside the model's folder"
            raise UnsupportedModelError("weight-outside", where, reason, inside)
        try:
            path = (self._folder / location).resolve(strict=True)
            status = path.stat()
        except (OSError, RuntimeError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else error
            reason = f"its data file '{shown(location)}' cannot be read: {cause}"
            remedy = "keep the data file beside the model, under the name it was saved with"
            raise UnsupportedModelError("weight-missing", where, reason, remedy) from None
        if not path.is_relative_to(self._folder):
            reason = f"its data file '{shown(location)}' is a link that leaves the model's folder"
            remedy = "replace the link by the file itself (cp -L)"
            raise UnsupportedModelError("weight-outside", where, reason, remedy)
        if not stat.S_ISREG(status.st_mode):
            reason = f"its data file '{shown(location)}' is not a regular file"
            raise UnsupportedModelError("weight-missing", where, reason, inside)
        return DataFile(path, status.st_size, status.st_mtime_ns)


def git_lfs_remedy(path: Path) -> str:
    """What to do about a file that is only a pointer into git LFS; empty if it is not."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_GIT_LFS))
    except OSError:
        start = b""
    if start == _GIT_LFS:
        return f"{path.name} is a git LFS pointer, fetch the file itself with 'git lfs pull'"
    return ""


def files_changed(path: Path) -> EnvironmentProblem:
    """The error for a file of the model that is not what it was when the model was loaded."""
    reason = "the file was changed or removed after the model was loaded"
    return EnvironmentProblem("model-changed", path, reason, "run mmcompile again")


def _count(text: str, key: str) -> int:
    """A non-negative decimal number of at most 19 digits, as external data writes it."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise ValueError(f"its external data has the {key} '{shown(text, 40)}'")
    return int(text)
