"""A layer of the kernel library on a machine, with its arguments in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.machine import ALIGNMENT, Block, Enqueue, Machine
from mmcompile.kernels import (
    FLOAT32,
    Arguments,
    Device,
    KernelLibrary,
    Linear,
    LinearInfo,
    LinearSegment,
    WorkspaceLayout,
)

Bytes = npt.NDArray[np.uint8]
MXFP4, E2M3, E3M2, MXFP8, NVFP4 = range(5)
"""Format ids of docs/spec.md."""
MIXES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mxfp4": ((8, MXFP4, MXFP4),),
    "mxfp6_e2m3": ((8, E2M3, E2M3),),
    "mxfp6_e3m2": ((8, E3M2, E3M2),),
    "mxfp8": ((8, MXFP8, MXFP8),),
    "nvfp4": ((8, NVFP4, NVFP4),),
    "a8w4": ((8, MXFP8, MXFP4),),
    "a8w6": ((8, MXFP8, E3M2),),
    "a4w8": ((8, MXFP4, MXFP8),),
    "micromix": ((5, MXFP4, MXFP4), (2, E3M2, E3M2), (1, MXFP8, MXFP8)),
    "everything": (
        (1, NVFP4, NVFP4),
        (2, MXFP4, MXFP4),
        (1, E2M3, E2M3),
        (1, E3M2, E3M2),
        (1, MXFP8, MXFP8),
        (1, MXFP8, MXFP4),
        (1, E3M2, E2M3),
    ),
}
"""Eighths of K, activation and weight format of each segment, by name."""
POISON = 0xFF
"""Filled with it all floats are NaN."""


@dataclass(frozen=True)
class Place:
    """Where layers run: a machine, the kernel library and its device."""

    machine: Machine
    library: KernelLibrary
    device: Device

    @property
    def tactics(self) -> tuple[str, ...]:
        """Names of the GEMM's tiles; tactic i + 1 is entry i."""
        return self.library.tactics(self.device)


@dataclass(frozen=True)
class LayerShape:
    """A layer without its weights."""

    in_channels: int
    out_channels: int
    segments: tuple[LinearSegment, ...]
    act_tensor_scale: float = 1.0
    weight_tensor_scale: float = 1.0

    @property
    def padded_channels(self) -> int:
        """K_pad."""
        return sum(segment.channels for segment in self.segments)

    def create(self, library: KernelLibrary) -> Linear:
        """The library's layer."""
        return library.linear(
            self.in_channels,
            self.out_channels,
            self.segments,
            self.act_tensor_scale,
            self.weight_tensor_scale,
        )


