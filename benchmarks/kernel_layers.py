"""Layers for the kernels' benchmark: splits of K, and device memory for calls on many copies.

Weights are random codes and scales of ordinary size: the time of a kernel does not depend on them,
and nothing here looks at the results (tests/gpu does).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.kernel_timing import Clock, Enqueue
from mmcompile.kernels import (
    BFLOAT16,
    FLOAT16,
    Arguments,
    Device,
    KernelLibrary,
    Linear,
    LinearSegment,
)

MXFP4, E2M3, E3M2, MXFP8, NVFP4 = range(5)
MIXES: dict[str, tuple[tuple[float, int, int], ...]] = {
    "micromix": ((0.625, MXFP4, MXFP4), (0.25, E3M2, E3M2), (0.125, MXFP8, MXFP8)),
    "mxfp4": ((1, MXFP4, MXFP4),),
    "mxfp8": ((1, MXFP8, MXFP8),),
    "nvfp4": ((1, NVFP4, NVFP4),),
    "a8w4": ((1, MXFP8, MXFP4),),
}
"""Shares of K, activation and weight formats; micromix has 5 bits and a scale's quarter."""
_BITS = {MXFP4: 4, E2M3: 6, E3M2: 6, MXFP8: 8, NVFP4: 4}
_ALIGNMENT = 256


@dataclass(frozen=True)
class Workshop:
    """What every benchmark needs: the library, its device, the clock."""

    library: KernelLibrary
    device: Device
    clock: Clock

    def bytes(self, *shape: int) -> Any:
        """uint8 of that shape, aligned to 256 bytes."""
        import torch

        size = 1
        for length in shape:
            size *= length
        room = torch.empty(size + _ALIGNMENT, dtype=torch.uint8, device=self.clock.device)
        start = -room.data_ptr() % _ALIGNMENT
        return room[start : start + size].view(shape)


def segments_of(mix: str, channels: int) -> list[LinearSegment]:
    """The mix's segments, in runs of 32 channels; the first takes what is left."""
    parts = MIXES[mix]
    lengths = [int(channels * share) // 32 * 32 for share, _, _ in parts]
    lengths[0] += channels - sum(lengths)
    return [
        LinearSegment(length, act, weight, 1.75)
        for length, (_, act, weight) in zip(lengths, parts, strict=True)
    ]


def instruction_shares(mix: str) -> tuple[float, float]:
    """Shares of K that a 4-bit instruction and the 8-bit one take."""
    four = sum(share for share, act, weight in MIXES[mix] if _BITS[act] == _BITS[weight] == 4)
    return four, 1 - four


@dataclass
class Bench:
    """A layer on the device, with several copies of its weights.

    Attributes:
        mix: a name in MIXES.
        channels: K, a multiple of 32.
        out_channels: N.
        copies: of the weights.
    """

    shop: Workshop
    mix: str
    channels: int
    out_channels: int
    copies: int
    linear: Linear = field(init=False)

    def __post_init__(self) -> None:
        import torch

        shop, segments = self.shop, segments_of(self.mix, self.channels)
        self.linear = shop.library.linear(self.channels, self.out_channels, segments)
        info = self.linear.info
        self.weights = shop.bytes(self.copies, self.out_channels, int(info.weight_row_bytes))
        # Without the highest exponent bit no code of E4M3 is NaN.
        self.weights.random_(0, 256).bitwise_and_(0xBF)
        self.scales = shop.bytes(self.copies, int(info.weight_scale_words), self.out_channels, 4)
        # About 1 as E8M0, and large but not NaN as E4M3.
        self.scales.random_(118, 126)
        self.order = shop.bytes(4 * self.channels).view(torch.int32)
        self.order.copy_(torch.randperm(self.channels, device=shop.clock.device))

    @property
    def weight_bytes(self) -> int:
        """Bytes of one copy of the weights and their scales."""
        return int(self.weights[0].numel() + self.scales[0].numel())

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.weight_bytes / self.channels / self.out_channels


class Calls:
    """Calls of a bench for some rows of x, one per copy of the weights.

    Args:
        bench: the layer.
        rows: M.
        number_type: of x and y, `FLOAT16` or `BFLOAT16`.
        own_buffers: every call has its own x and workspace; else all share one.
    """

    def __init__(
        self, bench: Bench, rows: int, number_type: int = BFLOAT16, *, own_buffers: bool = False
    ) -> None:
        import torch

        shop = bench.shop
        self.bench, self.rows = bench, rows
        self.count = bench.copies
        buffers = self.count if own_buffers else 1
        kind = torch.float16 if number_type == FLOAT16 else torch.bfloat16
        self.x = torch.randn(
            (buffers, rows, bench.channels), dtype=torch.float32, device=shop.clock.device
        ).to(kind)
        self.y = torch.empty((rows, bench.out_channels), dtype=kind, device=shop.clock.device)
        size = bench.linear.workspace_bytes(shop.device, rows)
        self.layout = bench.linear.workspace_layout(shop.device, rows)
        self.workspaces = shop.bytes(buffers, size)
        self.arguments = [
            self._arguments(i, i % buffers, number_type, size) for i in range(self.count)
        ]

    def _arguments(self, copy: int, buffer: int, number_type: int, size: int) -> Arguments:
        bench = self.bench
        return Arguments(
            rows=self.rows,
            x_type=number_type,
            y_type=number_type,
            x=self.x[buffer].data_ptr(),
            order=bench.order.data_ptr(),
            weight=bench.weights[copy].data_ptr(),
            scales=bench.scales[copy].data_ptr(),
            y=self.y.data_ptr(),
            workspace=self.workspaces[buffer].data_ptr(),
            workspace_bytes=size,
        )

    def whole(self, tactic: int = 0) -> list[Enqueue]:
        """mmc_linear_run."""
        return [self._call(arguments, "run", tactic) for arguments in self.arguments]

    def quantize(self) -> list[Enqueue]:
        """mmc_quantize_run."""
        return [self._call(arguments, "quantize", 0) for arguments in self.arguments]

    def gemm(self, tactic: int = 0) -> list[Enqueue]:
        """mmc_gemm_run, on what a `quantize` of before left; `clear_counters` before each round."""
        return [self._call(arguments, "gemm", tactic) for arguments in self.arguments]

    def _call(self, arguments: Arguments, function: str, tactic: int) -> Enqueue:
        # Of this object's method, so that the buffers live as long as the call.
        return partial(self._enqueue, arguments, function, tactic)

    def _enqueue(
        self, arguments: Arguments, function: str, tactic: int, stream: int | None
    ) -> None:
        arguments.stream, arguments.tactic = stream, tactic
        getattr(self.bench.linear, function)(self.bench.shop.device, arguments)

    def quantize_now(self) -> None:
        """Quantizes into every workspace."""
        for enqueue in self.quantize():
            enqueue(None)

    def clear_counters(self) -> None:
        """Zeroes the counters of all workspaces: a GEMM alone leaves them used."""
        self.workspaces[:, self.layout.counters : self.layout.partials].zero_()
