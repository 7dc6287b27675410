"""What the library refuses, with which status; and calls that have nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from mmcompile.cuda.calls import POISON, DeviceLayer
from mmcompile.cuda.layers import E2M3, MXFP4, MXFP8, NVFP4, LayerShape
from mmcompile.doctor.cases import Extras, linear_case
from mmcompile.doctor.trial import Check, Trial
from mmcompile.kernels import BFLOAT16, FLOAT32, KernelError, LinearSegment
from tests.gpu.mixes import layer

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


def _no_rows(trial: Trial) -> None:
    """M = 0 is no error, even with null pointers, and touches nothing."""
    made = linear_case(trial, layer("micromix", 256, 16), 1, (FLOAT32, FLOAT32)).layer
    arguments = made.arguments[0]
    arguments.rows = 0
    for tactic in range(len(trial.place.tactics) + 1):
        for function in ("run", "quantize", "gemm"):
            made.enqueue(function, tactic)
    assert (made.y.read() == POISON).all() and (made.workspace.read() == POISON).all()
    arguments.x = arguments.y = arguments.workspace = arguments.weight = None
    arguments.workspace_bytes = 0
    made.enqueue()
    trial.place.machine.synchronize()


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
MISALIGNED = (("weight", 8), ("order", 4), ("scales", 1), ("workspace", 128))


def _refused_arguments(trial: Trial) -> None:
    made = linear_case(trial, layer("micromix", 256, 16), 3, (FLOAT32, FLOAT32)).layer
    arguments, device = made.arguments[0], trial.place.device
    functions = (made.linear.run, made.linear.quantize, made.linear.gemm)

    def refused(context: str, status: int, changes: Mapping[str, int | None]) -> None:
        kept = {name: getattr(arguments, name) for name in changes}
        for name, value in changes.items():
            setattr(arguments, name, value)
        for function in functions:
            assert_refused(status, partial(function, device, arguments), context)
        for name, value in kept.items():
            setattr(arguments, name, value)

    for context, status, changes in ARGUMENTS:
        refused(context, status, changes)
    refused("one tactic too many", INVALID, {"tactic": len(trial.place.tactics) + 1})
    for name, offset in MISALIGNED:
        moved = {name: int(getattr(arguments, name)) + offset}
        refused(f"{name} off by {offset}", INVALID, moved)
    refused("a byte too few", TOO_SMALL, {"workspace_bytes": made.workspace.size - 1})
    assert (made.y.read() == POISON).all(), "a refused call wrote y"
    made.run()


def _refused_layers(trial: Trial) -> None:
    sound = LinearSegment(64, MXFP4, MXFP4, 1.75)

    def refused(status: int, context: str, shape: LayerShape) -> None:
        assert_refused(status, partial(shape.create, trial.place.library), context)

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
        refused(INVALID, context, LayerShape(64, 8, (sound, segment)))
    for act, weight in ((NVFP4, MXFP4), (MXFP8, NVFP4), (E2M3, NVFP4)):
        mixed = LinearSegment(32, act, weight)
        refused(UNSUPPORTED, f"formats {act} and {weight}", LayerShape(64, 8, (sound, mixed)))
    refused(UNSUPPORTED, "no segment", LayerShape(64, 8, ()))
    refused(UNSUPPORTED, "33 segments", LayerShape(64, 8, (sound,) * 33))
    for scale in (0.0, -1.0, 3.0, 2.0**101, float("inf"), float("nan")):
        refused(INVALID, f"scale {scale}", LayerShape(64, 8, (sound,), scale, 1.0))
        refused(INVALID, f"scale {scale}", LayerShape(64, 8, (sound,), 1.0, scale))
    for k, n in ((0, 8), (-1, 8), (64, 0), (2**40, 8), (64, 2**40)):
        refused(INVALID, f"K {k}, N {n}", LayerShape(k, n, (sound,)))


def _workspace_grows(trial: Trial) -> None:
    """A workspace for some rows serves every smaller number of them."""
    device, random = trial.place.device, trial.random
    for mix, out in (("micromix", 96), ("every_pair", 5000)):
        linear = layer(mix, 2048, out).create(trial.place.library)
        rows = np.unique(np.concatenate([np.arange(260), random.integers(0, 20000, 200)]))
        sizes = [linear.workspace_bytes(device, int(row)) for row in rows]
        fewer = [i for i in range(1, len(sizes)) if sizes[i] < sizes[i - 1]]
        assert not fewer, f"{mix}: {rows[fewer[0]]} rows need less than {rows[fewer[0] - 1]}"
        assert linear.workspace_layout(device, 77).bytes == linear.workspace_bytes(device, 77)


def _larger_workspace(trial: Trial) -> None:
    """More workspace than needed, and an x or y without alignment, change nothing."""
    shape = layer("micromix", 512, 24, 5)
    made = linear_case(trial, shape, 6, (BFLOAT16, BFLOAT16), Extras(bias=True)).layer
    first, arguments = made.run(), made.arguments[0]
    arguments.workspace_bytes += 2**30
    assert (made.run() == first).all()
    block = trial.place.machine.allocate(made.inputs.x.nbytes + 2)
    arguments.x = block.address + 2
    made.write_x(made.inputs.x)
    assert (made.run() == first).all()
    inputs = replace(made.inputs, y_offset=1)
    moved = DeviceLayer(trial.place, shape, made.constants, inputs)
    assert (moved.run() == first).all()


CHECKS = [
    Check("arguments/no_rows", _no_rows),
    Check("arguments/refused", _refused_arguments),
    Check("arguments/refused_layers", _refused_layers),
    Check("arguments/workspace_grows", _workspace_grows),
    Check("arguments/larger_workspace", _larger_workspace),
]
