"""The self-test's checks: every kernel, format and tactic against the CPU tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.cuda.driver import DriverError
from mmcompile.cuda.layers import MIXES, DeviceLayer, LayerShape, Place, mixed_segments
from mmcompile.doctor.operands import (
    TYPES,
    pack_activations,
    pack_constants,
    quantized,
    random_order,
    random_weight,
    random_x,
    reference,
)
from mmcompile.kernels import KernelError

TENSOR_SCALES = (2.0**-8, 2.0**-6)
"""Of activations and weights, for NVFP4 segments: small enough for y to fit fp16."""


class CheckResult(msgspec.Struct, frozen=True):
    """One check.

    Attributes:
        name: `quantize/FORMATS/TYPE` or `layer/FORMATS/TYPE/TACTIC`.
        passed: whether the kernel agrees with the tables.
        seconds: time that it took.
        detail: the sizes; for a failure the first difference.
        worst: largest error of a layer as a share of what is allowed.
    """

    name: str
    passed: bool
    seconds: float
    detail: str
    worst: float | None = None


@dataclass(frozen=True)
class Sizes:
    """Rows of x, input channels (a few of them padding) and output channels of the checks."""

    rows: tuple[int, ...]
    channels: int
    out_channels: int
    missing: int = 3


GPU_SIZES = Sizes((1, 7, 16, 70, 300), 2080, 328)
EMULATED_SIZES = Sizes((3, 18), 352, 40)
"""The emulator is a thousand times slower."""


class Disagreement(Exception):
    """A kernel's result is not that of the tables; the text says where."""


def run_checks(place: Place, sizes: Sizes, seed: int = 0) -> Iterator[CheckResult]:
    """All checks, one after the other; a kernel that fails does not keep others from running."""
    for mix in MIXES:
        for kind, (type_name, _) in TYPES.items():
            for number, rows in enumerate(sizes.rows):
                random = np.random.default_rng([seed, number, kind])
                yield from _check_layer(place, sizes, random, (mix, kind, type_name, rows))


def _check_layer(
    place: Place,
    sizes: Sizes,
    random: np.random.Generator,
    case: tuple[str, int, str, int],
) -> Iterator[CheckResult]:
    mix, kind, type_name, rows = case
    segments = mixed_segments(mix, sizes.channels)
    shape = LayerShape(sizes.channels - sizes.missing, sizes.out_channels, segments, *TENSOR_SCALES)
    x = random_x(random, rows, shape.in_channels, kind)
    order = random_order(random, shape)
    weight = random_weight(random, shape)
    bias = random.standard_normal(shape.out_channels, np.float32)
    act = quantized(x, order, shape)
    detail = f"M {rows}, K {shape.in_channels}, N {shape.out_channels}"
    bits: npt.NDArray[np.generic] = x.view(np.uint32 if x.dtype.itemsize == 4 else np.uint16)
    start = time.perf_counter()
    name = f"quantize/{mix}/{type_name}"
    try:
        constants = pack_constants(weight, shape, order, bias)
        layer = DeviceLayer(place, shape, constants, bits, (kind, kind))
        layer.once("quantize")
        codes, scales = layer.quantized()
        wanted = pack_activations(act, shape)
        _same(scales, wanted[1], "scale bytes")
        _same(codes, wanted[0], "codes")
    except (Disagreement, KernelError, DriverError, MemoryError) as error:
        yield CheckResult(name, False, time.perf_counter() - start, f"{detail}: {error}")
        return
    yield CheckResult(name, True, time.perf_counter() - start, detail)
    expected = reference(act, weight, bias, shape, kind)
    for tactic, tile in enumerate(("chosen", *place.tactics)):
        start = time.perf_counter()
        name = f"layer/{mix}/{type_name}/{tile}"
        try:
            layer.once("run", tactic)
            with np.errstate(invalid="ignore"):  # a signalling NaN is one that is found
                y = layer.result().view(TYPES[kind][1]).reshape(rows, -1).astype(np.float64)
            worst = _within(y, expected.exact, expected.bound)
        except (Disagreement, KernelError, DriverError) as error:
            yield CheckResult(name, False, time.perf_counter() - start, f"{detail}: {error}")
        else:
            yield CheckResult(name, True, time.perf_counter() - start, detail, worst)


def _same(found: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8], what: str) -> None:
    """Bytes are equal.

    Raises:
        Disagreement: they are not, or their shapes are not.
    """
    if found.shape != wanted.shape:
        raise Disagreement(f"{what} have the shape {found.shape}, not {wanted.shape}")
    wrong = np.argwhere(found != wanted)
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise Disagreement(
            f"{len(wrong)} of {found.size} {what} differ; the first at {place}: "
            f"0x{int(found[place]):02x}, not 0x{int(wanted[place]):02x}"
        )


def _within(
    y: npt.NDArray[np.float64],
    exact: npt.NDArray[np.float64],
    bound: npt.NDArray[np.float64],
) -> float:
    """The largest error as a share of its bound.

    Raises:
        Disagreement: it is larger than the bound, or a value is NaN.
    """
    with np.errstate(invalid="ignore"):
        share = np.where(np.isnan(y), np.inf, np.abs(y - exact) / bound)
    worst = np.unravel_index(int(np.argmax(share)), share.shape)
    if share[worst] > 1:
        row, channel = (int(i) for i in worst)
        raise Disagreement(
            f"{int((share > 1).sum())} of {share.size} values of y are beyond the bound; the "
            f"worst is y[{row}, {channel}] = {y[worst]:.6g}, exact {exact[worst]:.6g}, allowed "
            f"± {bound[worst]:.3g}"
        )
    return float(share[worst])
