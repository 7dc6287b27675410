"""mmc_quantize_run against the numpy reference of docs/spec.md, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.call import Call, Operands
from tests.gpu.check import Check
from tests.gpu.compare import assert_same_bits
from tests.gpu.layers import (
    MIXES,
    Layer,
    Order,
    Random,
    layer,
    pack_activations,
    quantized,
    random_order,
)
from tests.gpu.machine import Machine
from tests.gpu.number_types import TYPE_NAMES, BitArray, widen
from tests.gpu.operands import X_KINDS, any_operand, random_x

OUT_CHANNELS = 8
"""Quantizing does not depend on it, but for the counters."""


def assert_quantized(
    machine: Machine,
    random: Random,
    made: Layer,
    x: BitArray,
    x_type: int,
    order: Order,
    offset: int = 0,
) -> None:
    """Codes and scales of x are the reference's; counters of the tactic's tiles are zero."""
    formats = [segment.weight_format for segment in made.segments]
    weight = any_operand(random, made, made.out_channels, formats)
    operands = Operands(weight, x=x, order=order)
    call = Call(machine, made, operands, len(x), x_type, x_offset=offset)
    codes, scales = call.quantize()
    expected = quantized(widen(x, x_type), order, made)
    wanted_codes, wanted_scales = pack_activations(expected, made)
    context = f"{TYPE_NAMES[x_type]} x[{x.shape[0]}, {x.shape[1]}] + {offset}"
    assert_same_bits(scales, wanted_scales, f"scales of {context}")
    assert_same_bits(codes, wanted_codes, f"codes of {context}")


def _small(machine: Machine, random: Random, mix: str, x_type: int) -> None:
    """Every number of rows and gap that decides how the kernel reads x."""
    for rows, channels, missing, offset in (
        (1, 128, 0, 0),
        (2, 352, 0, 0),
        (3, 256, 5, 0),
        (5, 1024, 1, 0),
        (8, 96, 2, 1),
        (33, 160, 0, 1),
        (17, 640, 8, 0),
    ):
        made = layer(mix, channels, OUT_CHANNELS, missing)
        for kind in X_KINDS if rows < 6 else X_KINDS[-1:]:
            x = random_x(random, kind, rows, made.in_channels, x_type)
            assert_quantized(machine, random, made, x, x_type, random_order(random, made), offset)


def _large(machine: Machine, random: Random, mix: str, x_type: int) -> None:
    for rows, channels, missing in (
        (1, 14336, 0),
        (16, 4096, 3),
        (131, 5120, 0),
        (257, 14336, 1),
        (528, 2048, 7),
        (1057, 4096, 0),
        (4099, 1024, 1),
        # Rows that fit no block's shared memory.
        (150, 57344, 0),
    ):
        made = layer(mix, channels, OUT_CHANNELS, missing)
        x = random_x(random, X_KINDS[rows % 4], rows, made.in_channels, x_type)
        assert_quantized(machine, random, made, x, x_type, random_order(random, made))


def _every_value(machine: Machine, random: Random, mix: str, x_type: int) -> None:
    """Every 16-bit number: alone in its block, and beside a maximum that lets it be rounded."""
    values = np.arange(2**16, dtype=np.uint16)
    if machine.emulated:
        values = values[random.integers(97) :: 97]
    channels = 1024
    rows = -(-values.size // 32)
    blocks = np.resize(values, (rows, 32))
    made = layer(mix, channels, OUT_CHANNELS)
    order = np.arange(channels, dtype=np.int32)
    alone = np.zeros((rows, channels), np.uint16)
    alone[:, ::32] = blocks
    assert_quantized(machine, random, made, alone, x_type, order)
    # A maximum of the same exponent, or up to three above, and an arbitrary mantissa.
    exponent = {FLOAT16: 0x7C00, BFLOAT16: 0x7F80}[x_type]
    step = exponent & -exponent
    raised = (blocks & 0x7FFF).astype(np.int32) + random.integers(0, 4 * step, blocks.shape)
    beside = alone.copy()
    beside[:, 7::32] = np.minimum(raised, exponent - 1)
    assert_quantized(machine, random, made, beside, x_type, order)


def _outside(machine: Machine, random: Random, x_type: int) -> None:
    """Entries of the order outside 0..K-1 mean zero, whatever they are; others may come twice."""
    for rows in (1, 37):
        made = layer("micromix", 512, OUT_CHANNELS, 100)
        order = random.integers(0, made.in_channels, made.padded_channels).astype(np.int32)
        outside = random.random(order.size) < 0.1
        kinds = np.array([-1, -2, -(2**31), made.in_channels, made.in_channels + 1, 2**31 - 1])
        given = np.where(outside, random.choice(kinds, order.size), order).astype(np.int32)
        x = random_x(random, "normal", rows, made.in_channels, x_type)
        weight = any_operand(random, made, OUT_CHANNELS, [s.weight_format for s in made.segments])
        call = Call(machine, made, Operands(weight, x=x, order=given), rows, x_type)
        codes, scales = call.quantize()
        plain = np.where(outside, -1, order).astype(np.int32)
        wanted = pack_activations(quantized(widen(x, x_type), plain, made), made)
        assert_same_bits(scales, wanted[1], f"scales of {rows} rows")
        assert_same_bits(codes, wanted[0], f"codes of {rows} rows")


CHECKS = [
    *(
        Check(f"quantize/small/{mix}/{name}", partial(_small, mix=mix, x_type=x_type))
        for mix in MIXES
        for x_type, name in TYPE_NAMES.items()
    ),
    *(
        Check(
            f"quantize/large/{mix}/{name}", partial(_large, mix=mix, x_type=x_type), gpu_only=True
        )
        for mix in ("mxfp4", "mxfp8", "nvfp4", "micromix", "every_pair")
        for x_type, name in TYPE_NAMES.items()
    ),
    *(
        Check(
            f"quantize/every_value/{mix}/{TYPE_NAMES[t]}", partial(_every_value, mix=mix, x_type=t)
        )
        for mix in ("mxfp4", "e2m3", "e3m2", "mxfp8", "nvfp4")
        for t in (FLOAT16, BFLOAT16)
    ),
]

# Last of all: where a kernel reads such an entry, no later check would find a working GPU.
LAST_CHECKS = [
    Check(f"quantize/order_outside/{TYPE_NAMES[t]}", partial(_outside, x_type=t))
    for t in (FLOAT32, BFLOAT16)
]
