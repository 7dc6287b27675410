"""mmc_quantize_run against the numpy reference of docs/spec.md, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np

from mmcompile.cuda.calls import Inputs
from mmcompile.cuda.number_types import NUMBER_TYPES
from mmcompile.doctor.checks import Size, quantize, same_quantized
from mmcompile.doctor.operands import random_x
from mmcompile.doctor.trial import Check, Trial
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.mixes import MIXES, layer

N = 8
"""Quantizing does not depend on it, but for the counters."""
# Every number of rows and gap that decides how the kernel reads x.
SMALL = (
    Size(1, N, 128),
    Size(2, N, 352),
    Size(3, N, 256, missing=5),
    Size(5, N, 1024, missing=1),
    Size(8, N, 96, missing=2, offset=1),
    Size(33, N, 160, offset=1),
    Size(17, N, 640, missing=8),
)
LARGE = (
    Size(1, N, 14336),
    Size(16, N, 4096, missing=3),
    Size(131, N, 5120),
    Size(257, N, 14336, missing=1),
    Size(528, N, 2048, missing=7),
    Size(1057, N, 4096),
    Size(4099, N, 1024, missing=1),
    # Rows that fit no block's shared memory.
    Size(150, N, 57344),
)


def _every_value(trial: Trial, mix: str, x_type: int) -> None:
    """Every 16-bit number: alone in its block, and beside a maximum that lets it be rounded."""
    random, types = trial.random, (x_type, x_type)
    values = np.arange(2**16, dtype=np.uint16)
    if trial.place.emulated:
        values = values[random.integers(97) :: 97]
    channels = 1024
    rows = -(-values.size // 32)
    blocks = np.resize(values, (rows, 32))
    shape = layer(mix, channels, N)
    order = np.arange(channels, dtype=np.int32)
    alone = np.zeros((rows, channels), np.uint16)
    alone[:, ::32] = blocks
    same_quantized(trial, shape, Inputs(alone, types), order)
    # A maximum of the same exponent, or up to three above, and an arbitrary mantissa.
    exponent = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}[x_type]
    step = exponent & -exponent
    raised = (blocks & 0x7FFF).astype(np.int32) + random.integers(0, 4 * step, blocks.shape)
    beside = alone.copy()
    beside[:, 7::32] = np.minimum(raised, exponent - 1)
    same_quantized(trial, shape, Inputs(beside, types), order)


def _outside(trial: Trial, x_type: int) -> None:
    """Entries of the order outside 0..K-1 mean zero, whatever they are; others may come twice."""
    random = trial.random
    for rows in (1, 37):
        shape = layer("micromix", 512, N, 100)
        order = random.integers(0, shape.in_channels, shape.padded_channels).astype(np.int32)
        outside = random.random(order.size) < 0.1
        kinds = np.array([-1, -2, -(2**31), shape.in_channels, shape.in_channels + 1, 2**31 - 1])
        given = np.where(outside, random.choice(kinds, order.size), order).astype(np.int32)
        x = random_x(random, "normal", rows, shape.in_channels, x_type)
        same_quantized(trial, shape, Inputs(x, (x_type, x_type)), given)


CHECKS = [
    *(
        Check(
            f"quantize/small/{mix}/{kind.name}",
            partial(quantize, split=split, x_type=x_type, sizes=SMALL),
        )
        for mix, split in MIXES.items()
        for x_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(
            f"quantize/large/{mix}/{kind.name}",
            partial(quantize, split=MIXES[mix], x_type=x_type, sizes=LARGE),
            gpu_only=True,
        )
        for mix in ("mxfp4", "mxfp8", "nvfp4", "micromix", "every_pair")
        for x_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(
            f"quantize/every_value/{mix}/{NUMBER_TYPES[t].name}",
            partial(_every_value, mix=mix, x_type=t),
        )
        for mix in ("mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8", "nvfp4")
        for t in (FLOAT16, BFLOAT16)
    ),
]

# Last of all: where a kernel reads such an entry, no later check would find a working GPU.
LAST_CHECKS = [
    Check(f"quantize/order_outside/{NUMBER_TYPES[t].name}", partial(_outside, x_type=t))
    for t in (FLOAT32, BFLOAT16)
]
