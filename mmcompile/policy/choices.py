"""What options of policies choose from; nothing here needs more than Python's own library."""

from __future__ import annotations

import enum

CHANNEL_STEP = 32
"""Lengths of segments are multiples of this, the longest block."""


class Order(enum.StrEnum):
    """How channels are sorted before they are split.

    `sorted` is the paper's: ascending by mean |x|. The others serve to show that it matters.
    """

    SORTED = "sorted"
    REVERSED = "reversed"
    RANDOM = "random"
    NATURAL = "natural"


class Thresholds(enum.StrEnum):
    """Which of MicroMix's two published threshold settings to use."""

    PAPER = "paper"
    CODE = "code"
