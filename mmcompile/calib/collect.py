"""Runs an instrumented model over calibration data in ONNX Runtime.

One run over the data gives the statistics, merged, and the rows for error feedback besides, where
these are wanted; where the statistics are known, another gives the rows alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort

from mmcompile.calib.execution import Execution
from mmcompile.calib.instrument import (
    OUTPUTS,
    ROW_KEYS,
    TOKEN_MASK,
    WatchedTensor,
    instrument,
    output_name,
)
from mmcompile.calib.stats import ActivationStats, TensorStats, merge
from mmcompile.calib.token_rows import TokenRowWriter
from mmcompile.data.dataset import CalibrationData, Sample, trim_padding
from mmcompile.errors import EnvironmentProblem, UnsupportedModelError, UsageError
from mmcompile.model.session import first_line

ROWS_PER_SAMPLE = 32
ROW_LIMIT = 256
"""Token rows kept per tensor: enough to rank layers by error, small against any weight."""


def collect(
    execution: Execution,
    watched: Sequence[WatchedTensor],
    data: CalibrationData,
    ratios: Sequence[float],
    writer: TokenRowWriter | None = None,
) -> ActivationStats:
    """Statistics of the watched tensors over all samples of the data.

    Args:
        execution: how the model is run.
        watched: the tensors to measure.
        data: the samples; each is one run and counts as one sample.
        ratios: thresholds whose exceedances are counted, relative to each token's max |x|.
        writer: takes rows of the same tensors besides, and is finished.

    Raises:
        UnsupportedModelError: the model cannot run, or an activation is NaN or infinite.
        UsageError: the data does not fit the model, or holds no real token.
        EnvironmentProblem: the disk that rows are written to is full.
    """
    if not watched:
        return ActivationStats({}, data.description, data.fit, masked_tokens=0)
    per_sample = max(ROWS_PER_SAMPLE, writer.per_sample if writer else 0)
    skeleton = execution.skeleton
    session = execution.session(instrument(skeleton, watched, ratios, per_sample))
    names = [output_name(tensor.key, field) for tensor in watched for field in OUTPUTS]
    merged: dict[str, TensorStats] = {}
    masked = 0
    tracked = execution.progress.track(data, "calibrating", data.count)
    for number, sample in enumerate(tracked):
        trimmed = trim_padding(sample, execution.specs)
        mask = token_mask(trimmed)
        masked += _tokens(sample) - int(mask.sum())
        if not mask.any():
            continue
        values = iter(run_sample(session, names, _feed(trimmed, mask, execution.seed), number))
        for tensor in watched:
            fields = dict(zip(OUTPUTS, values, strict=False))
            stats = _tensor_stats(fields, ratios)
            _check_finite(stats, tensor.name, skeleton, number)
            if writer is not None:
                writer.add(tensor.key, fields["rows"])
            before = merged.get(tensor.key)
            merged[tensor.key] = merge(before, stats, ROW_LIMIT) if before else stats
    if not merged:
        raise UsageError(
            "no-samples",
            data.description,
            "calibration saw no sample with a token that is not padding",
            "give data with at least one",
        )
    if writer is not None:
        writer.finished = True
    return ActivationStats(merged, data.description, data.fit, masked)


def collect_token_rows(execution: Execution, data: CalibrationData, writer: TokenRowWriter) -> None:
    """Runs the model over the data for rows of the writer's tensors, and finishes the writer.

    Raises:
        UnsupportedModelError: the model cannot run.
        UsageError: the data does not fit the model.
        EnvironmentProblem: the disk is full.
    """
    if writer.watched:
        instrumented = instrument(
            execution.skeleton, writer.watched, (), writer.per_sample, statistics=("rows",)
        )
        session = execution.session(instrumented)
        names = [output_name(tensor.key, "rows") for tensor in writer.watched]
        tracked = execution.progress.track(data, "sampling inputs", data.count)
        for number, sample in enumerate(tracked):
            trimmed = trim_padding(sample, execution.specs)
            mask = token_mask(trimmed)
            if not mask.any():
                continue
            values = run_sample(session, names, _feed(trimmed, mask, execution.seed), number)
            for tensor, rows in zip(writer.watched, values, strict=True):
                writer.add(tensor.key, rows)
    writer.finished = True


def _feed(sample: Sample, mask: np.ndarray, seed: int) -> Sample:
    """The inputs of an instrumented model."""
    return {**sample, TOKEN_MASK: mask, ROW_KEYS: row_keys(sample, seed)}


def token_mask(sample: Sample) -> np.ndarray:
    """bool[tokens] of the sample's real tokens, in the order of its flattened ids."""
    mask = sample.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        real: np.ndarray = mask.reshape(-1) != 0
        return real
    return np.ones(_tokens(sample), bool)


