"""The report's data types, and how they are written to and read from `report.json`.

A field that is None was not measured. Every figure carries its unit in its name; plain counts
and ratios have none. docs/report.md documents every field.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.documents import Document
from mmcompile.errors import UsageError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.output import disk_errors
from mmcompile.plan import LeftAlone, Segment

REPORT_VERSION = 1
EXACT_DB = 200.0
"""Signal-to-noise ratios are stored within ±200 dB: two equal tensors have 200 (JSON has no
infinity, and float32 rounding alone already limits every other figure to about 150)."""
PROFILE_POINTS = 512
"""Most points of a layer's channel profile."""

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the report's types: makes every figure one that JSON can hold.

    A NaN becomes None, an infinite decibel figure becomes ±`EXACT_DB`, any other infinity None.
    So a model that answers NaN still gets its report, and what was written reads back equal.
    """

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, float):
                msgspec.structs.force_setattr(self, field, _storable(float(value), field))


class ModelInfo(_Record, frozen=True):
    """The model that was compiled.

    Attributes:
        path: the model file as it was given.
        bytes_before: size of the original, external data included.
        bytes_after: size of the rewritten model, external data included.
        bytes_fp16: size of the original with two bytes per weight; None in older reports.
        parameters: number of elements in the original's initializers.
        opset: version of the default ONNX operator set.
        dtype: type of the rewritten layers, e.g. `float32`.
        estimated: True where `bytes_after` follows from the plan because nothing was written.
    """

    path: str
    bytes_before: int
    bytes_after: int
    parameters: int
    opset: int
    dtype: str
    estimated: bool = False
    bytes_fp16: int | None = None


class Island(_Record, frozen=True):
    """Nodes that stay in float32 for one reason.

    Attributes:
        code: short name of the reason.
        reason: the reason in words.
        nodes: number of nodes.
    """

    code: str
    reason: str
    nodes: int


class RestInfo(_Record, frozen=True):
    """What became of all but the rewritten layers.

    Attributes:
        dtype: type that most of it computes in, e.g. `float16`.
        reason: why.
        nodes: its nodes that compute on floats; 0 where it was left as it is.
        islands: those of them that stay in float32.
        beyond: names of the tensors whose numbers were too large, as measured.
        samples: samples that this was measured on; 0 where it was not.
        notes: anything else a reader must know.
    """

    dtype: str
    reason: str
    nodes: int = 0
    islands: tuple[Island, ...] = ()
    beyond: tuple[str, ...] = ()
    samples: int = 0
    notes: tuple[str, ...] = ()


class TargetInfo(_Record, frozen=True):
    """The GPU that the model was compiled for.

    Attributes:
        name: the target's name, e.g. `sm_120`.
        description: one line about it.
        executed: True only where figures of this report were measured on such a GPU.
        remark: what its owner has to know of the plan, say that no format gains time there.
    """

    name: str
    description: str
    executed: bool = False
    remark: str = ""


class PolicyInfo(_Record, frozen=True):
    """How precision was assigned.

    Attributes:
        name: the policy's name.
        parameters: the policy's parameters, as they were used.
        granularity_channels: channels that formats are given to at a time; under `cost` one
            run of each layer may have fewer.
        weights: how weights are rounded, `nearest` or `gptq`; empty in older reports.
        weights_reason: why they are rounded so.
    """

    name: str
    parameters: dict[str, str | float | int]
    granularity_channels: int
    weights: str = ""
    weights_reason: str = ""


class CalibrationInfo(_Record, frozen=True):
    """The data that the plan was made from.

    Attributes:
        description: where the data came from, in words.
        samples: number of samples.
        tokens: number of activation rows that counted.
        fit: False where the data can't represent real use (for example random tokens).
        cached: True where statistics of an earlier run were used.
        masked_tokens: rows that a mask excluded, such as padding.
        seconds: time that calibration took.
    """

    description: str
    samples: int | None
    tokens: int | None
    fit: bool
    cached: bool = False
    masked_tokens: int | None = None
    seconds: float | None = None


class WeightRounding(_Record, frozen=True):
    """How the weight of one linear was rounded, where error feedback was asked for.

    Attributes:
        node: name of the linear.
        gain_db: by how much the error of its output on inputs held back fell below that of
            rounding to nearest, in dB; 0 where that was kept.
        reason: why rounding to nearest was kept; empty where it was not.
    """

    node: str
    gain_db: float | None
    reason: str


class LayerReport(_Record, frozen=True):
    """What became of one group of linear layers that read the same tensor.

    Attributes:
        name: name of the `MicroMixLinear` node.
        nodes: names of the nodes it replaces.
        input: name of the tensor that they read.
        in_channels: K.
        out_channels: N of each node.
        segments: the split of the ordered channels.
        act_bits: mean bits per activation element, scales and padding included.
        weight_bits: mean bits per weight, scales and padding included.
        bytes_before: size of the original weights.
        bytes_after: size of the packed weights, scales and channel order.
        weight_sqnr_db: signal-to-quantization-noise ratio of the packed weights.
        output_sqnr_db: the same of the layer's output, its own error alone: original inputs,
            quantized activations and weights.
        output_cosine: cosine between the original and the quantized output.
        rounding: of each weight, where error feedback was asked for.
        channel_max: max|x| per channel in the chosen order (`channel_profile`).
        channel_mean: mean|x| per channel in the chosen order.
        channel_step: channels per entry of the two.
    """

    name: str
    nodes: tuple[str, ...]
    input: str
    in_channels: int
    out_channels: tuple[int, ...]
    segments: tuple[Segment, ...]
    act_bits: float
    weight_bits: float
    bytes_before: int
    bytes_after: int
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    output_cosine: float | None = None
    rounding: tuple[WeightRounding, ...] = ()
    channel_max: tuple[float | None, ...] = ()
    channel_mean: tuple[float | None, ...] = ()
    channel_step: int = 1

    @property
    def padded_channels(self) -> int:
        """K_pad: channels after padding."""
        return sum(segment.channels for segment in self.segments)

    @property
    def weights(self) -> int:
        """Number of weights of the group."""
        return self.in_channels * sum(self.out_channels)


class OutputReport(_Record, frozen=True):
    """How close one output of the compiled model is to the original's.

    Attributes:
        name: name of the output.
        dtype: its type.
        cosine_mean: mean cosine over the samples.
        cosine_min: cosine of the worst sample.
        sqnr_db: signal-to-noise ratio over all samples.
        max_abs_error: largest absolute difference of an element, in the output's own unit.
        kl_divergence_nats: mean KL divergence of the softmax, original against compiled.
        top1_agreement: share of rows with the same largest entry, 0 to 1.
        is_logits: True where the output was taken for logits.
    """

    name: str
    dtype: str
    cosine_mean: float | None
    cosine_min: float | None
    sqnr_db: float | None
    max_abs_error: float | None
    kl_divergence_nats: float | None = None
    top1_agreement: float | None = None
    is_logits: bool = False


class LayerError(_Record, frozen=True):
    """How far a layer's output inside the compiled model is from the original's.

    Attributes:
        name: name of the original linear layer's node (one of `LayerReport.nodes`).
        cosine: cosine between the two outputs; the layers before have added their errors.
        sqnr_db: signal-to-noise ratio.
    """

    name: str
    cosine: float | None
    sqnr_db: float | None


class VerificationReport(_Record, frozen=True):
    """The comparison of the compiled model with the original.

    Attributes:
        inputs: the inputs that were used, in words.
        samples: number of samples.
        outputs: one entry per output that was compared; empty where the models were not run.
        passed: True where everything demanded was reached.
        layers: one entry per original layer that was compared, in graph order.
        first_bad_layer: name of the first of them that is out of bounds.
        threshold: what was demanded, in words; None where nothing was.
        note: anything a reader must know.
        rest_alone: the same of the original with all but its linears in half precision: what that
            step alone does to the outputs; empty where it was not made or not measured.
        measured_on: what ran the two models.
    """

    inputs: str
    samples: int
    outputs: tuple[OutputReport, ...]
    passed: bool
    layers: tuple[LayerError, ...] = ()
    first_bad_layer: str | None = None
    threshold: str | None = None
    note: str | None = None
    rest_alone: tuple[OutputReport, ...] = ()
    measured_on: str = "ONNX Runtime, CPU"


class StageTime(_Record, frozen=True):
    """Time of one stage.

    Attributes:
        name: the stage.
        seconds: wall-clock time.
    """

    name: str
    seconds: float


class EngineInfo(_Record, frozen=True):
    """What became of the engine.

    Attributes:
        summary: one line: the engine that was built, or what is missing and how to finish.
        bytes: size of the engine; None where none was built.
        builder: what built it, with its version.
        gpu: the GPU that it is for: by name where it was built on it.
        loaded: whether it was loaded where it was built.
        plugin: whether the plugin library lies in the output folder.
        profiles: what the engine is or will be built for, in the notation of `--shapes`.
        precision: lines that say what its layers run, what was lost, what cannot be told; each
            layer stands in `engine.meta.json`.
    """

    summary: str
    bytes: int | None = None
    builder: str | None = None
    gpu: str | None = None
    loaded: bool = False
    plugin: bool = False
    profiles: tuple[str, ...] = ()
    precision: tuple[str, ...] = ()


class Report(_Record, frozen=True):
    """Everything that one run of mmcompile found out.

    Attributes:
        version: `REPORT_VERSION`.
        created: date and time, ISO 8601 with time zone.
        command: the command line.
        versions: versions of mmcompile and of what it used, by name.
        model: the model.
        target: the GPU.
        policy: how precision was assigned.
        calibration: the data that the plan was made from.
        rest: what became of all else; None in older reports.
        layers: one entry per `MicroMixLinear` node, in graph order.
        left_alone: the linear layers that kept their precision, with reasons.
        verification: None where it was not asked for.
        engine: what became of the engine; None for a dry run or a failed verification.
        stages: times of the stages, in order.
        peak_memory_bytes: largest resident memory of the process.
        reproduce: the commands that repeat this run.
    """

    version: int
    created: str
    command: str
    versions: dict[str, str]
    model: ModelInfo
    target: TargetInfo
    policy: PolicyInfo
    calibration: CalibrationInfo
    layers: tuple[LayerReport, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    verification: VerificationReport | None = None
    engine: EngineInfo | None = None
    stages: tuple[StageTime, ...] = ()
    peak_memory_bytes: int | None = None
    rest: RestInfo | None = None
    reproduce: tuple[str, ...] = ()


def channel_profile(
    channel_max: FloatArray, channel_mean: FloatArray
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Shortens per-channel magnitudes to at most `PROFILE_POINTS` entries for a `LayerReport`.

    Args:
        channel_max: float[K_pad], max|x| in the chosen order.
        channel_mean: float[K_pad], mean|x| in the chosen order.

    Returns:
        `LayerReport.channel_max` (the largest of each step), `channel_mean` (the mean of each
        step) and `channel_step`; figures keep four significant digits.
    """
    step = max(1, math.ceil(channel_max.size / PROFILE_POINTS))
    starts = np.arange(0, channel_max.size, step)
    if starts.size == 0:
        return (), (), step
    lengths = np.diff(starts, append=channel_max.size)
    largest = np.maximum.reduceat(channel_max.astype(np.float64), starts)
    mean = np.add.reduceat(channel_mean.astype(np.float64), starts) / lengths
    return _four_digits(largest), _four_digits(mean), step


