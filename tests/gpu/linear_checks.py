"""mmc_linear_run: the whole layer from x to y, alone, repeated, and beside other work."""

from __future__ import annotations

from functools import partial

import numpy as np

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.call import Call, Operands
from tests.gpu.check import Check
from tests.gpu.compare import (
    Reference,
    assert_same_bits,
    assert_same_numbers,
    assert_within_bound,
    reference,
)
from tests.gpu.gemm_checks import Extras, weight_formats
from tests.gpu.layers import (
    MIXES,
    Layer,
    Random,
    act_values,
    layer,
    quantized,
    random_order,
    weight_values,
)
from tests.gpu.machine import Machine
from tests.gpu.number_types import TYPE_NAMES, BitArray, narrow, widen
from tests.gpu.operands import any_operand, random_x, spoil_x

REPEATS = 20


def random_call(
    machine: Machine,
    random: Random,
    made: Layer,
    rows: int,
    types: tuple[int, int],
    extras: Extras,
    *,
    kind: str = "normal",
) -> Call:
    """A call on random x and weights; its order has -1 where the layer's x lacks channels."""
    x_type, y_type = types
    weight = any_operand(random, made, made.out_channels, weight_formats(made), (118, 124))
    bias = residual = None
    if extras.bias:
        bias = random.standard_normal(made.out_channels, np.float32)
    if extras.residual:
        residual = narrow(random.standard_normal((rows, made.out_channels), np.float32), y_type)
    x = random_x(random, kind, rows, made.in_channels, x_type)
    operands = Operands(weight, x=x, order=random_order(random, made), bias=bias, residual=residual)
    return Call(machine, made, operands, rows, x_type, y_type, in_place=extras.in_place)


def expected(call: Call, x: BitArray | None = None) -> Reference:
    """What the layer makes of its x, or of another."""
    given = call.operands
    bits = given.x if x is None else x
    assert bits is not None and given.order is not None
    act = quantized(widen(bits, call.x_type), given.order, call.layer)
    residual = None
    if given.residual is not None:
        residual = widen(given.residual, call.y_type).astype(np.float64)
    bias = None if given.bias is None else given.bias.astype(np.float64)
    return reference(
        act_values(act, call.layer), weight_values(given.weight, call.layer), bias, residual
    )


def describe(call: Call, tactic: int) -> str:
    head = call.linear.describe(call.machine.device, call.rows, tactic).split(":")[0]
    return f"M {call.rows}, N {call.layer.out_channels}, K {call.layer.in_channels}, {head}"


SMALL = ((1, 33, 256, 0), (4, 48, 352, 3), (18, 70, 160, 1), (35, 31, 192, 5), (2, 40, 2080, 0))
LARGE = (
    (1, 4096, 14336, 0),
    (5, 6144, 4096, 0),
    (16, 1023, 4096, 1),
    (64, 2048, 4096, 0),
    (333, 1001, 2048, 3),
    (1500, 768, 1024, 7),
)


def _bounded(
    machine: Machine,
    random: Random,
    mix: str,
    x_type: int,
    shapes: tuple[tuple[int, int, int, int], ...],
) -> None:
    """Within the bound by every tactic, and the same bits as its halves one after the other."""
    for i, (rows, out, channels, missing) in enumerate(shapes):
        made = layer(mix, channels, out, missing)
        made = Layer(made.in_channels, out, made.segments, 2.0**-8, 2.0**-6)
        extras = Extras(bias=i % 2 == 0, residual=i % 3 != 0, in_place=i % 3 == 1)
        types = (x_type, (x_type, BFLOAT16, FLOAT32)[i % 3])
        call = random_call(machine, random, made, rows, types, extras)
        wanted = expected(call)
        for tactic in machine.tactics:
            machine.reschedule(int(random.integers(2**32)))
            y = call.run(tactic)
            assert_within_bound(y, call.y_type, wanted, describe(call, tactic))
            call.quantize(tactic)
            if extras.in_place and call.operands.residual is not None:
                machine.memory.write(call.y.address, call.operands.residual)
            call.linear.gemm(machine.device, call.arguments)
            assert_same_bits(call.result(), y, f"halves, {describe(call, tactic)}")


