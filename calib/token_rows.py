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
import onnx

from mmcompile.calib.collect import row_keys, run_sample, token_mask
from mmcompile.calib.data import CalibrationData, InputSpec, trim_padding
from mmcompile.calib.instrument import (
    ROW_KEYS,
    TOKEN_MASK,
    WatchedTensor,
    instrument,
    output_name,
)
from mmcompile.graph import SourceModel
from mmcompile.output import disk_errors
from mmcompile.progress import Progress
from mmcompile.session import open_session

DISK_BYTES = 2**32
"""Bytes that the rows of all tensors together may take; large models get fewer rows."""
LEAST_ROWS = 256
HELD_BACK = 8
"""One row in so many is held back, the last ones: other samples, where there are several."""

F32 = npt.NDArray[np.float32]


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


def collect_token_rows(
    source: SourceModel,
    skeleton: onnx.ModelProto,
    watched: Sequence[WatchedTensor],
    data: CalibrationData,
    specs: Sequence[InputSpec],
    rows: int,
    folder: Path,
    progress: Progress,
    seed: int = 0,
) -> TokenRows:
    """Runs the model over the data and keeps rows of the watched tensors.

    Args:
        source: where the weights lie.
        skeleton: the graph to run.
        watched: the tensors, without repetition.
        data: the samples.
        specs: the model's inputs.
        rows: per tensor, over all samples, about.
        folder: where the files go.
        progress: told after every sample.
        seed: of the choice of rows.

    Raises:
        UnsupportedModelError: the model cannot run.
        UsageError: the data does not fit the model.
        EnvironmentProblem: the disk is full.
    """
    files = {tensor.key: folder / f"{index}.f32" for index, tensor in enumerate(watched)}
    for path in files.values():
        with disk_errors(path):
            path.touch()
    found = TokenRows(files, {tensor.key: tensor.channels for tensor in watched})
    if not watched:
        return found
    # Reading costs little beside running; of text, nobody knows the number of samples before.
    samples = data.count or sum(1 for _ in data)
    per_sample = -(-bounded_rows(watched, rows) // max(1, samples))
    session = open_session(
        instrument(skeleton, watched, (), per_sample, statistics=("rows",)), source.folder
    )
    names = [output_name(tensor.key, "rows") for tensor in watched]
    for number, sample in enumerate(progress.track(data, "sampling inputs", samples)):
        trimmed = trim_padding(sample, specs)
        mask = token_mask(trimmed)
        if not mask.any():
            continue
        feed = {**trimmed, TOKEN_MASK: mask, ROW_KEYS: row_keys(trimmed, seed)}
        values = run_sample(session, names, feed, number)
        for path, value in zip(files.values(), values, strict=True):
            with disk_errors(path), path.open("ab") as file:
                file.write(np.ascontiguousarray(value, np.float32).data)
    return found


def bounded_rows(watched: Sequence[WatchedTensor], rows: int) -> int:
    """Rows per tensor: as many as asked for, or as `DISK_BYTES` has room for."""
    width = 4 * sum(tensor.channels for tensor in watched)
    return min(rows, max(LEAST_ROWS, DISK_BYTES // width))
