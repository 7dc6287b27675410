"""Channel orders: which source channel stands at which position of the permuted axis."""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

from mmcompile.plan import PADDING

IntArray = npt.NDArray[np.int32]


class Order(enum.StrEnum):
    """How channels are sorted before they are split.

    `sorted` is the paper's: ascending by mean |x|. The others serve to show that it matters.
    """

    SORTED = "sorted"
    REVERSED = "reversed"
    RANDOM = "random"
    NATURAL = "natural"


def channel_order(magnitude: npt.NDArray[np.float64], order: Order, granularity: int) -> IntArray:
    """The order of K channels, padded to a multiple of the granularity.

    Channels of zeros are put first, where a sorted order has its smallest channels and thus the
    cheapest format.

    Args:
        magnitude: float64[K], the channels' magnitudes.
        order: how to sort; ties keep the natural order.
        granularity: multiple that the result's length has.

    Returns:
        int32[K_pad]: position → source channel, `PADDING` for channels of zeros.
    """
    match order:
        case Order.SORTED:
            channels = np.argsort(magnitude, kind="stable")
        case Order.REVERSED:
            channels = np.argsort(-magnitude, kind="stable")
        case Order.RANDOM:
            channels = np.random.default_rng(magnitude.size).permutation(magnitude.size)
        case Order.NATURAL:
            channels = np.arange(magnitude.size)
    padding = np.full(-magnitude.size % granularity, PADDING)
    return np.concatenate([padding, channels]).astype(np.int32)