def _nan_rows(machine: Machine, random: Random, x_type: int) -> None:
    """Rows of x with NaN or infinity answer NaN, the others what they did without."""
    for rows, mix in ((9, "micromix"), (40, "every_pair"), (2, "nvfp4")):
        made = layer(mix, 320, 36, 2)
        call = random_call(machine, random, made, rows, (x_type, x_type), Extras(bias=True))
        before = {tactic: call.run(tactic) for tactic in machine.tactics}
        assert call.operands.x is not None
        spoiled = sorted(int(i) for i in random.choice(rows, max(rows // 4, 1), replace=False))
        spoil_x(random, call.operands.x, x_type, spoiled)
        machine.memory.write(int(call.arguments.x or 0), call.operands.x)
        sound = np.setdiff1d(np.arange(rows), spoiled)
        for tactic in machine.tactics:
            y = call.run(tactic)
            context = f"{mix}, {describe(call, tactic)}"
            assert np.isnan(widen(y[spoiled], x_type)).all(), f"{context}: rows {spoiled}"
            assert_same_bits(y[sound], before[tactic][sound], context)


def _repeated(machine: Machine, random: Random, mix: str) -> None:
    """The same bits in every run, whatever the workspace held before and the threads' order is."""
    shapes = (
        ((3, 48, 2080),)
        if machine.emulated
        else ((3, 4096, 4096), (16, 512, 14336), (300, 1000, 2048))
    )
    for rows, out, channels in shapes:
        call = random_call(
            machine, random, layer(mix, channels, out), rows, (BFLOAT16, FLOAT32), Extras(bias=True)
        )
        for tactic in machine.tactics:
            first = call.run(tactic)
            for run in range(1, REPEATS if not machine.emulated else 4):
                machine.reschedule(int(random.integers(2**32)))
                call.refresh(poison=(0x00, 0xFF, 0x7F, 0x01)[run % 4])
                call.enqueue(tactic)
                assert_same_bits(call.result(), first, f"run {run}, {describe(call, tactic)}")


def _rows_apart(machine: Machine, random: Random, mix: str) -> None:
    """A row's answer does not depend on what else is in the batch, with one tactic and split."""
    made = layer(mix, 512, 40)
    rows = 24
    call = random_call(machine, random, made, rows, (FLOAT16, FLOAT16), Extras())
    assert call.operands.x is not None
    turned = np.roll(call.operands.x, 5, axis=0)
    for tactic in machine.tactics:
        y = call.run(tactic)
        machine.memory.write(int(call.arguments.x or 0), turned)
        assert_same_numbers(
            call.run(tactic), np.roll(y, 5, axis=0), FLOAT16, describe(call, tactic)
        )
        machine.memory.write(int(call.arguments.x or 0), call.operands.x)


CHECKS = [
    *(
        Check(
            f"linear/bounded/{mix}/{name}", partial(_bounded, mix=mix, x_type=x_type, shapes=SMALL)
        )
        for mix in MIXES
        for x_type, name in TYPE_NAMES.items()
    ),
    *(
        Check(
            f"linear/bounded_large/{mix}/{name}",
            partial(_bounded, mix=mix, x_type=x_type, shapes=LARGE),
            gpu_only=True,
        )
        for mix in ("mxfp4", "mxfp8", "micromix", "every_pair")
        for x_type, name in TYPE_NAMES.items()
    ),
    *(
        Check(f"linear/nan_rows/{name}", partial(_nan_rows, x_type=x_type))
        for x_type, name in TYPE_NAMES.items()
    ),
    *(
        Check(f"linear/repeated/{mix}", partial(_repeated, mix=mix))
        for mix in ("micromix", "every_pair")
    ),
    *(
        Check(f"linear/rows_apart/{mix}", partial(_rows_apart, mix=mix))
        for mix in ("micromix", "nvfp4")
    ),
]
