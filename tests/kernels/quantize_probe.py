"""One problem after another through the quantizing kernel by the C ABI, and faults it must show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmcompile.cuda.calls import DeviceLayer, Inputs, random_constants
from mmcompile.cuda.layers import E2M3, E3M2, MXFP4, MXFP8, NVFP4, LayerShape, open_place
from mmcompile.cuda.machine import HostMachine
from mmcompile.cuda.number_types import NUMBER_TYPES
from mmcompile.doctor.operands import Order, pack_activations, quantized
from mmcompile.kernels import KernelLibrary, LinearSegment
from tests.kernels.emulated import NATIVE, OLDEST, PORTABLE, configure
from tests.kernels.operands import TYPES

SEGMENTS = (
    LinearSegment(160, MXFP4, MXFP4, 2.0),
    LinearSegment(32, MXFP8, MXFP8, 1.75),
    LinearSegment(96, E2M3, E2M3, 1.875),
    LinearSegment(64, E3M2, E3M2, 1.75),
    LinearSegment(96, NVFP4, NVFP4, 2.0),
    LinearSegment(64, MXFP4, MXFP8, 2.0),
)
MEDIUM = 4
CHANNELS = sum(segment.channels for segment in SEGMENTS)


@dataclass(frozen=True)
class Fault:
    """A change of `old` to `new` in a file of plugins/."""

    name: str
    file: str
    old: str
    new: str


def activations(rows: int, channels: int, kind: type, seed: int) -> np.ndarray:
    """Values of all magnitudes, with zeros of both signs, ties, NaN and infinity."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, channels)) * np.exp2(rng.integers(-12, 13, (rows, 1)))
    x[:, ::7] = np.round(x[:, ::7] * 4) / 4
    x[:, 3::11] *= 0.0  # keeps the sign
    if rows > 2:
        x[1, channels // 2] = np.nan
        x[2, channels // 3] = -np.inf
    return x.astype(kind)


def check(library: KernelLibrary, device: int, rows: int, kind: int, in_channels: int) -> None:
    """Compares the codes and scales of a random problem with formats.py, byte by byte."""
    rng = np.random.default_rng(rows)
    source = rng.permutation(np.arange(max(in_channels, CHANNELS)))[:CHANNELS]
    order = np.where(source < in_channels, source, -1).astype(np.int32)
    x = activations(rows, in_channels, TYPES[kind], rows)
    shape = LayerShape(in_channels, 256, SEGMENTS, 2.0**-3, 1.0)
    found = layer(library, device, shape, x, order).quantize(MEDIUM)
    expected = pack_activations(quantized(x.astype(np.float32), order, shape), shape)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


def check_counters(library: KernelLibrary) -> None:
    """The counters of a GEMM that splits K are zero when it starts."""
    shape = LayerShape(4096, 256, (LinearSegment(4096, 0, 0),))
    order = np.arange(4096, dtype=np.int32)
    made = layer(library, NATIVE, shape, np.ones((2, 4096), np.float32), order)
    assert "K split by 1," not in made.describe(MEDIUM)
    made.quantize(MEDIUM)
    start = made.layout.counters
    assert (made.workspace.read()[start : start + 4 * 2] == 0).all()


def layer(
    library: KernelLibrary, device: int, shape: LayerShape, x: np.ndarray, order: Order
) -> DeviceLayer:
    """A layer of which only the quantization matters."""
    constants = random_constants(np.random.default_rng(0), shape, shape.create(library).info)
    kind = TYPES.index(x.dtype.type)
    inputs = Inputs(x.view(NUMBER_TYPES[kind].bits), (kind, kind))
    place = open_place(HostMachine(), library, device)
    return DeviceLayer(place, shape, replace(constants, order=order), inputs)


def probe(library: KernelLibrary) -> None:
    """Staged and direct launches of all types, on devices with all kinds of conversions."""
    configure(library, multiprocessors=16)
    check_counters(library)
    for device in (NATIVE, PORTABLE, OLDEST):
        for kind in range(3):
            configure(library, seed=device + kind, multiprocessors=16)
            check(library, device, 3, kind, 500)
            configure(library, seed=device + kind, multiprocessors=1)
            check(library, device, 9, kind, 501)


BLOCK, KERNEL = "kernels/quantize_block.h", "kernels/quantize.h"
FAULTS = (
    Fault(
        "wrong padding value", KERNEL, "index < zeros ? index : zeros", "index < zeros ? index : 0"
    ),
    Fault(
        "wrong padding value, read directly",
        KERNEL,
        "values[row] = padding ? 0 : value;",
        "values[row] = value;",
    ),
    Fault(
        "missing barrier behind the staging",
        KERNEL,
        "  quantize::stage_rows<kType, kRows>(rows);\n  device::sync_threads();",
        "  quantize::stage_rows<kType, kRows>(rows);",
    ),
    Fault(
        "scale bytes in the wrong order",
        KERNEL,
        "(8 * (lane_of_word / Share::kLanes))",
        "(24 - 8 * (lane_of_word / Share::kLanes))",
    ),
    Fault(
        "scales exchanged between rows",
        KERNEL,
        "owned * kOwners + lane() % kOwners",
        "owned * kOwners + (lane() ^ 1) % kOwners",
    ),
    Fault(
        "missing predicate: rows behind the last",
        KERNEL,
        "position >= segment.channels || row >= rows.count",
        "position >= segment.channels",
    ),
    Fault("threshold ignored", BLOCK, "(amax_bits + carry)", "(amax_bits + 0 * carry)"),
    Fault(
        "rounds halves up",
        BLOCK,
        "halves + 0x00FF00FFu + (halves >> 9 & 0x00010001u)",
        "halves + 0x01000100u",
    ),
    Fault("no saturation", BLOCK, "codes -= (codes & 0x88888888u) >> 3;", ""),
    Fault(
        "sign of zero lost",
        BLOCK,
        "(float_bits(x[i]) & kSignBit))",
        "(x[i] < 0 ? kSignBit : 0u))",
    ),
    Fault("NaN blocks keep codes", BLOCK, "== kQuietNan ? 0u : ~0u", "== kQuietNan ? ~0u : ~0u"),
    Fault(
        "infinity is a number",
        BLOCK,
        "if (amax_bits >= kExponentField) return {kE8M0Nan",
        "if (amax_bits > kExponentField) return {kE8M0Nan",
    ),
    Fault(
        "counters not set to zero",
        KERNEL,
        "device::store_global(params.counters + i, 0u);",
        "device::store_global(params.counters + i, 1u);",
    ),
    Fault("a scale too coarse", BLOCK, "step < 3", "step < 1"),
    Fault("codes of E4M3 shifted", BLOCK, "(low << 1, high << 1, 0x7531)", "(low, high, 0x7531)"),
)