def mixed_segments(mix: str, channels: int) -> tuple[LinearSegment, ...]:
    """A mix's segments over a multiple of 32 channels, in runs of 32; the last takes the rest."""
    parts = MIXES[mix]
    lengths = [channels * eighths // 8 // 32 * 32 for eighths, _, _ in parts]
    lengths[-1] += channels - sum(lengths)
    return tuple(
        LinearSegment(length, act, weight, 1.75)
        for length, (_, act, weight) in zip(lengths, parts, strict=True)
        if length
    )


@dataclass(frozen=True)
class Constants:
    """Packed constants: order int32[K_pad], weight [N, bytes], scales [words, N, 4], bias [N]."""

    order: npt.NDArray[np.int32]
    weight: Bytes
    scales: Bytes
    bias: npt.NDArray[np.float32] | None = None


def random_constants(random: np.random.Generator, shape: LayerShape, info: LinearInfo) -> Constants:
    """Codes and scales of ordinary size, none of them NaN: for timing, not for values."""
    rows = shape.out_channels
    weight = random.integers(0, 256, (rows, info.weight_row_bytes), np.uint8)
    scales = random.integers(118, 126, (info.weight_scale_words, rows, 4), np.uint8)
    order = random.permutation(shape.padded_channels).astype(np.int32)
    # Without the highest exponent bit no code of E4M3 is NaN.
    return Constants(order, weight & np.uint8(0xBF), scales)


class DeviceLayer:
    """A layer in memory, for some rows; results and workspace are poisoned first.

    Args:
        place: where.
        shape: the layer.
        constants: its weights.
        x: bits of x[rows, K]: uint32 of fp32, uint16 of others.
        types: `MmcType` of x and y.
        copies: of the constants, of x and of the workspace, so that they outgrow a cache.

    Raises:
        MemoryError: they do not fit.
        KernelError: the library cannot run such a layer.
    """

    def __init__(
        self,
        place: Place,
        shape: LayerShape,
        constants: Constants,
        x: npt.NDArray[np.generic],
        types: tuple[int, int],
        copies: int = 1,
    ) -> None:
        self.place, self.shape, self.rows = place, shape, len(x)
        self.linear = shape.create(place.library)
        self._kept: list[Block] = []
        self._y_size = self.rows * shape.out_channels * (4 if types[1] == FLOAT32 else 2)
        self._y = self._allocate(self._y_size)
        bias = None if constants.bias is None else self._upload(constants.bias)
        size = self.linear.workspace_bytes(place.device, self.rows)
        order = self._upload(constants.order)
        self.arguments = [
            Arguments(
                rows=self.rows,
                x_type=types[0],
                y_type=types[1],
                x=self._upload(x),
                order=order,
                weight=self._upload(constants.weight),
                scales=self._upload(constants.scales),
                bias=bias,
                y=self._y,
                workspace=self._allocate(size),
                workspace_bytes=size,
            )
            for _ in range(copies)
        ]

    def _allocate(self, size: int) -> int:
        block = self.place.machine.allocate(max(size, ALIGNMENT))
        self._kept.append(block)
        self.place.machine.fill(block.address, block.size, POISON)
        return block.address

    def _upload(self, array: npt.NDArray[np.generic]) -> int:
        address = self._allocate(array.nbytes)
        self.place.machine.write(address, array)
        return address

    @property
    def layout(self) -> WorkspaceLayout:
        """Where quantizing leaves its results."""
        return self.linear.workspace_layout(self.place.device, self.rows)

    def calls(self, function: str, tactic: int = 0) -> list[Enqueue]:
        """`run`, `quantize` or `gemm`, one call per copy."""
        return [self._call(arguments, function, tactic) for arguments in self.arguments]

    def _call(self, arguments: Arguments, function: str, tactic: int) -> Enqueue:
        def enqueue(stream: int | None) -> None:
            arguments.stream, arguments.tactic = stream, tactic
            getattr(self.linear, function)(self.place.device, arguments)

        return enqueue

    def once(self, function: str, tactic: int = 0) -> None:
        """One call on the first copy, on poisoned results; done when it returns."""
        machine = self.place.machine
        machine.fill(self._y, self._y_size, POISON)
        self.calls(function, tactic)[0](None)
        machine.synchronize()

    def result(self) -> Bytes:
        """The bytes of y."""
        return self.place.machine.read(self._y, self._y_size)

    def quantized(self) -> tuple[Bytes, Bytes]:
        """Codes uint8[M, row_bytes] and scales uint8[words, M, 4] that quantizing has left."""
        info, layout = self.linear.info, self.layout
        start = self.arguments[0].workspace
        read = self.place.machine.read
        codes = read(start + layout.codes, self.rows * info.act_row_bytes)
        scales = read(start + layout.scales, info.act_scale_words * self.rows * 4)
        return codes.reshape(self.rows, -1), scales.reshape(-1, self.rows, 4)


def open_place(machine: Machine, library: KernelLibrary, ordinal: int = 0) -> Place:
    """The library's kernels on a machine's device.

    Raises:
        KernelError: there are none for it.
    """
    return Place(machine, library, library.open_device(ordinal))


def weight_bytes(layer: DeviceLayer) -> int:
    """Bytes of one copy of the weights and their scales."""
    info = layer.linear.info
    return int(layer.shape.out_channels * (info.weight_row_bytes + 4 * info.weight_scale_words))
