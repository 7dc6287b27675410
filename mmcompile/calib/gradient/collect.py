"""Runs a gradient graph over samples and hands out the token rows that are asked for.

Every sample is a run per direction; only the chosen rows of the inputs and gradients of layers
leave the runtime. Nothing is kept from one sample to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from mmcompile.calib.collect import row_keys, run_sample, token_mask
from mmcompile.calib.execution import Execution
from mmcompile.calib.gradient.differentiate import GradientGraph
from mmcompile.calib.gradient.emitter import PREFIX
from mmcompile.calib.instrument import TOKEN_MASK, WatchedTensor, prune
from mmcompile.data.dataset import CalibrationData, Sample, trim_padding

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class GradientRows:
    """What one sample shows: rows of layers' inputs and of the gradients of their outputs.

    A row stands for a token. Row i of every array belongs to the same token, except in tensors
    whose number of rows is not the sample's number of tokens (a pooled vector, say): these are
    given in full.

    Attributes:
        number: of the sample, from 0.
        activations: float[rows, K] by `WatchedTensor.key`.
        gradients: float[directions, rows, N] by requested tensor.
        not_finite: requested tensors left out here because their gradient is NaN or infinite.
    """

    number: int
    activations: dict[str, Array]
    gradients: dict[str, Array]
    not_finite: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """How much is drawn from every sample.

    Attributes:
        directions: runs per sample.
        rows: rows per tensor and sample; tokens are chosen at random.
    """

    directions: int = 1
    rows: int = 32


def collect_gradients(
    execution: Execution,
    graph: GradientGraph,
    activations: Sequence[WatchedTensor],
    data: CalibrationData,
    draw: Draw,
) -> Iterator[GradientRows]:
    """Yields the gradients of all samples, one sample at a time.

    A direction v is drawn anew for every run: independent standard normal numbers in the outputs'
    shape, zero for tokens that are padding. So E[(v·δ)²] is the squared length of a change δ of
    the outputs of all real tokens together.

    Args:
        execution: how the model is run; `graph` was made of its skeleton.
        graph: from `differentiate`, which has to keep the `activations`.
        activations: layers' inputs to hand out beside the gradients.
        data: the samples.
        draw: how many rows and directions are taken.

    Raises:
        UnsupportedModelError: the model cannot run.
        UsageError: the data does not fit the model.
    """
    if not graph.gradients:
        return
    picked = pick_rows(graph, activations)
    session = execution.session(picked)
    shapes = _SeedShapes(execution, graph)
    names = [value.name for value in picked.graph.output]
    tracked = execution.progress.track(data, "differentiating", data.count)
    for number, sample in enumerate(tracked):
        trimmed = trim_padding(sample, execution.specs)
        mask = token_mask(trimmed)
        if not mask.any():
            continue
        content = int(row_keys(trimmed, execution.seed).view(np.uint32)[0])
        generator = np.random.default_rng([execution.seed & 0xFFFFFFFF, content])
        chosen = generator.permutation(np.flatnonzero(mask))[: draw.rows]
        kept = np.zeros_like(mask)
        kept[chosen] = True
        fixed = {**trimmed, TOKEN_MASK: kept}
        runs = []
        for _ in range(draw.directions):
            seeds = {
                graph.seeds[name]: _direction(shape, shapes.dtype, mask, generator)
                for name, shape in shapes.of(trimmed, number).items()
            }
            values = run_sample(session, names, fixed | seeds, number)
            runs.append(dict(zip(names, values, strict=True)))
        yield _rows(number, graph, activations, runs)


def pick_rows(graph: GradientGraph, activations: Sequence[WatchedTensor]) -> onnx.ModelProto:
    """A copy of a gradient graph whose outputs are rows, chosen by a further input.

    Args:
        graph: from `differentiate`.
        activations: kept tensors of the forward to hand out too, under `activation_name`.

    Returns:
        A skeleton with the input `TOKEN_MASK` bool[tokens], true for the tokens to keep; its
        outputs are float[rows, channels], first those of the gradients under their own names.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    body = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in body.output}
    del body.output[:]
    picker = _Picker(body)
    for gradient in graph.gradients.values():
        rows = picker.pick(gradient, None, transposed=False)
        picker.out(rows, f"{gradient}.rows", kinds[gradient])
    for watched in activations:
        value = picker.node("Cast", [graph.kept[watched.name]], to=TensorProto.FLOAT)
        rows = picker.pick(value, watched.channels, transposed=watched.transposed)
        picker.out(rows, activation_name(watched), TensorProto.FLOAT)
    body.input.append(helper.make_tensor_value_info(TOKEN_MASK, TensorProto.BOOL, ["tokens"]))
    prune(body)
    return model


def activation_name(watched: WatchedTensor) -> str:
    """Name of the output that carries rows of a layer's input."""
    return f"{PREFIX}.activation.{watched.key}"


