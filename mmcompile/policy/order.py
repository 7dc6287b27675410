"""Channel orders: which source channel stands at which position, and the runs of an order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmcompile.dtypes import IntArray
from mmcompile.plan import PADDING
from mmcompile.policy.choices import Order

Bounds = npt.NDArray[np.intp]


def channel_order(magnitude: npt.NDArray[np.float64], order: Order, multiple: int) -> IntArray:
    """The order of K channels, padded to a multiple.

    Channels of zeros are put first, where a sorted order has its smallest channels and thus the
    cheapest format.

    Args:
        magnitude: float64[K], the channels' magnitudes.
        order: how to sort; ties keep the natural order.
        multiple: what the result's length is a multiple of.

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
    padding = np.full(-magnitude.size % multiple, PADDING)
    return np.concatenate([padding, channels]).astype(np.int32)


def run_bounds(channels: int, granularity: int) -> Bounds:
    """Where the runs of an order begin and end.

    All runs have `granularity` channels, but for the first, which has what is left over: in an
    ascending order that is where least is at stake.

    Args:
        channels: K_pad, the length of the order.
        granularity: channels of a run.

    Returns:
        intp[runs + 1]: run b is the positions from entry b up to, without, entry b + 1.
    """
    ends = np.arange(channels, 0, -granularity, dtype=np.intp)[::-1]
    return np.concatenate([np.zeros(1, np.intp), ends])
