"""Modelled limits of all linears of a model, per variant and size, as one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from mmcompile.bench.limits import (
    FP16,
    MIXED,
    VARIANTS,
    Layer,
    Limit,
    layer_limit,
    parts_of,
)
from mmcompile.bench.points import Point
from mmcompile.errors import UsageError
from mmcompile.targets.target import Gpu, Kind

NOTICE = (
    "MODELLED, not measured: the larger of bytes / bandwidth and FLOP / rate of every linear "
    "layer. Real kernels take longer."
)
ASSUMPTIONS = (
    "linear layers only: attention, normalisation and everything else are left out",
    "every linear sees batch × sequence rows; x is read and y written once, in 16 bits",
    "weights and their scales are read once; launches and the quantization of x cost nothing",
    "all operands lie in memory; what stays in the L2 cache from run to run can beat the bound",
    "the tensor cores run at the boost clock, the memory at its full bandwidth",
    "MXFP8 is what the GPU can do: TensorRT-RTX 1.7.1 dequantizes stock MXFP8 layers and "
    "multiplies in 16 bits (docs/baselines.md)",
)
PORTABLE = (
    "this GPU multiplies no block-scaled operands: the kernels decode them and multiply in 16 bits"
)


class SourcedFigure(msgspec.Struct, frozen=True):
    """A figure of the GPU and where it was read; None where it is not known."""

    value: float | None
    source: str


class ModelledLimit(msgspec.Struct, frozen=True):
    """Modelled seconds and what bounds them: `memory` or `compute`."""

    seconds: float
    bound: str


class ModelledLayer(msgspec.Struct, frozen=True):
    """A layer at one point.

    Attributes:
        name: of the group of linears that read one tensor.
        nodes: the model's nodes in it.
        in_channels: K.
        out_channels: N of all nodes together.
        kept: it stays in FP16 in every variant.
        weight_bits: mean bits of a weight in MicroMix, scales and padding included.
        limits: by variant.
    """

    name: str
    nodes: tuple[str, ...]
    in_channels: int
    out_channels: int
    kept: bool
    weight_bits: float
    limits: dict[str, ModelledLimit]


class ModelledPoint(msgspec.Struct, frozen=True):
    """All layers at one point.

    Attributes:
        batch: sequences.
        sequence: tokens of each.
        rows: M of the layers.
        phase: `prefill` or `decode`.
        layers: in the order of the graph.
        totals: seconds of all layers, by variant.
        over_fp16: the total of FP16 over each variant's.
    """

    batch: int
    sequence: int
    rows: int
    phase: str
    layers: tuple[ModelledLayer, ...]
    totals: dict[str, float]
    over_fp16: dict[str, float]


class ModelledBench(msgspec.Struct, frozen=True):
    """The whole document; `kind` and `notice` say what it is.

    Attributes:
        kind: `modelled`.
        notice: in words.
        model: the model file.
        gpu: name of the GPU.
        gpu_title: its full name.
        figures: what is known of it, with sources.
        split: what MicroMix stands for.
        assumptions: of the model.
        points: one entry per size.
    """

    kind: str
    notice: str
    model: str
    gpu: str
    gpu_title: str
    figures: dict[str, SourcedFigure]
    split: str
    assumptions: tuple[str, ...]
    points: tuple[ModelledPoint, ...]


def model_limits(
    model: str, layers: Sequence[Layer], gpu: Gpu, points: Sequence[Point], split: str
) -> ModelledBench:
    """The limits of all layers.

    Args:
        model: name of the model.
        layers: its linears, those that stay in FP16 included.
        gpu: where it would run.
        points: sizes.
        split: in words, where the layers' segments came from.

    Raises:
        UsageError: the GPU's clock, bandwidth or rates are not known.
    """
    portable = () if Kind.BLOCK8 in gpu.rates else (PORTABLE,)
    return ModelledBench(
        kind="modelled",
        notice=NOTICE,
        model=model,
        gpu=gpu.name,
        gpu_title=gpu.title,
        figures=_figures(gpu),
        split=split,
        assumptions=(*ASSUMPTIONS, *portable),
        points=tuple(_at(layers, gpu, point) for point in points),
    )


def _at(layers: Sequence[Layer], gpu: Gpu, point: Point) -> ModelledPoint:
    found = []
    for layer in layers:
        limits: dict[str, ModelledLimit] = {}
        for variant in VARIANTS:
            limit = _known(layer_limit(gpu, layer, parts_of(layer, variant), point.rows), gpu)
            limits[variant] = ModelledLimit(limit.seconds, limit.bound)
        mixed = parts_of(layer, MIXED)
        bits = sum(part.bits * part.channels for part in mixed) / layer.in_channels
        found.append(
            ModelledLayer(
                layer.name,
                layer.nodes,
                layer.in_channels,
                layer.out_channels,
                layer.kept,
                bits,
                limits,
            )
        )
    totals = {v: sum(layer.limits[v].seconds for layer in found) for v in VARIANTS}
    return ModelledPoint(
        batch=point.batch,
        sequence=point.sequence,
        rows=point.rows,
        phase=point.phase,
        layers=tuple(found),
        totals=totals,
        over_fp16=_over_fp16(totals),
    )


def _over_fp16(totals: Mapping[str, float]) -> dict[str, float]:
    return {v: totals[FP16] / seconds if seconds else 1.0 for v, seconds in totals.items()}


def _known(limit: Limit | None, gpu: Gpu) -> Limit:
    if limit is None:
        reason = f"the clock or the bandwidth of {gpu.title} is not known"
        raise UsageError("gpu-figures-missing", "--gpu", reason, "choose another GPU")
    return limit


def _figures(gpu: Gpu) -> dict[str, SourcedFigure]:
    single = {
        "multiprocessors": gpu.multiprocessors,
        "boost_clock_hz": gpu.clock,
        "bandwidth_bytes_per_s": gpu.bandwidth,
        "memory_bytes": gpu.memory,
        "l2_bytes": gpu.l2,
        **{f"{kind}_flop_per_sm_and_clock": rate for kind, rate in gpu.rates.items()},
    }
    return {
        name: SourcedFigure(*figure) if figure else SourcedFigure(None, "not known")
        for name, figure in single.items()
    }