def write_json(report: Report, path: Path) -> None:
    """Writes `report.json`: indented, lists of figures on one line.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    text = figures_text(report)
    with disk_errors(path):
        path.write_text(text, encoding="utf-8")


def load_report(path: Path) -> Report:
    """Reads and checks a `report.json`.

    Raises:
        UsageError: the file is missing, is no report, or has another version.
    """
    report = _DOCUMENT.read(path)
    named = {
        name
        for layer in report.layers
        for segment in layer.segments
        for name in (segment.act_format, segment.weight_format)
    }
    if unknown := sorted(named - set(BLOCK_FORMATS)):
        reason = f"unknown format '{unknown[0]}'"
        raise UsageError("report-malformed", path, reason, _DOCUMENT.remedy)
    return report


_DOCUMENT = Document(
    "report",
    Report,
    REPORT_VERSION,
    remedy="give a report.json that mmcompile wrote",
    renewal="use the mmcompile that wrote it",
)


def report_schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`."""
    return msgspec.json.schema(Report)


def _storable(value: float, field: str) -> float | None:
    if math.isnan(value):
        return None
    if field.endswith("_db"):
        return max(-EXACT_DB, min(EXACT_DB, value))
    return value if math.isfinite(value) else None


def figures_text(record: msgspec.Struct) -> str:
    """A record as indented JSON, lists of figures on one line."""
    packed = msgspec.json.encode(record, enc_hook=_plain_scalar)
    indented = msgspec.json.format(packed, indent=2).decode()
    # A line break is never inside a JSON string, so the pattern only meets lists of figures.
    return re.sub(r"\[\n([-+\d.eE,\snul]*)\]", _one_line, indented) + "\n"


def _plain_scalar(value: Any) -> Any:
    """A numpy scalar as the Python number that JSON can hold."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a report cannot hold a {type(value).__name__}")


def _one_line(figures: re.Match[str]) -> str:
    return f"[{' '.join(figures[1].split())}]"


def _four_digits(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values.tolist())
