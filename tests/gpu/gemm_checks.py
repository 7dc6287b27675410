"""mmc_gemm_run on random codes against a float64 product of the values that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32, LinearSegment
from tests.gpu.call import Call, Operands
from tests.gpu.check import Check
from tests.gpu.compare import (
    Reference,
    assert_same_numbers,
    assert_within_bound,
    reference,
)
from tests.gpu.layers import (
    MIXES,
    Layer,
    Random,
    act_values,
    layer,
    segments_of,
    weight_values,
)
from tests.gpu.machine import Machine
from tests.gpu.number_types import TYPE_NAMES, narrow, widen
from tests.gpu.operands import EXACT_UNIT, any_operand, exact_operand, spoil_rows


@dataclass(frozen=True)
class Extras:
    """What is added to the product."""

    bias: bool = False
    residual: bool = False
    in_place: bool = False


PLAIN = Extras()
EVERYTHING = (PLAIN, Extras(bias=True), Extras(residual=True), Extras(True, True, True))


def act_formats(made: Layer) -> list[int]:
    return [segment.act_format for segment in made.segments]


def weight_formats(made: Layer) -> list[int]:
    return [segment.weight_format for segment in made.segments]


def prepare(
    machine: Machine,
    random: Random,
    made: Layer,
    rows: int,
    y_type: int,
    extras: Extras,
    *,
    exact: bool,
) -> tuple[Call, Reference]:
    """A call with operands of its own, and what it should answer."""
    make = exact_operand if exact else any_operand
    act = make(random, made, rows, act_formats(made))
    weight = make(random, made, made.out_channels, weight_formats(made))
    x_hat, w_hat = act_values(act, made), weight_values(weight, made)
    bias = residual = None
    size = 64.0 if exact else float(np.abs(x_hat[:8] @ w_hat[:8].T).max(initial=0))
    if extras.bias:
        bias = (random.integers(-8, 9, made.out_channels) / 8 * size).astype(np.float32)
    if extras.residual:
        residual = narrow(random.integers(-8, 9, (rows, made.out_channels)) / 8 * size, y_type)
    operands = Operands(weight, act=act, bias=bias, residual=residual)
    call = Call(machine, made, operands, rows, FLOAT32, y_type, in_place=extras.in_place)
    wanted = reference(
        x_hat,
        w_hat,
        None if bias is None else bias.astype(np.float64),
        None if residual is None else widen(residual, y_type).astype(np.float64),
    )
    return call, wanted


def scaled_for(y_type: int, made: Layer) -> Layer:
    """fp16 has less range: NVFP4's tensor scales are made smaller."""
    factor = 2.0**-6 if y_type == FLOAT16 else 1.0
    return Layer(made.in_channels, made.out_channels, made.segments, made.act_tensor_scale * factor)


def _describe(call: Call, tactic: int) -> str:
    head = call.linear.describe(call.machine.device, call.rows, tactic).split(", modelled")[0]
    return f"M {call.rows}, N {call.layer.out_channels}, K {call.layer.padded_channels}, {head}"


SMALL_SHAPES = ((1, 33, 256), (7, 70, 288), (16, 64, 128), (33, 129, 96), (65, 40, 160))
SPLIT_SHAPES = ((3, 32, 2080), (20, 17, 1568), (2, 40, 6176))
LARGE_SHAPES = (
    (1, 4096, 4096),
    (2, 6144, 4096),
    (8, 1001, 14336),
    (13, 257, 2048),
    (16, 4096, 14336),
    (17, 640, 1024),
    (100, 2050, 4096),
    (129, 384, 352),
    (513, 1000, 1024),
    (1000, 777, 2048),
    (2049, 1031, 512),
)


def _bounded(machine: Machine, random: Random, mix: str, y_type: int) -> None:
    """Any codes, short K, where the bound is tight."""
    for i, (rows, out, channels) in enumerate(SMALL_SHAPES):
        made = scaled_for(y_type, layer(mix, channels, out))
        call, wanted = prepare(
            machine, random, made, rows, y_type, EVERYTHING[(i + y_type) % 4], exact=False
        )
        for tactic in machine.tactics:
            machine.reschedule(int(random.integers(2**32)))
            assert_within_bound(call.gemm(tactic), y_type, wanted, _describe(call, tactic))


def _exact(
    machine: Machine,
    random: Random,
    mix: str,
    y_type: int,
    shapes: tuple[tuple[int, int, int], ...],
) -> None:
    """Sums that no order and no truncation changes: y is the exact one, rounded once."""
    for i, (rows, out, channels) in enumerate(shapes):
        made = layer(mix, channels, out)
        made = Layer(made.in_channels, out, made.segments)
        extras = EVERYTHING[(i + y_type) % 4]
        call, wanted = prepare(machine, random, made, rows, y_type, extras, exact=True)
        most = wanted.magnitude.max() / EXACT_UNIT
        assert most < 2**24, f"the operands of this check are too large: {most} units"
        bits = narrow(wanted.exact, y_type)
        for tactic in machine.tactics:
            machine.reschedule(int(random.integers(2**32)))
            assert_same_numbers(call.gemm(tactic), bits, y_type, _describe(call, tactic))


