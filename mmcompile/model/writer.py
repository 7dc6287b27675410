"""`ModelWriter`: writes a model and its weights, one weight at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from mmcompile.errors import MMCompileError, UnsupportedModelError
from mmcompile.model.tensors import (
    INLINE_LIMIT,
    TensorRef,
    files_changed,
    is_external,
    shown,
    storage_bytes,
)
from mmcompile.model.walk import tensors_outside_initializers
from mmcompile.model.wire import external_entries
from mmcompile.output import DATA_FILE, MODEL_FILE, disk_errors

_CHUNK = 8 * 2**20
_PAGE, _CACHE_LINE = 4096, 64
_PAGE_ALIGNED_FROM = 2**20
"""Weights from this size on start at a page, so that a runtime can map them as they are."""
_NO_COPY_RANGE = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True)
class _Written:
    """Where a weight went: a range of the data file, or `inline` where it is a small one."""

    offset: int
    length: int
    inline: bytes | None = None


class ModelWriter:
    """Context manager that writes `model.onnx` and `model.onnx.data` into a folder.

    Weights are added first, in any order, by one thread; `finish` then writes the graph that
    refers to them. Weights of up to 1 KiB go into the graph. The folder is meant to be that of a
    `StagedOutput`, which removes the files if something fails.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data_path = folder / DATA_FILE
        self._written: dict[str, _Written] = {}
        self._end = 0
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Makes the data file.

        Raises:
            EnvironmentProblem: the folder cannot be written to.
        """
        with disk_errors(self._data_path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._descriptor = os.open(self._data_path, flags, 0o666)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the data file."""
        self._close()

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Writes a weight: the array's elements in C order, as its raw data is to be.

        Types of less than a byte per element are given packed, as uint8. Arrays of any strides
        will do; they are made contiguous by pieces.

        Raises:
            EnvironmentProblem: the disk is full or fails.
        """
        self.add_pieces(name, array.nbytes, _pieces(array) if array.size else ())

    def add_pieces(self, name: str, nbytes: int, pieces: Iterable[npt.NDArray[Any]]) -> None:
        """Writes a weight that is never whole in memory: contiguous pieces, in C order.

        Raises:
            MMCompileError: the pieces have another length than was announced: a bug in a pass.
            EnvironmentProblem: the disk is full or fails.
        """
        inline = bytearray()
        written = _Written(0, nbytes) if nbytes <= INLINE_LIMIT else self._place(nbytes)
        done = 0
        for piece in pieces:
            plain = _little_endian(piece).reshape(-1).view(np.uint8)
            if nbytes <= INLINE_LIMIT:
                inline += plain.data
            elif done + plain.nbytes <= nbytes:
                with disk_errors(self._data_path):
                    self._write(plain.data, written.offset + done)
            done += plain.nbytes
        if done != nbytes:
            raise _mismatch(name, f"{done} bytes were given, {nbytes} announced")
        if nbytes <= INLINE_LIMIT:
            written = dataclasses.replace(written, inline=bytes(inline))
        self._note(name, written)

    def copy(self, ref: TensorRef) -> None:
        """Copies a weight of the source model, under its name, without loading it.

        Raises:
            EnvironmentProblem: the disk is full or fails, or the source file has changed.
        """
        try:
            source = os.open(ref.path, os.O_RDONLY)
        except OSError as error:
            raise files_changed(ref.path) from error
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, source)
            if ref.nbytes <= INLINE_LIMIT:
                data = os.pread(source, ref.nbytes, ref.offset)
                if len(data) < ref.nbytes:
                    raise files_changed(ref.path)
                self._note(ref.name, _Written(0, ref.nbytes, data))
                return
            written = self._place(ref.nbytes)
            with disk_errors(self._data_path):
                done = _copy_range(source, ref.offset, self._descriptor, written.offset, ref.nbytes)
                while done < ref.nbytes:
                    piece = os.pread(source, min(_CHUNK, ref.nbytes - done), ref.offset + done)
                    if not piece:
                        raise files_changed(ref.path)
                    self._write(memoryview(piece), written.offset + done)
                    done += len(piece)
        self._note(ref.name, written)

    def finish(self, proto: onnx.ModelProto) -> Path:
        """Writes the graph; every weight in it is inline or one that was added or copied.

        Args:
            proto: the model. The values of its initializers that were added or copied are
                replaced by references, in place.

        Returns:
            The model's file.

        Raises:
            MMCompileError: weights and initializers do not match: a bug in a pass.
            UnsupportedModelError: the graph alone is larger than 2 GiB.
            EnvironmentProblem: the disk is full or fails.
        """
        missing = set(self._written)
        for tensor in proto.graph.initializer:
            if tensor.name in self._written:
                self._refer(tensor)
                missing.discard(tensor.name)
            elif is_external(tensor):
                raise _mismatch(tensor.name, "its value was never written")
        for tensor in tensors_outside_initializers(proto):
            if is_external(tensor):
                raise _mismatch(tensor.name, "it is no initializer, but refers to another file")
        if missing:
            raise _mismatch(min(missing), "it was written, but no initializer has its name")
        path = self._folder / MODEL_FILE
        try:
            graph = proto.SerializeToString(deterministic=True)
        except (ValueError, EncodeError) as error:
            reason = f"the graph without its weights cannot be saved: {error}"
            remedy = "export the model with its large constants as initializers"
            raise UnsupportedModelError("model-too-large", path, reason, remedy) from error
        with disk_errors(path):
            path.write_bytes(graph)
            self._close()
            if not self._end:
                self._data_path.unlink()
        return path

    def _refer(self, tensor: onnx.TensorProto) -> None:
        """Makes an initializer refer to what was written under its name."""
        written = self._written[tensor.name]
        try:
            needed = storage_bytes(tensor.data_type, tuple(tensor.dims))
        except ValueError as error:
            raise _mismatch(tensor.name, str(error)) from error
        if needed != written.length:
            shape = list(tensor.dims)
            reason = f"{written.length} bytes were written, its shape {shape} needs {needed}"
            raise _mismatch(tensor.name, reason)
        bare = onnx.TensorProto(
            name=tensor.name,
            data_type=tensor.data_type,
            dims=tensor.dims,
            doc_string=tensor.doc_string,
            metadata_props=tensor.metadata_props,
        )
        if written.inline is not None:
            bare.raw_data = written.inline
        else:
            bare.data_location = onnx.TensorProto.EXTERNAL
            for key, value in external_entries(DATA_FILE, written.offset, written.length):
                bare.external_data.add(key=key, value=value)
        tensor.CopyFrom(bare)

    def _place(self, length: int) -> _Written:
        """The next free range of the data file; the gap before it reads as zeros."""
        alignment = _PAGE if length >= _PAGE_ALIGNED_FROM else _CACHE_LINE
        offset = -(-self._end // alignment) * alignment
        self._end = offset + length
        return _Written(offset, length)

    def _note(self, name: str, written: _Written) -> None:
        if name in self._written:
            raise _mismatch(name, "it was written twice")
        self._written[name] = written

    def _write(self, data: memoryview, position: int) -> None:
        while data:
            count = os.pwrite(self._descriptor, data, position)
            data = data[count:]
            position += count

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with disk_errors(self._data_path):
                os.close(descriptor)


def _pieces(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The array in C order, in contiguous pieces; contiguous arrays are not copied."""
    if array.flags.c_contiguous:
        yield array
        return
    rows = max(1, _CHUNK // (array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])


def _little_endian(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("<")) if array.dtype.byteorder == ">" else array


def _copy_range(source: int, start: int, target: int, position: int, length: int) -> int:
    """Copies within the kernel; returns the bytes copied, fewer where that is not supported."""
    done = 0
    while hasattr(os, "copy_file_range") and done < length:
        try:
            count = os.copy_file_range(source, target, length - done, start + done, position + done)
        except OSError as error:
            if error.errno in _NO_COPY_RANGE:
                break
            raise
        if not count:
            break
        done += count
    return done


def _mismatch(name: str, reason: str) -> MMCompileError:
    remedy = "this is a bug in mmcompile, please report it"
    return MMCompileError("weights-mismatch", f"weight '{shown(name)}'", reason, remedy)
