"""How much computing a plan and its weights may take, and how weights are rounded."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmcompile.model.sites import SiteGroup


class Effort(enum.StrEnum):
    """`fast` rounds to nearest, `balanced` adds error feedback, `best` looks at more data."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class Weights(enum.StrEnum):
    """How weights become codes: to nearest, or with error feedback."""

    NEAREST = "nearest"
    GPTQ = "gptq"


LEAST_FEEDBACK_ROWS = 4096
"""Token rows per tensor that error feedback sees at any size of a model, if there are so many."""
DAMPING = 0.05
"""Of the Hessian, relative to its diagonal's mean, where only one is tried."""


@dataclass(frozen=True)
class Work:
    """What an effort comes to.

    Attributes:
        gradient_samples: samples that gradients are taken of at most.
        gradient_rows: token rows per group that damage is measured on, over all samples.
        directions: random directions of the output per sample.
        feedback_rows: token rows per tensor that error feedback sees at most; 0 is rounding to
            nearest.
        dampings: of the Hessian, relative to its diagonal's mean; the best on held-back rows is
            taken.
        operations: multiplications that making all Hessians may take, and rounding all weights.
            A larger model gets fewer rows, and not what gains least for its time: one damping, and
            classes in the order of max |x|.
    """

    gradient_samples: int
    gradient_rows: int
    directions: int
    feedback_rows: int
    dampings: tuple[float, ...]
    operations: float = math.inf

    def rows(self, groups: Sequence[SiteGroup]) -> int:
        """Token rows per tensor for error feedback."""
        squares = sum(group.in_channels**2 for group in groups)
        return int(
            min(self.feedback_rows, max(LEAST_FEEDBACK_ROWS, self.operations / max(1, squares)))
        )

    def is_thorough(self, groups: Sequence[SiteGroup]) -> bool:
        """Whether the model is small enough for all steps.

        Correcting and rounding a weight take 3·N·K² multiplications, for each damping.
        """
        products = sum(group.out_channels * group.in_channels**2 for group in groups)
        return 3 * len(_DAMPINGS) * products <= self.operations


_DAMPINGS = (0.01, 0.05, 0.25)
WORK = {
    Effort.FAST: Work(16, 256, 1, 0, (), 2**38),
    Effort.BALANCED: Work(32, 2048, 1, 16384, _DAMPINGS, 2**38),
    Effort.BEST: Work(128, 4096, 2, 16384, _DAMPINGS),
}
