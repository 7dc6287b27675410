"""How much computing a plan and its weights may take, and how weights are rounded."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Effort(enum.StrEnum):
    """`fast` rounds to nearest, `balanced` adds error feedback, `best` looks at more data."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class Weights(enum.StrEnum):
    """How weights become codes: to nearest, or with error feedback."""

    NEAREST = "nearest"
    GPTQ = "gptq"


@dataclass(frozen=True)
class Work:
    """What an effort comes to.

    Attributes:
        gradient_samples: samples that gradients are taken of at most.
        gradient_rows: token rows per group that damage is measured on, over all samples.
        directions: random directions of the output per sample.
        feedback_rows: token rows per tensor that error feedback sees; 0 is rounding to nearest.
        dampings: of the Hessian, relative to its diagonal's mean; the best on held-back rows is
            taken.
    """

    gradient_samples: int
    gradient_rows: int
    directions: int
    feedback_rows: int
    dampings: tuple[float, ...]


WORK = {
    Effort.FAST: Work(16, 256, 1, 0, ()),
    Effort.BALANCED: Work(32, 2048, 1, 4096, (0.05,)),
    Effort.BEST: Work(128, 4096, 2, 16384, (0.01, 0.05, 0.25)),
}
