"""Second stage: statistics of the linears' inputs, from the cache or from a calibration run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from mmcompile.cache import cache_folder, cache_key
from mmcompile.calib.collect import ROW_LIMIT, ROWS_PER_SAMPLE, collect
from mmcompile.calib.instrument import WatchedTensor
from mmcompile.calib.stats import STATS_VERSION, ActivationStats
from mmcompile.calib.token_rows import TokenRowWriter
from mmcompile.data.dataset import CalibrationData, hold_back, open_data
from mmcompile.errors import UsageError
from mmcompile.pipeline.options import DataOptions
from mmcompile.pipeline.prepare import Prepared, input_specs
from mmcompile.policy.options import watched_tensor
from mmcompile.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """The data of a run.

    Attributes:
        calibration: what statistics are taken from; None where a plan replaces them.
        held_back: what verification uses; None where there is none.
        disjoint: False where verification has to use what calibration saw.
    """

    calibration: CalibrationData | None
    held_back: CalibrationData | None
    disjoint: bool


def open_inputs(prepared: Prepared, options: DataOptions, *, hold_back_some: bool = True) -> Inputs:
    """Opens calibration and verification data and keeps them apart.

    Args:
        prepared: the model.
        options: the data.
        hold_back_some: without data for verification, keep part of the calibration data for it.
    """
    if options.calibration is None and options.verification is None:
        return Inputs(None, None, disjoint=True)
    specs = input_specs(prepared.runnable)

    def opened(source: object) -> CalibrationData:
        data = open_data(
            source,  # type: ignore[arg-type]
            specs,
            limit=options.samples,
            seed=options.seed,
            max_length=options.max_length,
            tokenizer=options.tokenizer,
            chunk=options.chunk,
        )
        text = os.fsencode(data.description).decode("utf-8", "replace")
        return dataclasses.replace(data, description=text)  # for the plan, which is UTF-8

    if options.verification is not None:
        held = opened(options.verification)
        seen = None if options.calibration is None else opened(options.calibration)
        return Inputs(seen, held, disjoint=True)
    data = opened(options.calibration)
    if not hold_back_some:
        return Inputs(data, None, disjoint=True)
    seen, held_back = hold_back(data, options.hold_back)
    if held_back is None:
        return Inputs(data, data, disjoint=False)
    return Inputs(seen, held_back, disjoint=True)


def calibrated(
    prepared: Prepared,
    data: CalibrationData | None,
    ratios: tuple[float, ...],
    seed: int,
    progress: Progress,
    writer: TokenRowWriter | None = None,
) -> tuple[ActivationStats, bool]:
    """The statistics, and whether they came from the cache.

    The cache key is the content: the model's bytes, the samples, the watched tensors and the
    thresholds. A damaged entry is computed anew; a cache that cannot be used costs time only.
    A `writer` of rows is finished where the model was run.

    Raises:
        UsageError: there is no data.
    """
    if data is None:
        raise UsageError(
            "no-calibration-data",
            "--calib",
            "no calibration data and no plan was given",
            "give --calib with real inputs, --plan with an earlier plan, or --calib random to try "
            "the tool without data",
        )
    watched = tuple(dict.fromkeys(map(watched_tensor, prepared.groups)))
    key = cache_key(
        STATS_VERSION,
        ROW_LIMIT,
        ROWS_PER_SAMPLE,
        prepared.source.digest(),
        data.digest(),
        watched,
        ratios,
        seed,
    )
    path = cache_folder() / "calibration" / f"{key}.npz"
    found = _cached(path, watched)
    if found is not None:
        # The same samples may have come from another file, or may have been random by another name.
        return dataclasses.replace(found, description=data.description, fit=data.fit), True
    stats = collect(
        prepared.source,
        prepared.runnable,
        watched,
        data,
        input_specs(prepared.runnable),
        ratios,
        progress,
        seed,
        writer,
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        stats.save(path)
    return stats, False


def _cached(path: Path, watched: tuple[WatchedTensor, ...]) -> ActivationStats | None:
    """A cache entry, or None where there is no usable one."""
    with contextlib.suppress(OSError, UsageError):
        if path.exists():
            stats = ActivationStats.load(path)
            if stats.tensors.keys() == {tensor.key for tensor in watched}:
                return stats
    return None