class _Picker:
    """Appends nodes that pick the rows of the tokens which the mask names."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._count = 0
        self._zero = self._constant(np.array(0, np.int64))
        self._one = self._constant(np.array(1, np.int64))
        self._all = self._constant(np.array([-1], np.int64))
        self._tokens = self.node("Size", [TOKEN_MASK])

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node with one output; the output's name."""
        self._count += 1
        name = f"{PREFIX}.pick.{self._count}.{op}"
        self._graph.node.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def out(self, value: str, name: str, kind: int) -> None:
        """Makes a tensor an output."""
        self._graph.node.append(helper.make_node("Identity", [value], [name], name=name))
        info = onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(kind, None))
        self._graph.output.append(info)

    def pick(self, value: str, channels: int | None, *, transposed: bool) -> str:
        """[rows, channels] of a tensor; all rows where there is not one for every token."""
        if transposed:
            value = self.node("Transpose", [value], perm=[1, 0])
        if channels is None:
            width = self.node("Gather", [self.node("Shape", [value]), self._all], axis=0)
        else:
            width = self._constant(np.array([channels], np.int64))
        shape = self.node("Concat", [self._all, width], axis=0)
        rows = self.node("Reshape", [value, shape])
        count = self.node("Squeeze", [self.node("Shape", [rows], end=1)])
        index = self.node("Range", [self._zero, count, self._one])
        token = self.node("Mod", [index, self._tokens])
        named = self.node("Gather", [TOKEN_MASK, token])
        misfit = self.node("Not", [self.node("Equal", [count, self._tokens])])
        return self.node("Compress", [rows, self.node("Or", [named, misfit])], axis=0)

    def _constant(self, value: npt.NDArray[np.int64]) -> str:
        self._count += 1
        name = f"{PREFIX}.pick.constant{self._count}"
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name


class _SeedShapes:
    """Shapes of the model's outputs for a sample.

    They follow from the sample's where every dimension of an output is fixed or named as one of
    an input; else a run of the forward tells them, once for all samples of the same shapes.
    """

    def __init__(self, execution: Execution, graph: GradientGraph) -> None:
        self._execution = execution
        self._outputs = list(graph.seeds)
        infos = {value.name: value.type.tensor_type for value in graph.model.graph.input}
        kinds = {name: infos[seed] for name, seed in graph.seeds.items()}
        self.dtype = helper.tensor_dtype_to_np_dtype(next(iter(kinds.values())).elem_type)
        self._declared = {
            name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
            if kind.HasField("shape")
            else [""]  # like an unnamed dimension, which no sample tells
            for name, kind in kinds.items()
        }
        self._seen: dict[tuple[object, ...], dict[str, tuple[int, ...]]] = {}

    def of(self, sample: Sample, number: int) -> dict[str, tuple[int, ...]]:
        """Shapes by output."""
        known: dict[str, int] = {}
        for spec in self._execution.specs:
            sizes = sample[spec.name].shape
            known.update((d, n) for d, n in zip(spec.shape, sizes, strict=True) if type(d) is str)
        if all(type(d) is int or d in known for dims in self._declared.values() for d in dims):
            return {
                name: tuple(d if isinstance(d, int) else known[d] for d in dims)
                for name, dims in self._declared.items()
            }
        key = tuple((name, sample[name].shape) for name in sorted(sample))
        if key not in self._seen:
            values = run_sample(self._forward, self._outputs, sample, number)
            shapes = (np.shape(value) for value in values)
            self._seen[key] = dict(zip(self._outputs, shapes, strict=True))
        return self._seen[key]

    @functools.cached_property
    def _forward(self) -> ort.InferenceSession:
        return self._execution.session()


def _direction(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    mask: npt.NDArray[np.bool_],
    generator: np.random.Generator,
) -> Array:
    """Random weights of an output; zero where it belongs to a token that is padding."""
    weights: Array = generator.standard_normal(shape, dtype)
    if len(shape) > 2 and shape[0] * shape[1] == mask.size:
        weights *= mask.reshape(shape[:2] + (1,) * (len(shape) - 2))
    return weights


def _rows(
    number: int,
    graph: GradientGraph,
    activations: Sequence[WatchedTensor],
    runs: Sequence[Mapping[str, Array]],
) -> GradientRows:
    gradients = {
        tensor: _stacked([run[f"{output}.rows"] for run in runs])
        for tensor, output in graph.gradients.items()
    }
    broken = tuple(name for name, value in gradients.items() if not np.isfinite(value).all())
    return GradientRows(
        number,
        {watched.key: runs[0][activation_name(watched)] for watched in activations},
        {name: value for name, value in gradients.items() if name not in broken},
        broken,
    )


def _stacked(runs: Sequence[Array]) -> Array:
    """[runs, …]; a view where there is one run only."""
    return runs[0][None] if len(runs) == 1 else np.stack(runs)
