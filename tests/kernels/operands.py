"""Random problems of the GEMM, and what must come out: docs/spec.md, section 7."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import ml_dtypes
import numpy as np

from mmcompile.cuda.layers import LayerShape, Place
from mmcompile.cuda.machine import HostMachine
from mmcompile.cuda.number_types import NUMBER_TYPES
from mmcompile.doctor.cases import codes_case, without_x
from mmcompile.doctor.compare import Reference, reference
from mmcompile.doctor.operands import (
    act_formats,
    act_values,
    any_operand,
    exact_operand,
    weight_formats,
    weight_values,
)
from mmcompile.kernels import Device, KernelLibrary, LinearSegment

TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Draw:
    """How codes and scales are drawn, and what is added to the product.

    Attributes:
        seed: of everything random.
        scales: range of E8M0 bytes of activations, the second end excluded.
        weight_scales: of weights.
        exact: draw codes and scales whose sums are all exact in fp32.
        y_type: `MmcType` of y and of the residual.
        bias: whether there is one.
        residual: whether there is one.
        tensor_scales: of activations and weights.
    """

    seed: int = 0
    scales: tuple[int, int] = (117, 138)
    weight_scales: tuple[int, int] = (117, 138)
    exact: bool = False
    y_type: int = 0
    bias: bool = False
    residual: bool = False
    tensor_scales: tuple[float, float] = (1.0, 1.0)


class Problem:
    """A GEMM of `segments` (channels, activation format id, weight format id) on random codes."""

    def __init__(
        self,
        library: KernelLibrary,
        rows: int,
        channels: int,
        segments: list[tuple[int, int, int]],
        draw: Draw | None = None,
    ) -> None:
        self.library, self.rows = library, rows
        self.draw = draw = draw or Draw()
        made = tuple(LinearSegment(*segment) for segment in segments)
        padded = sum(segment.channels for segment in made)
        self.shape = shape = LayerShape(padded, channels, made, *draw.tensor_scales)
        self.linear = shape.create(library)
        random = np.random.default_rng(draw.seed)
        formats = act_formats(shape), weight_formats(shape)
        if draw.exact:
            self.act = exact_operand(random, shape, formats[0], rows)
            self.weight = exact_operand(random, shape, formats[1], channels)
        else:
            self.act = any_operand(random, shape, formats[0], rows, draw.scales)
            self.weight = any_operand(random, shape, formats[1], channels, draw.weight_scales)
        added = np.round(random.normal(size=(rows + 1, channels)) * 64)
        self.bias = added[0].astype(np.float32) if draw.bias else None
        self.residual = added[1:].astype(TYPES[draw.y_type]) if draw.residual else None

    def run(
        self, device: Device, tactic: int = 0, *, in_place: bool = False, y_offset: int = 0
    ) -> np.ndarray:
        """y[rows, channels] of the GEMM kernel; the residual may lie in it.

        It lies `y_offset` elements behind an aligned address.
        """
        y_type = self.draw.y_type
        residual = None
        if self.residual is not None:
            residual = self.residual.view(NUMBER_TYPES[y_type].bits)
        inputs = without_x(self.rows, y_type, residual, in_place=in_place)
        inputs = replace(inputs, y_offset=y_offset)
        place = Place(HostMachine(), self.library, device)
        case = codes_case(place, self.shape, self.act, self.weight, inputs, self.bias)
        return case.gemm(tactic).view(TYPES[y_type])

    @cached_property
    def _reference(self) -> Reference:
        act, weight = act_values(self.act, self.shape), weight_values(self.weight, self.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            added = [x.astype(np.float64) for x in (self.bias, self.residual) if x is not None]
            return reference(act, weight, *added)

    def exact(self) -> np.ndarray:
        """float64[rows, channels]: the sum before rounding."""
        return self._reference.exact

    def bound(self) -> np.ndarray:
        """What y may be off where every addition rounds to nearest, as the emulator's do.

        n additions of fp32, each within u = 2^-24 of its own sum, in any order; then one rounding
        to y's type. Results below fp32's normal numbers are off by its smallest step at most.
        """
        terms = self.shape.padded_channels + 3  # bias, residual, the tensor scales' product
        relative = terms * 2.0**-24 / (1 - terms * 2.0**-24)
        error = relative * self._reference.magnitude + terms * 2.0**-149
        narrow = {0: 0.0, 1: 2.0**-11, 2: 2.0**-8}[self.draw.y_type]
        least = {0: 0.0, 1: 2.0**-25, 2: 0.0}[self.draw.y_type]
        return error + narrow * (np.abs(self.exact()) + error) + least
