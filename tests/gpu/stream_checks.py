"""mmc_linear_run on streams and in CUDA graphs."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.check import Check
from tests.gpu.compare import assert_same_bits
from tests.gpu.gemm_checks import Extras
from tests.gpu.layers import Random, layer
from tests.gpu.linear_checks import describe, random_call
from tests.gpu.machine import Machine
from tests.gpu.operands import random_x

SHAPES = ((1, 512, 4096), (12, 1001, 2048), (200, 640, 1024))


def _graph(machine: Machine, random: Random, mix: str) -> None:
    """A captured call answers for whatever x and residual hold when it is replayed."""
    stream = machine.memory.stream()
    for rows, out, channels in SHAPES:
        call = random_call(
            machine, random, layer(mix, channels, out), rows, (FLOAT16, BFLOAT16), Extras(bias=True)
        )
        for tactic in machine.tactics:
            call.arguments.tactic = tactic
            inputs = [
                random_x(random, kind, rows, call.layer.in_channels, FLOAT16)
                for kind in ("normal", "ties", "outliers")
            ]
            wanted = []
            for x in inputs:
                machine.memory.write(int(call.arguments.x or 0), x)
                wanted.append(call.run(tactic))
            graph = machine.memory.capture(stream, partial(call.enqueue, tactic, stream))
            for x, y in zip(inputs, wanted, strict=True):
                call.refresh()
                machine.memory.write(int(call.arguments.x or 0), x)
                graph.launch(stream)
                assert_same_bits(call.result(), y, f"replay, {describe(call, tactic)}")


def _chain(machine: Machine, random: Random, captured: bool) -> None:
    """Many calls one after the other in one workspace: each waits for the one before.

    The next call's weights are loaded while the last one ends; its activations must not be.
    """
    stream = machine.memory.stream()
    size, length = 1024, 12
    made = layer("micromix", size, size)
    calls = [
        random_call(machine, random, made, 5, (FLOAT32, FLOAT32), Extras()) for _ in range(length)
    ]
    for before, after in pairwise(calls):
        after.arguments.x = before.y.address
        after.arguments.workspace = calls[0].workspace.address

    def enqueue_all() -> None:
        for call in calls:
            call.enqueue(0, stream)

    wanted = []
    for call in calls:
        call.y.poison()
        call.enqueue(0, stream)
        wanted.append(call.result())
    assert np.isfinite(wanted[-1].view(np.float32)).all(), "the chain of this check overflows"
    graph = machine.memory.capture(stream, enqueue_all) if captured else None
    for _ in range(5):
        for call in calls:
            call.refresh()
        if graph is not None:
            graph.launch(stream)
        else:
            enqueue_all()
        for i, (call, y) in enumerate(zip(calls, wanted, strict=True)):
            assert_same_bits(call.result(), y, f"call {i} of {length}")


def _two_streams(machine: Machine, random: Random) -> None:
    """Calls of two streams, with a workspace each, do not disturb one another."""
    streams = [machine.memory.stream(number) for number in range(2)]
    for rows, out, channels in SHAPES:
        calls = [
            random_call(
                machine, random, layer(mix, channels, out), rows, (BFLOAT16, FLOAT32), Extras()
            )
            for mix in ("micromix", "every_pair")
        ]
        wanted = [call.run() for call in calls]
        for call in calls:
            call.refresh()
        for _ in range(20):
            for call, stream in zip(calls, streams, strict=True):
                call.enqueue(0, stream)
        for call, y in zip(calls, wanted, strict=True):
            assert_same_bits(call.result(), y, describe(call, 0))


CHECKS = [
    *(
        Check(f"stream/graph/{mix}", partial(_graph, mix=mix), gpu_only=True)
        for mix in ("micromix", "nvfp4")
    ),
    Check("stream/chain/launched", partial(_chain, captured=False)),
    Check("stream/chain/captured", partial(_chain, captured=True), gpu_only=True),
    Check("stream/two_streams", _two_streams, gpu_only=True),
]