def _large_bounded(machine: Machine, random: Random, mix: str) -> None:
    for i, (rows, out, channels) in enumerate(LARGE_SHAPES):
        y_type = (FLOAT32, BFLOAT16)[i % 2]
        made = layer(mix, channels, out)
        call, wanted = prepare(machine, random, made, rows, y_type, EVERYTHING[i % 4], exact=False)
        for tactic in machine.tactics:
            assert_within_bound(call.gemm(tactic), y_type, wanted, _describe(call, tactic))


def _extreme_scales(machine: Machine, random: Random, act_format: int, weight_format: int) -> None:
    """Scale bytes at the ends of their range, whose products are ordinary numbers."""
    made = Layer(256, 48, (LinearSegment(256, act_format, weight_format),))
    for low in (0, 3, 60, 190, 244):
        weight_range = (low, low + 4)
        act_range = (min(250 - low, 250), min(254 - low, 254) + 1)
        act = any_operand(random, made, 20, [act_format], act_range)
        weight = any_operand(random, made, 48, [weight_format], weight_range)
        wanted = reference(act_values(act, made), weight_values(weight, made))
        call = Call(machine, made, Operands(weight, act=act), 20)
        for tactic in machine.tactics:
            context = f"weight scales {weight_range}, {_describe(call, tactic)}"
            assert_within_bound(call.gemm(tactic), FLOAT32, wanted, context)


def _nan_rows(machine: Machine, random: Random, mix: str) -> None:
    """A NaN block makes its row NaN and leaves every other row what it was, bit for bit."""
    for rows, out, channels in ((9, 40, 320), (70, 33, 192)):
        made = layer(mix, channels, out)
        call, wanted = prepare(machine, random, made, rows, BFLOAT16, PLAIN, exact=False)
        before = {tactic: call.gemm(tactic) for tactic in machine.tactics}
        assert call.operands.act is not None
        spoiled = sorted(int(i) for i in random.choice(rows, rows // 4, replace=False))
        spoil_rows(random, list(call.operands.act), spoiled)
        sound = np.setdiff1d(np.arange(rows), spoiled)
        for tactic in machine.tactics:
            y = call.gemm(tactic)
            context = _describe(call, tactic)
            assert np.isnan(widen(y[spoiled], BFLOAT16)).all(), f"{context}: rows {spoiled}"
            assert_same_numbers(y[sound], before[tactic][sound], BFLOAT16, context)
            assert_within_bound(y[sound], BFLOAT16, wanted.rows(sound), context)


def _rounding(machine: Machine, random: Random, y_type: int) -> None:
    """Sums beyond fp16, and ties of fp16 and bf16: all come from the bias, whatever it is."""
    made = Layer(32, 4096, segments_of([(32, 3, 3)]))
    rows = 3
    act = exact_operand(random, made, rows, [3])
    for part in act:
        part.codes[:] = 0
    weight = exact_operand(random, made, made.out_channels, [3])
    bits = random.integers(0, 2**32, made.out_channels).astype(np.uint32)
    bias = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        # Half of them within fp16's range, and on its ties: 12 significant bits.
        near = narrow(random.standard_normal(made.out_channels).astype(np.float32), FLOAT32)
    near = (near & 0xFFFFF000) | 0x1000
    bias = np.where(np.arange(bias.size) % 2 == 0, bias, near.view(np.float32)).astype(np.float32)
    bias = np.where(np.isfinite(bias), bias, np.float32(0))
    call = Call(machine, made, Operands(weight, act=act, bias=bias), rows, FLOAT32, y_type)
    wanted = np.broadcast_to(narrow(bias, y_type), (rows, bias.size))
    for tactic in machine.tactics:
        assert_same_numbers(call.gemm(tactic), wanted, y_type, _describe(call, tactic))


PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (3, 0), (0, 3), (2, 0), (3, 1))

CHECKS = [
    *(
        Check(f"gemm/bounded/{mix}/{name}", partial(_bounded, mix=mix, y_type=y_type))
        for mix in MIXES
        for y_type, name in TYPE_NAMES.items()
    ),
    *(
        Check(f"gemm/exact/{mix}/{name}", partial(_exact, mix=mix, y_type=t, shapes=shapes))
        for mix in MIXES
        for t, (name, shapes) in enumerate(
            zip(
                TYPE_NAMES.values(),
                (SPLIT_SHAPES, SMALL_SHAPES[1:2], SMALL_SHAPES[3:]),
                strict=True,
            )
        )
    ),
    *(
        Check(
            f"gemm/exact_large/{mix}/{name}",
            partial(_exact, mix=mix, y_type=t, shapes=LARGE_SHAPES[t::3]),
            gpu_only=True,
        )
        for mix in ("mxfp4", "mxfp8", "nvfp4", "a8w4", "micromix", "every_pair")
        for t, name in TYPE_NAMES.items()
    ),
    *(
        Check(f"gemm/bounded_large/{mix}", partial(_large_bounded, mix=mix), gpu_only=True)
        for mix in ("mxfp4", "nvfp4", "micromix", "every_pair", "thirty_two")
    ),
    *(
        Check(
            f"gemm/extreme_scales/{a}x{w}", partial(_extreme_scales, act_format=a, weight_format=w)
        )
        for a, w in PAIRS
    ),
    *(Check(f"gemm/nan_rows/{mix}", partial(_nan_rows, mix=mix)) for mix in MIXES),
    *(
        Check(f"gemm/rounding/{name}", partial(_rounding, y_type=y_type))
        for y_type, name in TYPE_NAMES.items()
    ),
]
