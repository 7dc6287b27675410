"""Layers of the kernel library: how K is split into segments, and where they run."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from mmcompile import formats
from mmcompile.cuda.machine import Machine
from mmcompile.kernels import Device, KernelLibrary, Linear, LinearSegment

MXFP4, E2M3, E3M2, MXFP8, NVFP4 = (fmt.id for fmt in formats.BLOCK_FORMATS.values())
"""Format ids of docs/spec.md."""
SEGMENT_STEP = 32
"""Channels of a segment are a multiple of it."""
MIXES: dict[str, tuple[tuple[int, int, int], ...]] = {
    **{name: ((8, fmt.id, fmt.id),) for name, fmt in formats.BLOCK_FORMATS.items()},
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

    @property
    def emulated(self) -> bool:
        """Whether the device is the CPU, a thousand times slower."""
        return hasattr(self.library.functions, "mmc_emulator_configure")

    def reschedule(self, seed: int) -> None:
        """Lets the emulator run threads in another order; GPUs do so by themselves."""
        if self.emulated:
            self.library.functions.mmc_emulator_configure(
                ctypes.c_uint64(seed), 2, self.device.multiprocessors
            )


def open_place(machine: Machine, library: KernelLibrary, ordinal: int = 0) -> Place:
    """The library's kernels on a machine's device.

    Raises:
        KernelError: there are none for it.
    """
    return Place(machine, library, library.open_device(ordinal))


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
        """The library's layer.

        Raises:
            KernelError: the kernels cannot run such a layer.
        """
        return library.linear(
            self.in_channels,
            self.out_channels,
            self.segments,
            self.act_tensor_scale,
            self.weight_tensor_scale,
        )


def segments_of(parts: Iterable[tuple[int, int, int]]) -> tuple[LinearSegment, ...]:
    """Segments of (channels, activation format, weight format), under various thresholds."""
    thresholds = itertools.cycle((1.75, 2.0, 1.5, 1.875, 1.0))
    return tuple(
        LinearSegment(*part, threshold)
        for part, threshold in zip(parts, thresholds, strict=False)
        if part[0]
    )


def mixed_segments(mix: str, channels: int) -> tuple[LinearSegment, ...]:
    """A mix's segments over a multiple of 32 channels, in runs of 32; the last takes the rest."""
    parts = MIXES[mix]
    lengths = [channels * eighths // 8 // SEGMENT_STEP * SEGMENT_STEP for eighths, _, _ in parts]
    lengths[-1] += channels - sum(lengths)
    return segments_of(
        (length, act, weight) for length, (_, act, weight) in zip(lengths, parts, strict=True)
    )