def row_keys(sample: Sample, seed: int) -> np.ndarray:
    """float32[4099] random keys that depend on the sample's content, not on its place.

    So shards sample rows independently, and the same data in another order the same rows.
    """
    content = 0
    for name in sorted(sample):
        content = zlib.crc32(np.ascontiguousarray(sample[name]).tobytes(), content)
    return np.random.default_rng([seed & 0xFFFFFFFF, content]).random(4099, dtype=np.float32)


def _tokens(sample: Mapping[str, np.ndarray]) -> int:
    ids = sample.get("attention_mask", sample.get("input_ids"))
    if ids is not None and ids.ndim == 2:
        return int(ids.size)
    return 1


def run_sample(
    session: ort.InferenceSession, names: list[str], feed: Sample, number: int
) -> Iterable[np.ndarray]:
    """The outputs of one run.

    Raises:
        UsageError: ONNX Runtime rejects the sample.
        EnvironmentProblem: it ran out of memory.
    """
    try:
        return session.run(names, feed)  # type: ignore[no-any-return]
    except Exception as error:  # the runtime raises its own unrelated classes
        text = first_line(error)
        if "alloc" in text.lower():
            raise EnvironmentProblem(
                "out-of-memory",
                f"sample {number}",
                "ONNX Runtime ran out of memory while calibrating",
                "give shorter samples, or close other programs",
            ) from error
        raise UsageError(
            "sample-rejected",
            f"sample {number}",
            f"ONNX Runtime rejected it: {text}",
            "check the sample's shapes and values against the model's inputs",
        ) from error


def _tensor_stats(fields: Mapping[str, np.ndarray], ratios: Sequence[float]) -> TensorStats:
    tokens = int(fields["tokens"][0])
    abs_sum = fields["abs_sum"].astype(np.float64)
    return TensorStats(
        samples=1,
        tokens=tokens,
        mean_abs=abs_sum / max(1, tokens),
        abs_sum=abs_sum,
        abs_max=fields["abs_max"] if tokens else np.zeros_like(fields["abs_max"]),
        square_sum=fields["square_sum"].astype(np.float64),
        ratios=tuple(ratios),
        exceed=fields["exceed"],
        rows=fields["rows"][:ROWS_PER_SAMPLE],
        row_keys=fields["row_keys"][:ROWS_PER_SAMPLE].astype(np.float64),
    )


def _check_finite(stats: TensorStats, name: str, model: onnx.ModelProto, number: int) -> None:
    if np.isfinite(stats.abs_sum).all() and np.isfinite(stats.abs_max).all():
        return
    producer = next((n for n in model.graph.node if name in n.output), None)
    where = f"node {producer.name} ({producer.op_type})" if producer else f"input {name}"
    bad = np.flatnonzero(~np.isfinite(stats.abs_sum) | ~np.isfinite(stats.abs_max))
    raise UnsupportedModelError(
        "activation-not-finite",
        where,
        f"its output {name} is NaN or infinite in channel {bad[0]} for sample {number}",
        "check the model and the sample; such a layer cannot be calibrated",
    )
