"""`GradientSamples`: what sampled tokens show of the way from a layer's output to the model's.

A sampled token of a layer is a row of its input x and, per random direction v of the model's
output, a row of g = ∂(v·output)/∂y. Rows of one sample are collected by `calib.gradient`; here
they are joined over samples, for every group of layers that read one tensor, within a bounded
number of rows. Groups whose gradients cannot be had are listed with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmcompile.cache import save_arrays
from mmcompile.calib.execution import Execution
from mmcompile.calib.gradient import Draw, GradientRows, collect_gradients, differentiate
from mmcompile.calib.instrument import watched_tensor
from mmcompile.data.dataset import CalibrationData, Sample
from mmcompile.dtypes import F32
from mmcompile.effort import WORK, Effort, Work
from mmcompile.model.sites import SiteGroup

ROWS_VERSION = 1
ROW_BYTES = 2**29
"""Bytes that the rows of all groups together may take; large models get fewer rows."""
ROW_WEIGHTS = 2**34
"""Rows times weights of the model, which the time of measuring damage is proportional to."""
LEAST_GRADIENT_ROWS = 128
LEAST_OPSET = 15
"""`differentiate` reads models from this opset on."""


@dataclass(frozen=True)
class GroupRows:
    """Sampled tokens of one group.

    Attributes:
        activations: float32[R, K].
        gradients: float32[D, R, N], N over all layers of the group in their order.
    """

    activations: F32
    gradients: F32


@dataclass(frozen=True)
class GradientSamples:
    """The sampled tokens of a model's groups.

    Attributes:
        groups: by name of the group.
        missing: why the other groups have none, by name.
    """

    groups: Mapping[str, GroupRows]
    missing: Mapping[str, str]

    def save(self, path: Path) -> None:
        """Writes the rows as .npz (beside, then renamed)."""
        arrays: dict[str, npt.ArrayLike] = {
            "version": np.array(ROWS_VERSION),
            "names": np.array(list(self.groups), np.str_),
            "missing": np.array(list(self.missing.items()), np.str_).reshape(-1, 2),
        }
        for index, rows in enumerate(self.groups.values()):
            arrays[f"{index}.activations"] = rows.activations
            arrays[f"{index}.gradients"] = rows.gradients
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> GradientSamples | None:
        """Reads rows; None where there are none, or the file is damaged or of another version."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                if int(archive["version"]) != ROWS_VERSION:
                    return None
                groups = {
                    name: GroupRows(archive[f"{i}.activations"], archive[f"{i}.gradients"])
                    for i, name in enumerate(archive["names"].tolist())
                }
                return cls(groups, dict(archive["missing"].tolist()))
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return None


def collect_rows(
    execution: Execution,
    groups: Sequence[SiteGroup],
    data: CalibrationData,
    samples: int,
    work: Work = WORK[Effort.BALANCED],
) -> GradientSamples:
    """Sampled tokens of all groups.

    Args:
        execution: how the model is run.
        groups: the layers.
        data: the calibration data; its samples are thinned evenly.
        samples: how many samples the data has.
        work: how many samples, rows and directions are taken.

    Raises:
        UnsupportedModelError: the model cannot run.
        UsageError: the data does not fit the model.
    """
    skeleton = execution.skeleton
    opset = next(o.version for o in skeleton.opset_import if o.domain in ("", "ai.onnx"))
    if opset < LEAST_OPSET:
        reason = f"the model is of opset {opset}, gradients need {LEAST_OPSET}"
        return GradientSamples({}, {group.name: reason for group in groups})
    outputs = [site.output for group in groups for site in group.sites]
    graph = differentiate(skeleton, outputs, [group.input for group in groups])
    missing = {}
    for group in groups:
        reasons = (graph.missing.get(site.output) for site in group.sites)
        if known := next(filter(None, reasons), None):
            missing[group.name] = known
    used = min(samples, work.gradient_samples)
    broken: dict[str, str] = {}
    measured = [group for group in groups if group.name not in missing]
    per_sample = -(-rows_per_group(measured, work) // used)
    found = {group.name: _Rows(group, used * per_sample, work.directions) for group in measured}
    watched = {group.name: watched_tensor(group) for group in measured}
    for rows in collect_gradients(
        execution,
        graph,
        tuple(dict.fromkeys(watched.values())),
        _thinned(data, samples, used),
        Draw(work.directions, per_sample),
    ):
        for group in measured:
            if not found[group.name].add(rows, watched[group.name].key, per_sample):
                broken[group.name] = f"the gradient is NaN or infinite for sample {rows.number}"
    joined = {name: collected.joined() for name, collected in found.items()}
    for name, group_rows in joined.items():
        if not len(group_rows.activations):
            missing[name] = broken.get(name, "no sample showed a token")
    kept = {name: joined[name] for name in joined if name not in missing}
    return GradientSamples(kept, missing)


def rows_per_group(groups: Sequence[SiteGroup], work: Work = WORK[Effort.BALANCED]) -> int:
    """Rows of every group: as asked for, or fewer where all stay below the bounds only so."""
    width = sum(group.in_channels + work.directions * group.out_channels for group in groups)
    weights = sum(group.in_channels * group.out_channels for group in groups)
    bounds = (ROW_BYTES // max(1, 4 * width), ROW_WEIGHTS // max(1, work.directions * weights))
    return max(LEAST_GRADIENT_ROWS, min(work.gradient_rows, *bounds))


def _thinned(data: CalibrationData, samples: int, used: int) -> CalibrationData:
    """`used` samples of the data, evenly spread."""
    every = max(1, samples // used)

    def read() -> Iterator[Sample]:
        yield from itertools.islice(data, 0, every * used, every)

    return dataclasses.replace(data, count=used, read=read)


class _Rows:
    """Rows of one group, sample after sample, in memory that is taken once for all."""

    def __init__(self, group: SiteGroup, limit: int, directions: int) -> None:
        self._outputs = [site.output for site in group.sites]
        self._activations = np.empty((limit, group.in_channels), np.float32)
        self._gradients = np.empty((directions, limit, group.out_channels), np.float32)
        self._filled = 0

    def add(self, rows: GradientRows, key: str, limit: int) -> bool:
        """Appends a sample's rows; False where one of its gradients is not finite."""
        if not all(output in rows.gradients for output in self._outputs):
            return False
        # Tensors without a row per token come in full.
        activations = rows.activations[key][:limit]
        part = slice(self._filled, self._filled + len(activations))
        self._activations[part] = activations
        parts = [rows.gradients[output][:, :limit] for output in self._outputs]
        np.concatenate(parts, axis=2, out=self._gradients[:, part], casting="same_kind")
        self._filled = part.stop
        return True

    def joined(self) -> GroupRows:
        """All of them."""
        return GroupRows(self._activations[: self._filled], self._gradients[:, : self._filled])
