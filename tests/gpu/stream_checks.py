"""mmc_linear_run on streams and in CUDA graphs."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from mmcompile.doctor.cases import Extras, linear_case
from mmcompile.doctor.compare import same_bits
from mmcompile.doctor.operands import random_x
from mmcompile.doctor.trial import Check, Trial
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.mixes import layer

SHAPES = ((1, 512, 4096), (12, 1001, 2048), (200, 640, 1024))


def _graph(trial: Trial, mix: str) -> None:
    """A captured call answers for whatever x and residual hold when it is replayed."""
    machine = trial.place.machine
    stream = machine.stream()
    for rows, out, channels in SHAPES:
        shape = layer(mix, channels, out)
        made = linear_case(trial, shape, rows, (FLOAT16, BFLOAT16), Extras(bias=True)).layer
        for part in trial.tactics(made):
            with part:
                wanted = []
                for kind in ("normal", "ties", "outliers"):
                    x = random_x(trial.random, kind, rows, shape.in_channels, FLOAT16)
                    made.write_x(x)
                    wanted.append((x, made.run(part.tactic)))
                graph = machine.capture(stream, partial(made.enqueue, "run", part.tactic, stream))
                for x, y in wanted:
                    made.refresh()
                    made.write_x(x)
                    graph.launch(stream)
                    same_bits(made.result(), y, "values of y in a replay")


def _chain(trial: Trial, captured: bool) -> None:
    """Many calls one after the other in one workspace: each waits for the one before.

    The next call's weights are loaded while the last one ends; its activations must not be.
    """
    machine = trial.place.machine
    stream = machine.stream()
    shape = layer("micromix", 1024, 1024)
    made = [linear_case(trial, shape, 5, (FLOAT32, FLOAT32)).layer for _ in range(12)]
    for before, after in pairwise(made):
        after.arguments[0].x = before.y.address
        after.arguments[0].workspace = made[0].workspace.address

    def enqueue_all() -> None:
        for each in made:
            each.enqueue("run", 0, stream)

    wanted = []
    for each in made:
        each.y.poison()
        each.enqueue("run", 0, stream)
        wanted.append(each.result())
    assert np.isfinite(wanted[-1].view(np.float32)).all(), "the chain of this check overflows"
    graph = machine.capture(stream, enqueue_all) if captured else None
    for _ in range(5):
        for each in made:
            each.refresh()
        if graph is not None:
            graph.launch(stream)
        else:
            enqueue_all()
        for i, (each, y) in enumerate(zip(made, wanted, strict=True)):
            same_bits(each.result(), y, f"values of y of call {i}")


def _two_streams(trial: Trial) -> None:
    """Calls of two streams, with a workspace each, do not disturb one another."""
    streams = [trial.place.machine.stream(number) for number in range(2)]
    for rows, out, channels in SHAPES:
        made = [
            linear_case(trial, layer(mix, channels, out), rows, (BFLOAT16, FLOAT32)).layer
            for mix in ("micromix", "every_pair")
        ]
        wanted = [each.run() for each in made]
        for each in made:
            each.refresh()
        for _ in range(20):
            for each, stream in zip(made, streams, strict=True):
                each.enqueue("run", 0, stream)
        for each, y in zip(made, wanted, strict=True):
            same_bits(each.result(), y, f"values of y, {each.describe(0)},")


CHECKS = [
    *(
        Check(f"stream/graph/{mix}", partial(_graph, mix=mix), gpu_only=True)
        for mix in ("micromix", "nvfp4")
    ),
    Check("stream/chain/launched", partial(_chain, captured=False)),
    Check("stream/chain/captured", partial(_chain, captured=True), gpu_only=True),
    Check("stream/two_streams", _two_streams, gpu_only=True),
]
