"""A few calls for compute-sanitizer: each kernel once or twice, results and workspace unwritten.

    compute-sanitizer --tool initcheck python -m tests.gpu.sanitized

Unlike in the checks nothing is poisoned: memory that a kernel reads though nobody wrote it is what
initcheck looks for.
"""

from __future__ import annotations

import numpy as np

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.gemm_checks import Extras
from tests.gpu.layers import layer
from tests.gpu.linear_checks import random_call
from tests.gpu.machine import Machine, open_machine
from tests.gpu.number_types import SIZE

READY = "calls begin"
DONE = "calls are done"
SHAPES = (
    (1, 40, 1120, 3, (FLOAT32, FLOAT16)),
    (9, 33, 352, 0, (BFLOAT16, BFLOAT16)),
    (150, 70, 288, 1, (FLOAT16, FLOAT32)),
    # Enough rows for blocks that take several.
    (700, 17, 256, 0, (BFLOAT16, BFLOAT16)),
)


def run_calls(machine: Machine) -> int:
    """Runs every tactic on every shape and mix; returns how many calls that were."""
    random = np.random.default_rng(0)
    count = 0
    for rows, out, channels, missing, types in SHAPES[: 2 if machine.emulated else None]:
        for mix in ("micromix", "every_pair"):
            made = layer(mix, channels, out, missing)
            call = random_call(machine, random, made, rows, types, Extras(bias=True))
            for tactic in machine.tactics:
                # Allocations of their own: initcheck remembers what earlier calls wrote.
                workspace = machine.memory.allocate(call.workspace.size)
                y = machine.memory.allocate(rows * out * SIZE[types[1]])
                call.arguments.workspace, call.arguments.y = workspace.address, y.address
                call.enqueue(tactic)
                machine.memory.read(y.address, y.size)
                count += 1
    return count


if __name__ == "__main__":
    opened = open_machine()
    print(READY, flush=True)
    print(f"{run_calls(opened)} {DONE}", flush=True)
