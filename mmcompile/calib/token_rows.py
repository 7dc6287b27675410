"""`TokenRows`: sampled inputs of the linears, on disk, for error feedback.

A Hessian of K² wants some thousand rows of K, for every layer of the model. They do not fit into
memory for all layers together, so they are appended to a file per tensor while the model runs,
and mapped when a layer's turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmcompile.calib.instrument import WatchedTensor
from mmcompile.data.dataset import CalibrationData
from mmcompile.dtypes import F32
from mmcompile.output import disk_errors

DISK_BYTES = 2**32
"""Bytes that the rows of all tensors together may take; large models get fewer rows."""
LEAST_SAMPLED_ROWS = 256
HELD_BACK = 8
"""One row in so many is held back, the last ones: other samples, where there are several."""


@dataclass(frozen=True)
class TokenRows:
    """Sampled rows of tensors, one file each.

    Attributes:
        files: by `WatchedTensor.key`.
        channels: K, likewise.
    """

    files: Mapping[str, Path]
    channels: Mapping[str, int]

    def split(self, key: str) -> tuple[F32, F32]:
        """Rows of a tensor to learn from and rows to judge by, memory-mapped: float32[R, K]."""
        path, channels = self.files[key], self.channels[key]
        rows = path.stat().st_size // (4 * channels)
        if not rows:
            nothing = np.zeros((0, channels), np.float32)
            return nothing, nothing
        mapped: F32 = np.memmap(path, np.float32, "r", shape=(rows, channels))
        seen = rows - rows // HELD_BACK
        return mapped[:seen], mapped[seen:]


class TokenRowWriter:
    """Appends sampled rows to the files of `TokenRows` while the model runs.

    Args:
        watched: the tensors, without repetition.
        data: the samples that the model will run over.
        rows: per tensor, over all samples, about.
        folder: where the files go.

    Attributes:
        watched: as given.
        per_sample: rows of a sample that are kept at most.
        finished: whether all samples have been seen, which whoever ran them says.
        found: what was written.

    Raises:
        EnvironmentProblem: the folder takes no files.
    """

    def __init__(
        self, watched: Sequence[WatchedTensor], data: CalibrationData, rows: int, folder: Path
    ) -> None:
        self.watched = tuple(watched)
        # Reading costs little beside running; of text, nobody knows the number of samples before.
        samples = data.count or sum(1 for _ in data)
        self.per_sample = -(-bounded_rows(watched, rows) // max(1, samples))
        self.finished = False
        files = {tensor.key: folder / f"{index}.f32" for index, tensor in enumerate(watched)}
        self.found = TokenRows(files, {tensor.key: tensor.channels for tensor in watched})
        for path in files.values():
            with disk_errors(path):
                path.touch()

    def add(self, key: str, rows: npt.NDArray[np.floating]) -> None:
        """Appends a sample's rows[R, K] of a tensor.

        Raises:
            EnvironmentProblem: the disk is full.
        """
        path = self.found.files[key]
        with disk_errors(path), path.open("ab") as file:
            file.write(np.ascontiguousarray(rows[: self.per_sample], np.float32).data)


def bounded_rows(watched: Sequence[WatchedTensor], rows: int) -> int:
    """Rows per tensor: as many as asked for, or as `DISK_BYTES` has room for."""
    width = 4 * sum(tensor.channels for tensor in watched)
    return min(rows, max(LEAST_SAMPLED_ROWS, DISK_BYTES // max(1, width)))
