"""Second stage: what a policy needs to know of a model, from the cache or from runs over data."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmcompile.cache import cache_folder, cache_key
from mmcompile.calib import gradient_rows
from mmcompile.calib.collect import ROW_LIMIT, ROWS_PER_SAMPLE, collect
from mmcompile.calib.gradient_rows import GradientSamples, collect_rows
from mmcompile.calib.instrument import WatchedTensor, watched_tensor
from mmcompile.calib.stats import STATS_VERSION, ActivationStats, TensorStats
from mmcompile.calib.token_rows import TokenRowWriter
from mmcompile.data.dataset import CalibrationData
from mmcompile.effort import WORK
from mmcompile.errors import UsageError
from mmcompile.pipeline.run import Run
from mmcompile.policy.protocol import Evidence, Needs, Policy


@dataclass(frozen=True)
class Gathered:
    """What was learnt of a model.

    Attributes:
        evidence: what policies plan from.
        stats: the statistics; None where none were taken.
        cached: whether they came from the cache.
    """

    evidence: Evidence
    stats: ActivationStats | None
    cached: bool


def gather(run: Run, policy: Policy, writer: TokenRowWriter | None = None) -> Gathered:
    """What a policy needs to know, of the run's calibration data.

    Without data, statistics are taken of nothing where the policy needs none.

    Args:
        run: the model and the data.
        policy: says what it needs.
        writer: takes rows for error feedback while the model runs.

    Raises:
        UsageError: the policy needs data, and there is none.
    """
    data = run.inputs.calibration
    if data is None and policy.needs is Needs.NOTHING:
        stats = unseen(run, f"none was given; {policy.name} decides without data")
        return Gathered(evidence_of(run, stats), None, cached=False)
    with run.watch.stage("calibrate"):
        stats, cached = calibrated(run, data, policy.ratios, writer)
    if policy.needs < Needs.GRADIENTS:
        return Gathered(evidence_of(run, stats), stats, cached)
    assert data is not None  # as `calibrated` has refused
    with run.watch.stage("plan"):
        gradients = sensed(run, data, stats.samples)
    return Gathered(evidence_of(run, stats, gradients), stats, cached)


def evidence_of(
    run: Run, stats: ActivationStats, gradients: GradientSamples | None = None
) -> Evidence:
    """The run's model with what is known of it."""
    prepared = run.prepared
    return Evidence(
        groups=prepared.groups,
        source=prepared.source,
        left_alone=prepared.left_alone,
        target=run.target,
        stats=stats,
        gradients=gradients,
        thorough=WORK[run.effort].is_thorough(prepared.groups),
        progress=run.progress,
    )


def calibrated(
    run: Run,
    data: CalibrationData | None,
    ratios: tuple[float, ...],
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
    prepared, execution = run.prepared, run.execution
    watched = tuple(dict.fromkeys(map(watched_tensor, prepared.groups)))
    key = cache_key(
        STATS_VERSION,
        ROW_LIMIT,
        ROWS_PER_SAMPLE,
        prepared.source.digest(),
        data.digest(),
        watched,
        ratios,
        execution.seed,
    )
    path = cache_folder() / "calibration" / f"{key}.npz"
    found = _cached(path, watched)
    if found is not None:
        # The same samples may have come from another file, or may have been random by another name.
        return dataclasses.replace(found, description=data.description, fit=data.fit), True
    stats = collect(execution, watched, data, ratios, writer)
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


def sensed(run: Run, data: CalibrationData, samples: int) -> GradientSamples:
    """Sampled gradients of all groups, from the cache or from runs of the model.

    Args:
        run: the model, and how many rows and directions are taken.
        data: the calibration data.
        samples: how many samples it has.
    """
    prepared, work = run.prepared, WORK[run.effort]
    if not prepared.groups:
        return GradientSamples({}, {})
    key = cache_key(
        gradient_rows.ROWS_VERSION,
        gradient_rows.ROW_BYTES,
        gradient_rows.ROW_WEIGHTS,
        (work.gradient_samples, work.gradient_rows, work.directions),
        prepared.source.digest(),
        data.digest(),
        [(group.name, [site.output for site in group.sites]) for group in prepared.groups],
        run.execution.seed,
    )
    path = cache_folder() / "gradients" / f"{key}.npz"
    found = GradientSamples.load(path)
    if found is not None:
        return found
    found = collect_rows(run.execution, prepared.groups, data, samples, work)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return found


def unseen(run: Run, description: str) -> ActivationStats:
    """Statistics of no sample, for policies that need none."""
    watched = map(watched_tensor, run.prepared.groups)
    tensors = {tensor.key: _nothing_seen(tensor) for tensor in watched}
    return ActivationStats(tensors, description, fit=True, masked_tokens=0)


def _nothing_seen(tensor: WatchedTensor) -> TensorStats:
    zeros = np.zeros(tensor.channels)
    return TensorStats(
        samples=0,
        tokens=0,
        mean_abs=zeros,
        abs_sum=zeros,
        abs_max=zeros.astype(np.float32),
        square_sum=zeros,
        ratios=(),
        exceed=np.zeros(0, np.int64),
        rows=np.zeros((0, tensor.channels), np.float32),
        row_keys=np.zeros(0),
    )
