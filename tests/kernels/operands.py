"""Random operands of the GEMM, made as codes and scales, with the values that they mean."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from mmcompile.formats import BLOCK_FORMATS, BlockFormat
from mmcompile.kernels import Arguments, Device, KernelLibrary, Linear, LinearSegment
from mmcompile.quantize import E4M3_SCALES, E8M0_SCALES, element_table, pack_codes
from tests.kernels.emulated import aligned
from tests.node_models import padded_to, words_first

FORMATS = tuple(BLOCK_FORMATS.values())
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
E4M3_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


@dataclass(frozen=True)
class Draw:
    """How codes and scales are drawn.

    Attributes:
        seed: of everything random.
        scales: range of E8M0 bytes of activations, both ends included.
        weight_scales: of weights.
        exact: draw small multiples of 1/4 and scales of 1, so that every sum is exact in fp32.
    """

    seed: int = 0
    scales: tuple[int, int] = (117, 137)
    weight_scales: tuple[int, int] = (117, 137)
    exact: bool = False


@dataclass(frozen=True)
class Operand:
    """Packed codes[rows, bytes], scales[words, rows, 4] and values float64[rows, K]."""

    codes: np.ndarray
    scales: np.ndarray
    values: np.ndarray


@dataclass
class Problem:
    """A GEMM with all its inputs in aligned memory, and what must come out."""

    linear: Linear
    rows: int
    channels: int
    act: Operand
    weight: Operand
    y_type: int = 0
    bias: np.ndarray | None = None
    residual: np.ndarray | None = None

    def run(self, device: Device, tactic: int = 0, y: np.ndarray | None = None) -> np.ndarray:
        """y[rows, channels] of the GEMM kernel, on a poisoned workspace and, unless given, y."""
        layout = self.linear.workspace_layout(device, self.rows)
        workspace = aligned(np.full(layout.bytes, 0xFF, np.uint8))
        workspace[: self.act.codes.size] = self.act.codes.ravel()
        scales_end = layout.scales + self.act.scales.size
        workspace[layout.scales : scales_end] = self.act.scales.ravel()
        workspace[layout.counters : layout.partials] = 0  # as the quantization leaves it
        weight, scales = aligned(self.weight.codes), aligned(self.weight.scales)
        if y is None:
            y = np.full((self.rows, self.channels), np.nan, TYPES[self.y_type])
        order = aligned(np.zeros(4, np.int32))
        arguments = Arguments(
            rows=self.rows,
            x_type=0,
            y_type=self.y_type,
            x=order.ctypes.data,
            order=order.ctypes.data,
            weight=weight.ctypes.data,
            scales=scales.ctypes.data,
            bias=None if self.bias is None else self.bias.ctypes.data,
            residual=None if self.residual is None else self.residual.ctypes.data,
            y=y.ctypes.data,
            workspace=workspace.ctypes.data,
            workspace_bytes=workspace.size,
            tactic=tactic,
        )
        self.linear.gemm(device, arguments)
        return y

    def exact(self) -> np.ndarray:
        """float64[rows, channels]: the sum before rounding."""
        with np.errstate(invalid="ignore", over="ignore"):
            total = self.act.values @ self.weight.values.T
        return total + self._added(np.asarray)

    def bound(self) -> np.ndarray:
        """What y may be off: docs/spec.md, section 7.

        n additions of fp32, each within u = 2^-24 of its own sum, in any order; then one rounding
        to y's type. Results below fp32's normal numbers are off by its smallest step at most.
        """
        terms = self.act.values.shape[1] + 3  # bias, residual, and the tensor scales' product
        relative = terms * 2.0**-24 / (1 - terms * 2.0**-24)
        magnitude = np.abs(self.act.values) @ np.abs(self.weight.values).T + self._added(np.abs)
        error = relative * magnitude + terms * 2.0**-149
        narrow = {0: 0.0, 1: 2.0**-11, 2: 2.0**-8}[self.y_type]
        least = {0: 0.0, 1: 2.0**-25, 2: 0.0}[self.y_type]
        return error + narrow * (np.abs(self.exact()) + error) + least

    def _added(self, form) -> np.ndarray:
        total = np.zeros((1, 1))
        if self.bias is not None:
            total = total + form(self.bias.astype(np.float64))
        if self.residual is not None:
            total = total + form(self.residual.astype(np.float64))
        return total


def make_problem(
    library: KernelLibrary,
    rows: int,
    channels: int,
    segments: list[tuple[int, int, int]],
    draw: Draw | None = None,
    *,
    y_type: int = 0,
    bias: bool = False,
    residual: bool = False,
    tensor_scales: tuple[float, float] = (1.0, 1.0),
) -> Problem:
    """A problem of `segments` (channels, activation format id, weight format id)."""
    draw = draw or Draw()
    rng = np.random.default_rng(draw.seed)
    acts, weights = [], []
    for length, act, weight in segments:
        widened = FORMATS[act].element.bits != 4 or FORMATS[weight].element.bits != 4
        a = _draw(rng, rows, length, FORMATS[act], draw, draw.scales, tensor_scales[0])
        w = _draw(
            rng, channels, length, FORMATS[weight], draw, draw.weight_scales, tensor_scales[1]
        )
        acts.append(_packed(*a, FORMATS[act], as_bytes=widened))
        weights.append(_packed(*w, FORMATS[weight], as_bytes=False))
    added = np.round(rng.normal(size=(rows + 1, channels)) * 64)
    return Problem(
        linear=library.linear(
            sum(length for length, _, _ in segments),
            channels,
            [LinearSegment(*segment) for segment in segments],
            *tensor_scales,
        ),
        rows=rows,
        channels=channels,
        act=_joined(acts),
        weight=_joined(weights),
        y_type=y_type,
        bias=added[0].astype(np.float32) if bias else None,
        residual=added[1:].astype(TYPES[y_type]) if residual else None,
    )


def _draw(rng, rows, length, fmt: BlockFormat, draw: Draw, scale_range, tensor_scale):
    """Element codes[rows, length], scale bytes[rows, blocks], values."""
    table = element_table(fmt.element).astype(np.float64)
    finite = np.flatnonzero(np.isfinite(table))
    blocks = length // fmt.block
    if draw.exact:
        finite = finite[(np.abs(table[finite]) <= 4) & (table[finite] * 4 % 1 == 0)]
    codes = rng.choice(finite, (rows, length))
    if fmt.scale == "e8m0":
        low, high = (127, 127) if draw.exact else scale_range
        scales = rng.integers(low, high + 1, (rows, blocks))
        factors = E8M0_SCALES.astype(np.float64)[scales]
    else:
        scales = rng.integers(0x38, 0x39, (rows, blocks)) if draw.exact else None
        scales = rng.integers(0, 0x7F, (rows, blocks)) if scales is None else scales
        factors = E4M3_SCALES.astype(np.float64)[scales] * tensor_scale
    return codes, scales.astype(np.uint8), table[codes] * np.repeat(factors, fmt.block, axis=1)


def _packed(codes, scales, values, fmt: BlockFormat, *, as_bytes: bool) -> Operand:
    if as_bytes:
        # The E4M3 code of every value of the format's table; zeros keep their sign.
        table = element_table(fmt.element).astype(np.float32)
        packed = table.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)[codes]
    else:
        packed = padded_to(pack_codes(codes.astype(np.uint8), fmt.element.bits), 16)
    return Operand(packed, words_first(scales), values)


def _joined(parts: list[Operand]) -> Operand:
    return Operand(
        np.ascontiguousarray(np.concatenate([part.codes for part in parts], axis=1)),
        np.ascontiguousarray(np.concatenate([part.scales for part in parts])),
        np.concatenate([part.values for part in parts], axis=1),
    )
