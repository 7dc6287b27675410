"""Appends the nodes of a backward pass to a graph, under names of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.calib.gradient.facts import TensorFacts

PREFIX = "mmcompile.gradient"
"""First part of the names of all nodes and tensors that the backward adds."""


class Emitter:
    """Writes standard operators of the model's own opset, at least 15.

    The whole backward is computed in one floating-point type: double where the model computes in
    double, else float32, also in models of half precision. So gradients neither underflow nor
    need loss scaling; values of the forward are cast where they are read.

    Args:
        graph: the graph to append to.
        facts: what is known of its tensors.
        opset: version of the standard domain.
    """

    def __init__(self, graph: onnx.GraphProto, facts: TensorFacts, opset: int) -> None:
        self._graph = graph
        self.facts = facts
        self.opset = opset
        double = TensorProto.DOUBLE in facts.types.values()
        self.work_type = TensorProto.DOUBLE if double else TensorProto.FLOAT
        self._dtype = np.float64 if double else np.float32
        self._numbers = itertools.count()
        self._once: dict[tuple[object, ...], str] = {}

    def append(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """A node of the standard domain; the name of its output, or a list of several."""
        number = next(self._numbers)
        names = [f"{PREFIX}.{number}.{op}" + (f".{i}" if i else "") for i in range(outputs)]
        node = helper.make_node(op, inputs, names, name=f"{PREFIX}/{number}/{op}", **attributes)
        self._graph.node.append(node)
        return names[0] if outputs == 1 else names

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of the standard domain with one output; the output's name."""
        name: str = self.append(op, inputs, **attributes)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64[n]."""
        return self._constant(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """A constant int64 scalar."""
        return self._constant(np.array(value, np.int64))

    def number(self, value: float) -> str:
        """A constant scalar of the backward's type."""
        return self._constant(np.array(value, self._dtype))

    def work(self, name: str) -> str:
        """A tensor of the forward in the backward's type; integers and bools are converted."""
        if self.facts.types.get(name) == self.work_type:
            return name
        if name in self.facts.weights:
            name = self._unfolded(name)
        return self._cached("Cast", name, to=self.work_type)

    def shape(self, name: str) -> str:
        """int64[rank] shape of a tensor of the forward."""
        return self._cached("Shape", name)

    def size(self, name: str) -> str:
        """The number of elements of a tensor, as a scalar of the backward's type."""
        return self.op("Cast", self._cached("Size", name), to=self.work_type)

    def dimension(self, name: str, axis: int) -> str:
        """int64[1] size of one axis, which may be negative."""
        return self.op("Gather", self.shape(name), self.integers(axis), axis=0)

    def zeros(self, shape: str) -> str:
        """Zeros of a shape that only the run knows."""
        value = numpy_helper.from_array(np.zeros(1, self._dtype))
        return self.op("ConstantOfShape", shape, value=value)

    def reshape(self, value: str, shape: str) -> str:
        """Reshape that takes every size literally, zero and -1 excepted."""
        return self.op("Reshape", value, shape, allowzero=1)

    def reshape_like(self, value: str, model: str) -> str:
        """Reshape to the shape of a tensor of the forward."""
        return self.reshape(value, self.shape(model))

    def as_rows(self, value: str, channels: str) -> str:
        """Reshape to [rows, channels], channels an int64[1]."""
        return self.op("Reshape", value, self.op("Concat", self.integers(-1), channels, axis=0))

    def reduce(self, op: str, value: str, axes: Sequence[int], *, keepdims: int = 1) -> str:
        """A reduction over axes known here; where the axes stand depends on op and opset."""
        if self.opset >= 18 or op == "ReduceSum":
            return self.op(op, value, self.integers(*axes), keepdims=keepdims)
        return self.op(op, value, axes=list(axes), keepdims=keepdims)

    def unbroadcast(self, gradient: str, shaped: str, operand: str) -> str:
        """Sums a gradient over the axes along which an operand was broadcast.

        Args:
            gradient: of the shape of `shaped`.
            shaped: the broadcast result in the forward.
            operand: the tensor of the forward whose shape the result gets.
        """
        if self.facts.same_shape(shaped, operand):
            return gradient
        return self.sum_to(gradient, self.shape(operand))

    def sum_to(self, gradient: str, target: str) -> str:
        """Sums over the axes in which an int64 shape, aligned to the right, has ones."""
        rank = self.op("Size", self.op("Shape", gradient))
        missing = self.op("Sub", rank, self.op("Size", target))
        one = numpy_helper.from_array(np.ones(1, np.int64))
        missing = self.op("Reshape", missing, self.integers(1))
        ones = self.op("ConstantOfShape", missing, value=one)
        padded = self.op("Concat", ones, target, axis=0)
        found = self.op("NonZero", self.op("Equal", padded, self.integers(1)))
        axes = self.op("Reshape", found, self.integers(-1))
        summed = self.op("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)
        return self.reshape(summed, target)

    def _unfolded(self, weight: str) -> str:
        """A weight through a Reshape to its own shape, plus a zero that only the run knows.

        ONNX Runtime folds a Cast of a weight when it loads a model, so that float32 copies of
        all weights of a half-precision model would stay in memory.
        """
        if ("zero",) not in self._once:
            size = self.op("Size", self._graph.input[0].name)
            self._once["zero",] = self.op("Mul", size, self.integers(0))
        dims = self.facts.shapes[weight]
        shape = self._cached("Add", self._constant(np.array(dims, np.int64)), self._once["zero",])
        return self._cached("Reshape", weight, shape)

    def _cached(self, op: str, *inputs: str, **attributes: Any) -> str:
        key = (op, *inputs, *attributes.items())
        if key not in self._once:
            self._once[key] = self.op(op, *inputs, **attributes)
        return self._once[key]

    def _constant(self, value: npt.NDArray[Any]) -> str:
        key = ("constant", value.dtype.str, value.shape, value.tobytes())
        if key not in self._once:
            name = f"{PREFIX}.constant{next(self._numbers)}"
            self._graph.initializer.append(numpy_helper.from_array(value, name))
            self._once[key] = name
        return self._once[key]
