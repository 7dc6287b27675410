"""Random layers on a device, and what must come out of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.calls import DeviceLayer, Inputs
from mmcompile.cuda.layers import LayerShape, Place
from mmcompile.cuda.number_types import NUMBER_TYPES, BitArray, narrow, widen
from mmcompile.doctor.compare import Reference, reference
from mmcompile.doctor.operands import (
    Operand,
    Order,
    act_formats,
    act_values,
    any_operand,
    exact_operand,
    pack_activations,
    pack_constants,
    quantized,
    random_order,
    random_x,
    weight_formats,
    weight_values,
)
from mmcompile.doctor.trial import Trial
from mmcompile.kernels import FLOAT32


@dataclass(frozen=True)
class Extras:
    """What is added to the product; the residual may lie in y."""

    bias: bool = False
    residual: bool = False
    in_place: bool = False


PLAIN = Extras()
EXTRAS = (PLAIN, Extras(bias=True), Extras(residual=True), Extras(True, True, True))


@dataclass(frozen=True)
class Case:
    """A layer on a device, and the codes that it was made from.

    Attributes:
        layer: the layer.
        weight: its weights.
        given: activations where only the GEMM runs; None where x is quantized.
    """

    layer: DeviceLayer
    weight: Operand
    given: Operand | None = None

    def activations(self) -> Operand:
        """What the product is made of."""
        if self.given is not None:
            return self.given
        inputs, order = self.layer.inputs, self.layer.constants.order
        with np.errstate(invalid="ignore"):
            return quantized(widen(inputs.x, inputs.types[0]), order, self.layer.shape)

    def packed(self) -> tuple[BitArray, BitArray]:
        """Codes and scales of the activations, as the kernels hold them."""
        return pack_activations(self.activations(), self.layer.shape)

    def gemm(self, tactic: int) -> BitArray:
        """Bits of y by the GEMM alone."""
        return self.layer.gemm(*self.packed(), tactic)

    def reference(self) -> Reference:
        """What y must be."""
        shape, inputs, bias = self.layer.shape, self.layer.inputs, self.layer.constants.bias
        residual = None
        if inputs.residual is not None:
            residual = widen(inputs.residual, inputs.types[1]).astype(np.float64)
        return reference(
            act_values(self.activations(), shape),
            weight_values(self.weight, shape),
            None if bias is None else bias.astype(np.float64),
            residual,
        )


def gemm_case(
    trial: Trial, shape: LayerShape, rows: int, y_type: int, extras: Extras, *, exact: bool
) -> Case:
    """A layer on activations that are codes; `exact` ones have sums that fp32 holds."""
    random, make = trial.random, exact_operand if exact else any_operand
    act = make(random, shape, act_formats(shape), rows)
    weight = make(random, shape, weight_formats(shape), shape.out_channels)
    some = act_values(act, shape)[:8] @ weight_values(weight, shape)[:8].T
    size = 64.0 if exact else float(np.abs(some).max(initial=0))
    bias = residual = None
    if extras.bias:
        bias = (random.integers(-8, 9, shape.out_channels) / 8 * size).astype(np.float32)
    if extras.residual:
        residual = narrow(random.integers(-8, 9, (rows, shape.out_channels)) / 8 * size, y_type)
    inputs = without_x(rows, y_type, residual, in_place=extras.in_place)
    return codes_case(trial.place, shape, act, weight, inputs, bias)


def without_x(
    rows: int, y_type: int, residual: BitArray | None = None, *, in_place: bool = False
) -> Inputs:
    """What the GEMM alone gets."""
    x = np.zeros((rows, 1), NUMBER_TYPES[FLOAT32].bits)
    return Inputs(x, (FLOAT32, y_type), residual, in_place)


def codes_case(
    place: Place,
    shape: LayerShape,
    act: Operand,
    weight: Operand,
    inputs: Inputs,
    bias: npt.NDArray[np.float32] | None = None,
) -> Case:
    """A layer on given codes."""
    constants = pack_constants(weight, shape, np.zeros(4, np.int32), bias)
    return Case(DeviceLayer(place, shape, constants, inputs), weight, act)


def linear_case(
    trial: Trial,
    shape: LayerShape,
    rows: int,
    types: tuple[int, int],
    extras: Extras = PLAIN,
    kind: str = "normal",
) -> Case:
    """A layer on random x, of a kind of X_KINDS, and weights of ordinary size."""
    random = trial.random
    weight = any_operand(random, shape, weight_formats(shape), shape.out_channels, (118, 124))
    bias = residual = None
    if extras.bias:
        bias = random.standard_normal(shape.out_channels, np.float32)
    if extras.residual:
        residual = narrow(random.standard_normal((rows, shape.out_channels), np.float32), types[1])
    x = random_x(random, kind, rows, shape.in_channels, types[0])
    constants = pack_constants(weight, shape, random_order(random, shape), bias)
    inputs = Inputs(x, types, residual, extras.in_place)
    return Case(DeviceLayer(trial.place, shape, constants, inputs), weight)


def quantize_case(trial: Trial, shape: LayerShape, inputs: Inputs, order: Order) -> Case:
    """A layer on a given x, of which only the quantization matters."""
    weight = any_operand(trial.random, shape, weight_formats(shape), shape.out_channels)
    constants = pack_constants(weight, shape, order)
    return Case(DeviceLayer(trial.place, shape, constants, inputs), weight)
