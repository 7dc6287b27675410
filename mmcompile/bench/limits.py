"""The time that no kernel can beat: the roofline of a linear layer on a GPU. It is a model.

The larger of bytes / bandwidth and FLOP / rate: x is read and y written once in 16 bits, weights
and their scales are read once, and the tensor cores are always busy at the boost clock. Neither
launches nor the quantization of x cost anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmcompile.formats import MXFP4, MXFP6_E3M2, MXFP8, NVFP4
from mmcompile.plan import Segment
from mmcompile.targets.target import FormatPair, Gpu, Kind

ACTIVATION_BYTES = 2
"""Of an element of x and y."""


@dataclass(frozen=True)
class Part:
    """A run of input channels.

    Attributes:
        channels: its length.
        instruction: what multiplies it.
        bits: of a weight, scales included.
    """

    channels: int
    instruction: Kind
    bits: float


@dataclass(frozen=True)
class Layer:
    """A linear layer, or several that read the same tensor.

    Attributes:
        name: of the group.
        nodes: names of the model's nodes in it.
        in_channels: K.
        out_channels: N of all nodes together.
        segments: its split in the plan; empty where it stays in FP16 in every variant.
    """

    name: str
    nodes: tuple[str, ...]
    in_channels: int
    out_channels: int
    segments: tuple[Segment, ...]

    @property
    def kept(self) -> bool:
        """Whether it is never quantized."""
        return not self.segments


@dataclass(frozen=True)
class Limit:
    """Modelled seconds, and what bounds them: `memory` or `compute`."""

    seconds: float
    bound: str


FP16, FP8, MIXED = "FP16", "FP8", "MicroMix"
_UNIFORM = {"MXFP8": MXFP8.name, "MXFP6": MXFP6_E3M2.name, "NVFP4": NVFP4.name, "MXFP4": MXFP4.name}
VARIANTS = (FP16, FP8, *_UNIFORM, MIXED)
"""In the order in which tables show them."""

EXAMPLE_SHARES = ((MXFP6_E3M2.name, 8), (MXFP8.name, 8))
"""Formats and one over the share of K that the example split gives them; MXFP4 has the rest."""


def example_segments(in_channels: int) -> tuple[Segment, ...]:
    """3/4 MXFP4, 1/8 MXFP6 and 1/8 MXFP8 of K padded to 32, in runs of 32: about 5 bits.

    Not a plan: a layer's own split follows from its activations.
    """
    padded = -(-in_channels // 32) * 32
    wider = [(name, padded // (32 * one_over) * 32) for name, one_over in EXAMPLE_SHARES]
    rest = padded - sum(length for _, length in wider)
    lengths = [(MXFP4.name, rest), *wider]
    return tuple(Segment(length, name, name, 2.0, 2.0) for name, length in lengths if length)


def parts_of(layer: Layer, variant: str) -> tuple[Part, ...]:
    """The channels of a layer in a variant of the model."""
    if layer.kept or variant == FP16:
        return (Part(layer.in_channels, Kind.FP16, 16),)
    if variant == FP8:
        return (Part(layer.in_channels, Kind.FP8, 8),)
    if variant == MIXED:
        return tuple(
            Part(segment.channels, pair.kind, pair.bits)
            for segment in layer.segments
            for pair in (FormatPair(segment.act_format, segment.weight_format),)
        )
    name = _UNIFORM[variant]
    pair = FormatPair(name, name)
    return (Part(layer.in_channels, pair.kind, pair.bits),)


def layer_limit(gpu: Gpu, layer: Layer, parts: Sequence[Part], rows: int) -> Limit | None:
    """The limit of a layer for so many rows of x; None where a figure of the GPU is not known."""
    if gpu.bandwidth is None:
        return None
    compute = weight_bits = 0.0
    for part in parts:
        flops = gpu.flops(part.instruction)
        if flops is None:
            return None
        compute += 2.0 * rows * part.channels * layer.out_channels / flops
        weight_bits += part.bits * part.channels * layer.out_channels
    moved = weight_bits / 8 + ACTIVATION_BYTES * rows * (layer.in_channels + layer.out_channels)
    memory = moved / gpu.bandwidth.value
    return Limit(max(memory, compute), "compute" if compute > memory else "memory")
