"""Splits of K: those of the self-test, and two with many segments."""

from __future__ import annotations

import itertools
from functools import partial

from mmcompile.cuda import layers
from mmcompile.cuda.layers import E2M3, E3M2, MXFP4, MXFP8, NVFP4, SEGMENT_STEP, LayerShape
from mmcompile.doctor.checks import Size, Split
from mmcompile.kernels import LinearSegment


def _every_pair(channels: int) -> tuple[LinearSegment, ...]:
    """All 16 MX pairs and NVFP4, interleaved; odd numbers of blocks; the last takes the rest."""
    pairs = list(itertools.product(range(4), repeat=2))
    pairs.insert(5, (NVFP4, NVFP4))
    pairs.insert(11, (NVFP4, NVFP4))
    lengths = itertools.cycle((32, 96, 64, 160))
    found = [(length, a, w) for (a, w), length in zip(pairs, lengths, strict=False)]
    rest = channels - sum(length for length, _, _ in found)
    return layers.segments_of([*found, (max(rest, SEGMENT_STEP), MXFP8, MXFP4)])


def _thirty_two(channels: int) -> tuple[LinearSegment, ...]:
    """As many segments as the library takes."""
    length = max(channels // 32 // SEGMENT_STEP, 1) * SEGMENT_STEP
    kinds = ((MXFP4, MXFP4), (NVFP4, NVFP4), (E2M3, MXFP4), (MXFP8, E3M2))
    return layers.segments_of((length, *kinds[i * i % 7 % 4]) for i in range(32))


MIXES: dict[str, Split] = {
    **{mix: partial(layers.mixed_segments, mix) for mix in layers.MIXES},
    "every_pair": _every_pair,
    "thirty_two": _thirty_two,
}


def layer(mix: str, channels: int, out_channels: int, missing: int = 0) -> LayerShape:
    """A layer of a mix, whose x has `missing` channels less than the segments."""
    return Size(1, out_channels, channels, missing).shape(MIXES[mix], 2.0**-5, 2.0**3)
