"""Calibration inputs from files of arrays: .npz, .npy, polygraphy's JSON, and folders of them.

Files of numpy are read along their first axis, sample by sample: neither a file nor a member of
an archive is ever held whole (except arrays stored in Fortran order). Pickled objects are never
loaded. A JSON file is decoded whole; a folder of one file per iteration, as
`polygraphy run --save-inputs <folder>` writes it, is read file by file.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from mmcompile.data.sample import (
    AnyArray,
    InputSpec,
    Sample,
    Stack,
    count_samples,
    cut,
    cut_feed,
    stack_of,
)
from mmcompile.errors import UsageError

SUFFIXES = (".npz", ".npy", ".json")
"""File kinds that `read_arrays` knows."""


def read_arrays(path: Path, specs: Sequence[InputSpec], rounded: set[str]) -> Iterator[Sample]:
    """Yields the samples of a file or folder.

    Args:
        path: a file with one of `SUFFIXES`, or a folder of such files, read in sorted order.
        specs: the model's inputs.
        rounded: receives what was rounded, see `cut`.

    Raises:
        UsageError: a file cannot be read, or what it holds does not fit the model.
    """
    for file in list_files(path):
        if file.suffix == ".json":
            for index, feed in enumerate(_load_feeds(file)):
                yield from cut_feed(feed, specs, f"{file}, item {index}", rounded)
        else:
            with contextlib.ExitStack() as resources:
                yield from cut(_open_stacks(file, specs, resources), specs, str(file), rounded)


def count_arrays(path: Path, specs: Sequence[InputSpec], limit: int | None) -> int | None:
    """Number of samples by the files' headers, at most `limit`; None where JSON is among them.

    Raises:
        UsageError: a file cannot be read, or its headers do not fit the model.
    """
    total = 0
    for file in list_files(path):
        if file.suffix == ".json":
            return None
        with contextlib.ExitStack() as resources:
            total += count_samples(_open_stacks(file, specs, resources), specs, str(file))
        if limit is not None and total >= limit:
            return limit
    return total


def list_files(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or those of `SUFFIXES` in a folder, sorted.

    Raises:
        UsageError: a folder holds none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        reason = f"the folder holds no {', '.join(SUFFIXES)} file"
        raise UsageError("calibration-empty", path, reason, "give a folder of saved inputs")
    return files


@contextlib.contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turns the many ways in which a broken file fails into the one error that a user sees."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        reason = f"it cannot be read: {error}"
        raise UsageError("calibration-unreadable", place, reason, _SAVE_AGAIN) from error
    except RuntimeError as error:  # zipfile: encrypted, or an unknown compression
        reason = f"it cannot be read: {error}"
        raise UsageError("calibration-unreadable", place, reason, _SAVE_AGAIN) from error


_SAVE_AGAIN = "save it again with numpy.savez or numpy.save, without objects"


def _open_stacks(
    path: Path, specs: Sequence[InputSpec], resources: contextlib.ExitStack
) -> dict[str, Stack]:
    """The arrays of one .npz or .npy file by input name; the files close with `resources`."""
    if path.suffix == ".npy":
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            reason = f"a .npy file holds one array, the model has {len(specs)} inputs ({names})"
            remedy = "give a .npz file with one array per input"
            raise UsageError("calibration-inputs", path, reason, remedy)
        name = specs[0].name
        place = f"{path}, input '{name}'"
        with _reading(place):
            file = resources.enter_context(path.open("rb"))
            return {name: _stack(file, path.stat().st_size, place)}
    stacks = {}
    with _reading(str(path)):
        archive = resources.enter_context(zipfile.ZipFile(path))
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        place = f"{path}, input '{name}'"
        with _reading(place):
            stream = resources.enter_context(archive.open(member))
            stacks[name] = _stack(stream, member.file_size, place)
    return stacks


def _stack(stream: IO[bytes], size: int, place: str) -> Stack:
    """The stack over a stream of numpy's file format that is `size` bytes long.

    Raises:
        ValueError: the header is broken, announces objects, or more bytes than there are.
    """
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of numpy's file format is for structured arrays")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    needed = math.prod(shape) * dtype.itemsize
    present = size - stream.tell()
    if present < needed:
        raise ValueError(f"it is truncated, {present} of {needed} bytes are there")
    order_matters = fortran and len(shape) > 1

    def take(shape: tuple[int, ...]) -> AnyArray:
        with _reading(place):
            return _read_exactly(stream, shape, dtype)

    def whole() -> AnyArray:
        return take(shape[::-1]).T if order_matters else take(shape)

    def rows(count: int) -> Iterator[AnyArray]:
        if order_matters:
            yield from stack_of(whole()).rows(count)
            return
        for _ in range(0, shape[0], count):
            yield take((count, *shape[1:]))

    return Stack(dtype, shape, rows, whole)


def _read_exactly(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """The next elements of a stream as an array of its own."""
    buffer = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    view = buffer.data
    while view:
        # Streams of zip members may hand out less than asked for.
        chunk = stream.read(len(view))
        if not chunk:
            raise EOFError("it ends too early")
        view[: len(chunk)] = chunk
        view = view[len(chunk) :]
    return buffer.view(dtype).reshape(shape)


def _load_feeds(path: Path) -> Sequence[object]:
    """The feeds in a JSON file of polygraphy: a list, a single one, or one runner's results."""
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json
    from polygraphy.logger import G_LOGGER

    remedy = "give what `polygraphy run --save-inputs` writes"
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
            loaded = load_json(str(path))
    except Exception as error:  # whatever a decoder of polygraphy raises, the file is no good
        reason = f"it cannot be read as polygraphy's JSON: {error}"
        raise UsageError("calibration-unreadable", path, reason, remedy) from error
    if isinstance(loaded, RunResults):
        runners = list(loaded.keys())
        if len(runners) != 1:
            reason = f"it holds the results of {len(runners)} runners, which cannot all be inputs"
            raise UsageError("calibration-inputs", path, reason, remedy)
        loaded = list(itertools.chain.from_iterable(loaded.values()))
    feeds: Sequence[object] = loaded if isinstance(loaded, list) else [loaded]
    if not feeds:
        raise UsageError("calibration-empty", path, "it holds no sample", remedy)
    return feeds
