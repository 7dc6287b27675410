"""What the library refuses, with which status; and calls that have nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from mmcompile.kernels import BFLOAT16, FLOAT32, KernelError, LinearSegment
from tests.gpu.call import POISON
from tests.gpu.check import Check
from tests.gpu.gemm_checks import Extras
from tests.gpu.layers import E2M3, MXFP4, MXFP8, NVFP4, Layer, Random, layer
from tests.gpu.linear_checks import random_call
from tests.gpu.machine import Machine

INVALID, UNSUPPORTED, TOO_SMALL = 1, 2, 3


def assert_refused(status: int, call: Callable[[], object], context: str) -> None:
    """The call fails with that status, and says why."""
    refusal = None
    try:
        call()
    except KernelError as error:
        refusal = error
    assert refusal is not None, f"{context}: accepted"
    assert refusal.status == status, f"{context}: status {refusal.status}, not {status}: {refusal}"
    assert len(str(refusal).split()) > 4, f"{context}: an error without a sentence: {refusal}"


def _no_rows(machine: Machine, random: Random) -> None:
    """M = 0 is no error, even with null pointers, and touches nothing."""
    call = random_call(machine, random, layer("micromix", 256, 16), 1, (FLOAT32, FLOAT32), Extras())
    arguments = call.arguments
    arguments.rows = 0
    for tactic in machine.tactics:
        call.enqueue(tactic)
        call.linear.quantize(machine.device, arguments)
        call.linear.gemm(machine.device, arguments)
    assert (call.y.read() == POISON).all() and (call.workspace.read() == POISON).all()
    arguments.x = arguments.y = arguments.workspace = arguments.weight = None
    arguments.workspace_bytes = 0
    call.enqueue()
    machine.memory.synchronize()


ARGUMENTS: tuple[tuple[str, int, dict[str, int | None]], ...] = (
    ("rows -1", INVALID, {"rows": -1}),
    ("rows 2^31", INVALID, {"rows": 2**31}),
    ("x_type 3", INVALID, {"x_type": 3}),
    ("y_type -1", INVALID, {"y_type": -1}),
    ("tactic -1", INVALID, {"tactic": -1}),
    ("tactic 99", INVALID, {"tactic": 99}),
    ("no x", INVALID, {"x": None}),
    ("no order", INVALID, {"order": None}),
    ("no weight", INVALID, {"weight": None}),
    ("no scales", INVALID, {"scales": None}),
    ("no y", INVALID, {"y": None}),
    ("no workspace", INVALID, {"workspace": None}),
    ("no workspace bytes", TOO_SMALL, {"workspace_bytes": 0}),
)
MISALIGNED = (("weight", 8), ("order", 4), ("scales", 1), ("y", 2), ("workspace", 128))


def _refused_arguments(machine: Machine, random: Random) -> None:
    call = random_call(machine, random, layer("micromix", 256, 16), 3, (FLOAT32, FLOAT32), Extras())
    arguments = call.arguments
    functions = (call.linear.run, call.linear.quantize, call.linear.gemm)

    def refused(context: str, status: int, changes: Mapping[str, int | None]) -> None:
        kept = {name: getattr(arguments, name) for name in changes}
        for name, value in changes.items():
            setattr(arguments, name, value)
        for function in functions:
            assert_refused(status, partial(function, machine.device, arguments), context)
        for name, value in kept.items():
            setattr(arguments, name, value)

    for context, status, changes in ARGUMENTS:
        refused(context, status, changes)
    beyond = {"tactic": len(machine.library.tactics(machine.device)) + 1}
    refused("one tactic too many", INVALID, beyond)
    for name, offset in MISALIGNED:
        moved = {name: int(getattr(arguments, name)) + offset}
        refused(f"{name} off by {offset}", INVALID, moved)
    refused("a byte too few", TOO_SMALL, {"workspace_bytes": call.workspace.size - 1})
    assert (call.y.read() == POISON).all(), "a refused call wrote y"
    call.run()


def _refused_layers(machine: Machine, random: Random) -> None:
    sound = LinearSegment(64, MXFP4, MXFP4, 1.75)

    def refused(status: int, context: str, made: Layer) -> None:
        assert_refused(status, partial(made.create, machine), context)

    for context, segment in (
        ("0 channels", LinearSegment(0, MXFP4, MXFP4)),
        ("33 channels", LinearSegment(33, MXFP4, MXFP4)),
        ("-32 channels", LinearSegment(-32, MXFP4, MXFP4)),
        ("format 5", LinearSegment(32, 5, MXFP4)),
        ("format -1", LinearSegment(32, MXFP4, -1)),
        ("threshold 0.9", LinearSegment(32, MXFP4, MXFP4, 0.9)),
        ("threshold 2.1", LinearSegment(32, MXFP4, MXFP4, 2.1)),
        ("threshold NaN", LinearSegment(32, MXFP4, MXFP4, float("nan"))),
    ):
        refused(INVALID, context, Layer(64, 8, (sound, segment)))
    for act, weight in ((NVFP4, MXFP4), (MXFP8, NVFP4), (E2M3, NVFP4)):
        mixed = LinearSegment(32, act, weight)
        refused(UNSUPPORTED, f"formats {act} and {weight}", Layer(64, 8, (sound, mixed)))
    refused(UNSUPPORTED, "no segment", Layer(64, 8, ()))
    refused(UNSUPPORTED, "33 segments", Layer(64, 8, (sound,) * 33))
    for scale in (0.0, -1.0, 3.0, 2.0**101, float("inf"), float("nan")):
        refused(INVALID, f"scale {scale}", Layer(64, 8, (sound,), scale, 1.0))
        refused(INVALID, f"scale {scale}", Layer(64, 8, (sound,), 1.0, scale))
    for k, n in ((0, 8), (-1, 8), (64, 0), (2**40, 8), (64, 2**40)):
        refused(INVALID, f"K {k}, N {n}", Layer(k, n, (sound,)))


def _workspace_grows(machine: Machine, random: Random) -> None:
    """A workspace for some rows serves every smaller number of them."""
    for mix, out in (("micromix", 96), ("every_pair", 5000)):
        linear = layer(mix, 2048, out).create(machine)
        rows = np.unique(np.concatenate([np.arange(260), random.integers(0, 20000, 200)]))
        sizes = [linear.workspace_bytes(machine.device, int(row)) for row in rows]
        fewer = [i for i in range(1, len(sizes)) if sizes[i] < sizes[i - 1]]
        assert not fewer, f"{mix}: {rows[fewer[0]]} rows need less than {rows[fewer[0] - 1]}"
        layout = linear.workspace_layout(machine.device, 77)
        assert layout.bytes == linear.workspace_bytes(machine.device, 77)


def _larger_workspace(machine: Machine, random: Random) -> None:
    """More workspace than needed, and an x or y without alignment, change nothing."""
    made = layer("micromix", 512, 24, 5)
    call = random_call(machine, random, made, 6, (BFLOAT16, BFLOAT16), Extras(bias=True))
    first = call.run()
    call.arguments.workspace_bytes += 2**30
    assert (call.run() == first).all()
    assert call.operands.x is not None
    block = machine.memory.allocate(call.operands.x.nbytes + 2)
    machine.memory.write(block.address + 2, call.operands.x)
    call.arguments.x = block.address + 2
    assert (call.run() == first).all()
    y = machine.memory.allocate(first.nbytes + 2)
    call.arguments.y = y.address + 2
    call.enqueue()
    assert (
        machine.memory.read(y.address + 2, first.nbytes).view(first.dtype) == first.ravel()
    ).all()


CHECKS = [
    Check("arguments/no_rows", _no_rows),
    Check("arguments/refused", _refused_arguments),
    Check("arguments/refused_layers", _refused_layers),
    Check("arguments/workspace_grows", _workspace_grows),
    Check("arguments/larger_workspace", _larger_workspace),
]
