"""What a format costs on the GPU: the objectives, their candidate formats and the budgets.

Costs are per channel of one output, so that a run of channels costs its length times the outputs
of its layers. Two kinds are counted:

speed   tensor-core time, in units in which two 4-bit operands cost 1 and everything else 2: the
        rates of block-scaled E2M1 and E4M3 on sm_120 (`target.Target`). 6-bit elements run as
        E4M3, and so do 4-bit weights beside wider activations.
bits    of the weights, block scales included: what has to be kept and, in decoding, read.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmcompile.errors import UsageError
from mmcompile.formats import BLOCK_FORMATS, block_format

NVFP4 = "nvfp4"
CLASSES = ("nvfp4", "mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8")
"""The formats that the policy chooses from unless told otherwise, and all that it knows."""


class Objective(enum.StrEnum):
    """What is to be cheap.

    `prefill`: tensor-core time, which bounds large batches; one wide operand costs as much as two.
    `decode`: bytes of weights, which bound small ones; activations may then be wider than weights
    for nothing. `memory`: bytes of weights too, but activations in the weights' format, so that
    large batches stay fast.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    MEMORY = "memory"


@dataclass(frozen=True)
class FormatPair:
    """The formats of a run: names of the activations' and the weights' `BlockFormat`."""

    act: str
    weight: str

    @property
    def speed(self) -> float:
        """Tensor-core cost of a channel; two 4-bit operands cost 1, everything else 2."""
        bits = max(block_format(name).element.bits for name in (self.act, self.weight))
        return 1.0 if bits == 4 else 2.0

    @property
    def bits(self) -> float:
        """Bits of a weight and its share of the block scale."""
        fmt = block_format(self.weight)
        return fmt.element.bits + 8 / fmt.block


@dataclass(frozen=True)
class Budget:
    """Upper limits; None is no limit.

    Attributes:
        speed: mean tensor-core cost over all multiplications, padding included, from 1 to 2.
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


def candidates(objective: Objective, classes: Sequence[str]) -> tuple[FormatPair, ...]:
    """The format pairs to choose from, the cheapest first.

    NVFP4 pairs with itself only, as no instruction multiplies it with anything else. Activations
    may be wider than the weights, but for `memory`.

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
    pairs = [FormatPair(name, name) for name in classes]
    if objective is not Objective.MEMORY:
        pairs += [
            FormatPair(act, weight)
            for act, weight in itertools.permutations(classes, 2)
            if NVFP4 not in (act, weight) and _bits(act) > _bits(weight)
        ]
    return tuple(sorted(pairs, key=lambda pair: (pair.speed, pair.bits)))


def _bits(name: str) -> int:
    return block_format(name).element.bits
