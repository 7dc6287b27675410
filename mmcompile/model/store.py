"""`WeightStore`: the weights of a model, mapped into memory when they are read, never loaded."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.tensors import DataFile, TensorRef, files_changed, is_packed, shown

AnyArray = npt.NDArray[Any]


class WeightStore:
    """Read access to the initializers of a model's main graph; safe to use from several threads.

    Args:
        refs: the initializers on disk, by name.
        inline: the small initializers, by name.
        files: the files that `refs` refer to, as they were when they were checked.
    """

    def __init__(
        self,
        refs: Mapping[str, TensorRef],
        inline: Mapping[str, onnx.TensorProto],
        files: tuple[DataFile, ...],
    ) -> None:
        self._refs = dict(refs)
        self._inline = dict(inline)
        self._files = {file.path: file for file in files}
        self._mappings: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all initializers: those on disk, then the small ones."""
        return (*self._refs, *self._inline)

    def ref(self, name: str) -> TensorRef | None:
        """Where an initializer lies on disk; None for a small or unknown one."""
        return self._refs.get(name)

    def read(self, name: str) -> AnyArray:
        """The value of an initializer as a read-only array.

        Nothing is copied for initializers on disk whose elements are whole bytes: pages are read
        as they are touched, and given back when the array and all its views are gone. Such an
        array may be unaligned (`array.flags.aligned`). Elements of less than a byte are unpacked.

        Raises:
            KeyError: there is no initializer of that name.
            UnsupportedModelError: its value does not fit its type and shape.
            EnvironmentProblem: its file has changed since the model was loaded.
        """
        ref = self._refs.get(name)
        if ref is None:
            return _decode(self._inline[name])
        if ref.nbytes == 0:
            return _decode(onnx.TensorProto(name=name, data_type=ref.elem_type, dims=ref.shape))
        mapping = self._mapping(ref.path)
        if is_packed(ref.elem_type):
            return _decode(
                onnx.TensorProto(
                    name=name,
                    data_type=ref.elem_type,
                    dims=ref.shape,
                    raw_data=mapping[ref.offset : ref.offset + ref.nbytes],
                )
            )
        return _view(mapping, ref.elem_type, ref.offset, ref.nbytes).reshape(ref.shape)

    def pieces(self, name: str, elements: int) -> Iterator[AnyArray]:
        """The value of an initializer, flat and piece by piece; memory holds one piece.

        Args:
            name: the initializer.
            elements: of a piece; the last one may have fewer.

        Raises:
            KeyError: there is no initializer of that name.
            UnsupportedModelError: its value does not fit its type and shape.
            EnvironmentProblem: its file has changed since the model was loaded.
        """
        ref = self._refs.get(name)
        if ref is None or is_packed(ref.elem_type):
            yield self.read(name).reshape(-1)
            return
        mapping = self._mapping(ref.path)
        step = elements * onnx.helper.tensor_dtype_to_np_dtype(ref.elem_type).itemsize
        for start in range(0, ref.nbytes, step):
            length = min(step, ref.nbytes - start)
            yield _view(mapping, ref.elem_type, ref.offset + start, length)

    def _mapping(self, path: Path) -> mmap.mmap:
        """The file's mapping, made at its first use."""
        with self._lock:
            if not self._files[path].unchanged():
                # Reading behind the end of a mapped file that has shrunk would kill the process.
                raise files_changed(path)
            if path not in self._mappings:
                with path.open("rb") as file:
                    self._mappings[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._mappings[path]


def _view(mapping: mmap.mmap, elem_type: int, offset: int, nbytes: int) -> AnyArray:
    """A range of a mapped file as a flat read-only array."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    flat = np.frombuffer(mapping, dtype, nbytes // dtype.itemsize, offset)
    # `flat` is the base of every view of it, so it lives as long as the last of them. Its pages
    # are then dropped from memory; a later read faults them in from the file again.
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    length = offset + nbytes - start
    weakref.finalize(flat, mapping.madvise, mmap.MADV_DONTNEED, start, length).atexit = False
    return flat


def _decode(tensor: onnx.TensorProto) -> AnyArray:
    """A tensor that holds its value, as a read-only array."""
    try:
        array: AnyArray = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"its value does not fit its type and shape: {error}"
        where = f"weight '{shown(tensor.name)}'"
        raise UnsupportedModelError("weight-invalid", where, reason, "export it again") from error
    array.flags.writeable = False
    return array
