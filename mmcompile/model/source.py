"""`load_model`: reads an ONNX model without its weights, whatever its size.

Weights of more than `INLINE_LIMIT` bytes stay on disk, in external data files or embedded in the
`.onnx` file itself; both look alike afterwards, as external data with location, offset and
length. Weights up to that size are in the skeleton, wherever they were before.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import mmap
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mmcompile.errors import UnsupportedModelError, UsageError
from mmcompile.model.check import check_operators, check_structure
from mmcompile.model.store import WeightStore
from mmcompile.model.tensors import (
    INLINE_LIMIT,
    ModelFolder,
    TensorRef,
    files_changed,
    git_lfs_remedy,
    is_external,
)
from mmcompile.model.walk import tensors_outside_initializers
from mmcompile.model.wire import Split, WireError, split_weights

_MAX_INLINED = 2**30
"""Bytes of external data outside initializers (in subgraphs, attributes) that are read in."""
_PIECE = 2**22
"""Bytes that are read and digested at once."""
_SUMMARIES = {
    "not-onnx": "it is no ONNX model",
    "model-truncated": "it is cut short",
    "model-corrupt": "it is damaged",
    "model-too-large": "it is too large",
}
_REMEDIES = {
    "not-onnx": "give an .onnx file; models of other kinds have to be exported to ONNX first",
    "model-too-large": "save the model with its weights as external data",
}
_FETCH_AGAIN = "copy or download the file again"


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A model as it was given, without its weights.

    Attributes:
        path: the file.
        proto: the skeleton; not to be changed, work on a copy.
        weights: the initializers of the main graph.
        files: all files that the model consists of, its own first.
    """

    path: Path
    proto: onnx.ModelProto
    weights: WeightStore
    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder that external data locations are relative to."""
        return self.path.parent

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the model."""
        return sum(path.stat().st_size for path in self.files)

    def digest(self) -> str:
        """SHA-256 of the sizes of all files of the model and the SHA-256 of their pieces, as hex.

        Computed once, on all cores: one core takes longer over a large model than reading it.

        Raises:
            EnvironmentProblem: a file has gone since the model was loaded.
        """
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        total = hashlib.sha256()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path in self.files:
                try:
                    size = path.stat().st_size
                    total.update(size.to_bytes(8, "little"))
                    starts = range(0, size, _PIECE)
                    for digest in pool.map(functools.partial(_piece_digest, path), starts):
                        total.update(digest)
                except OSError as error:
                    raise files_changed(path) from error
        return total.hexdigest()


def _piece_digest(path: Path, start: int) -> bytes:
    """SHA-256 of up to `_PIECE` bytes of a file."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        return hashlib.sha256(file.read(_PIECE)).digest()


def load_model(path: Path) -> SourceModel:
    """Reads and checks a model; its weights are checked to exist, but not read.

    Args:
        path: an `.onnx` file. If it is a link to a file elsewhere, external data is looked for
            beside the link.

    Raises:
        UsageError: there is no such file.
        UnsupportedModelError: the file is no ONNX model, a damaged one, or one that mmcompile
            does not support.
    """
    file = _regular_file(path)
    split = _split(path, file)
    try:
        proto = onnx.ModelProto.FromString(split.skeleton)
    except (DecodeError, ValueError) as error:
        reason = f"it is damaged: {error}"
        raise UnsupportedModelError("model-corrupt", path, reason, _FETCH_AGAIN) from None
    check_structure(proto, path)
    file = _home(path, file, proto, split)
    folder = ModelFolder(path, file.parent)
    refs = {t.name: folder.ref(t) for t in proto.graph.initializer if is_external(t)}
    for tensor in proto.graph.initializer:
        if is_external(tensor) and refs[tensor.name].nbytes <= INLINE_LIMIT:
            _inline(tensor, refs.pop(tensor.name))
    _inline_others(proto, folder, path)
    check_operators(proto, path)
    inline = {t.name: t for t in proto.graph.initializer if not is_external(t)}
    store = WeightStore(refs, inline, folder.files)
    real = file.resolve()
    others = tuple(data.path for data in folder.files if data.path != real)
    return SourceModel(file, proto, store, (file, *others))


def _regular_file(path: Path) -> Path:
    """The file itself, links resolved."""
    try:
        file = path.resolve(strict=True)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnsupportedModelError("not-onnx", path, f"it is {kind}", "give an .onnx file")
        with file.open("rb"):  # whether it may be read
            pass
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UsageError("model-missing", path, "there is no such file", "check the path") from None
    except (OSError, RuntimeError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        remedy = "check the file's permissions and links"
        raise UnsupportedModelError("model-unreadable", path, cause, remedy) from None
    if not status.st_size:
        raise UnsupportedModelError("not-onnx", path, "it is empty", _FETCH_AGAIN)
    return file


def _split(path: Path, file: Path) -> Split:
    """The skeleton of the file."""
    try:
        file.name.encode()
    except UnicodeEncodeError:
        reason = "the file's name is not valid UTF-8"
        raise UsageError("model-name", repr(str(path)), reason, "rename the file") from None
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            data.madvise(mmap.MADV_RANDOM)
            return split_weights(data, file.name, INLINE_LIMIT)
    except WireError as error:
        reason = f"{_SUMMARIES[error.code]}: {error.reason}"
        remedy = git_lfs_remedy(file) or _REMEDIES.get(error.code, _FETCH_AGAIN)
        raise UnsupportedModelError(error.code, path, reason, remedy) from None


def _home(path: Path, file: Path, proto: onnx.ModelProto, split: Split) -> Path:
    """The model's path in the folder that its external data lies in.

    Args:
        path: the file as it was given.
        file: the same, links resolved.
        proto: the skeleton.
        split: what was cut from the file.
    """
    folder = path.parent.resolve()
    tensors = itertools.chain(proto.graph.initializer, tensors_outside_initializers(proto))
    has_data_files = sum(map(is_external, tensors)) > split.cut
    if folder == file.parent or not has_data_files:
        return file
    if split.cut:
        reason = "it is a link to another folder and has weights both in itself and in data files"
        remedy = "replace the link by the file itself (cp -L)"
        raise UnsupportedModelError("weight-outside", path, reason, remedy)
    return folder / path.name


def _inline_others(proto: onnx.ModelProto, folder: ModelFolder, path: Path) -> None:
    """Reads in external data of tensors that are no initializers of the main graph."""
    total = 0
    for tensor in tensors_outside_initializers(proto):
        if is_external(tensor):
            ref = folder.ref(tensor)
            total += ref.nbytes
            if total > _MAX_INLINED:
                reason = "its subgraphs and attributes hold more than 1 GiB of external data"
                remedy = "export it with those tensors as initializers of the main graph"
                raise UnsupportedModelError("model-too-large", path, reason, remedy)
            _inline(tensor, ref)


def _inline(tensor: onnx.TensorProto, ref: TensorRef) -> None:
    """Replaces a reference by the value."""
    with ref.path.open("rb") as file:
        file.seek(ref.offset)
        tensor.raw_data = file.read(ref.nbytes)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
