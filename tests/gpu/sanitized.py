"""A few calls for compute-sanitizer: each kernel once or twice, results and workspace unwritten.

    compute-sanitizer --tool initcheck python -m tests.gpu.sanitized

Unlike in the checks nothing is poisoned: memory that a kernel reads though nobody wrote it is what
initcheck looks for.
"""

from __future__ import annotations

from mmcompile.cuda.layers import Place
from mmcompile.doctor.cases import Extras, linear_case
from mmcompile.doctor.checks import Size
from mmcompile.doctor.trial import Trial
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.mixes import layer
from tests.gpu.place import find_place

READY = "calls begin"
DONE = "calls are done"
CALLS = (
    (Size(1, 40, 1120, missing=3), (FLOAT32, FLOAT16)),
    (Size(9, 33, 352), (BFLOAT16, BFLOAT16)),
    (Size(150, 70, 288, missing=1), (FLOAT16, FLOAT32)),
    # Enough rows for blocks that take several.
    (Size(700, 17, 256), (BFLOAT16, BFLOAT16)),
)


def run_calls(place: Place) -> int:
    """Runs every tactic on every size and mix; returns how many calls that were."""
    trial = Trial("sanitized", place)
    count = 0
    for size, types in CALLS[: 2 if place.emulated else None]:
        for mix in ("micromix", "every_pair"):
            shape = layer(mix, size.channels, size.out_channels, size.missing)
            made = linear_case(trial, shape, size.rows, types, Extras(bias=True)).layer
            for tactic in range(len(place.tactics) + 1):
                # Allocations of their own: initcheck remembers what earlier calls wrote.
                workspace = place.machine.allocate(made.workspace.size)
                y = place.machine.allocate(made.y.size)
                made.arguments[0].workspace, made.arguments[0].y = workspace.address, y.address
                made.enqueue("run", tactic)
                place.machine.read(y.address, y.size)
                count += 1
    return count


if __name__ == "__main__":
    opened = find_place()
    print(READY, flush=True)
    print(f"{run_calls(opened)} {DONE}", flush=True)
