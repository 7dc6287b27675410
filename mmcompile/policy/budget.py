"""The budgets of a policy that prices formats, and the pairs of formats that it chooses from.

Two kinds are counted per channel of one output, so that a run of channels costs its length times
the outputs of its layers: tensor-core time, in units of the target's fastest pair of formats
(`targets.target.Target.speed_cost`), and bits of the weights, block scales included.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmcompile.errors import UsageError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.targets.target import FormatPair, Objective, Target

CLASSES = tuple(sorted(BLOCK_FORMATS, key=lambda name: not BLOCK_FORMATS[name].has_tensor_scale))
"""The formats that the policy chooses from unless told otherwise, and all that it knows."""


@dataclass(frozen=True)
class Budget:
    """Upper limits; None is no limit.

    Attributes:
        speed: mean tensor-core cost over all multiplications, padding included; the target's
            fastest pair of formats costs 1.
        bits: mean bits per weight, block scales and padding included.
    """

    speed: float | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--target-speed", self.speed), ("--target-bits", self.bits)):
            if value is not None and not 0 < value < math.inf:
                remedy = "give a positive number, such as 1.25 (speed) or 5 (bits)"
                raise UsageError("bad-budget", option, f"{value:g} is no budget", remedy)


NO_BUDGET = Budget()
"""No limit of anybody's: an objective's default holds."""

DEFAULT_BUDGETS = {
    Objective.PREFILL: Budget(speed=1.25),
    Objective.DECODE: Budget(bits=4.75),
    Objective.MEMORY: Budget(bits=5.0),
}
"""What is asked of a plan where nobody says: about where the curve of error against cost bends."""


def check_classes(classes: Sequence[str]) -> None:
    """Refuses classes that cannot be chosen from.

    Raises:
        UsageError: a class is unknown, twice there, or there is none.
    """
    for name in classes:
        if name not in BLOCK_FORMATS:
            known = ", ".join(CLASSES)
            raise UsageError("unknown-choice", "--classes", f"no '{name}'", f"use some of {known}")
    if not classes or len(set(classes)) < len(classes):
        reason = "a class stands there twice" if classes else "there is no class"
        raise UsageError("bad-classes", "--classes", reason, "name each class once")


def candidates(
    objective: Objective, classes: Sequence[str], target: Target
) -> tuple[FormatPair, ...]:
    """The format pairs to choose from, the cheapest on the target first.

    Both formats of a pair have block scales of one kind, as instructions want it. Activations may
    be wider than the weights, but for `memory`.
    """
    pairs = [FormatPair(name, name) for name in classes]
    if objective is not Objective.MEMORY:
        pairs += [
            FormatPair(act, weight)
            for act, weight in itertools.permutations(classes, 2)
            if BLOCK_FORMATS[act].multiplies(BLOCK_FORMATS[weight])
            and BLOCK_FORMATS[act].element.bits > BLOCK_FORMATS[weight].element.bits
        ]
    return tuple(sorted(pairs, key=lambda pair: (target.speed_cost(pair), pair.bits)))
