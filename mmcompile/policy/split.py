"""MicroMix's split: how many channels a layer keeps in 4, 6 and 8 bits (arXiv 2508.02343, 3.2).

An element may be rounded to a format where that errs no more than INT8 would, whose error is
bounded by max|x| / 254 for a token's largest magnitude. The largest such element is

    T(format) = 2^bias · 2^(bits − 1) / max · max|x| / 254                          (`paper`)

with the format's exponent bias, the bits of its elements and its largest value. The authors' code
uses larger thresholds, the ratio of the formats' ranges (`code`):

    T(E2M1) = 448 / 6 / 2^10 · max|x|        T(E3M2) = 448 / 28 / 2^6 · max|x|

Both are relative to the token's max |x|. The shares of elements that exceed them give the number
of channels per format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmcompile.formats import MXFP4, MXFP6_E3M2, BlockFormat
from mmcompile.policy.choices import Thresholds

_CODE_RATIOS = {MXFP4: 448 / 6 / 2**10, MXFP6_E3M2: 448 / 28 / 2**6}


@dataclass(frozen=True)
class Split:
    """Channels per format, in the order of the permuted axis; they sum to the padded K."""

    p4: int
    p6: int
    p8: int


def threshold_ratios(setting: Thresholds, factor: float) -> tuple[float, float]:
    """The thresholds T(E2M1) and T(E3M2) relative to a token's max |x|, times the factor λ."""
    low, middle = (
        _paper_ratio(fmt) if setting is Thresholds.PAPER else _CODE_RATIOS[fmt]
        for fmt in (MXFP4, MXFP6_E3M2)
    )
    return low * factor, middle * factor


def _paper_ratio(fmt: BlockFormat) -> float:
    element = fmt.element
    return 2.0**element.bias * 2.0 ** (element.bits - 1) / element.max / 254


def split_channels(
    share_above_low: float, share_above_middle: float, channels: int, granularity: int
) -> Split:
    """The split of a layer's channels.

    Args:
        share_above_low: share of all elements above T(E2M1), in [0, 1].
        share_above_middle: share of all elements above T(E3M2), in [0, 1].
        channels: K.
        granularity: multiple that every part has.

    Returns:
        The parts of K_pad, that is K rounded up to the granularity:
        p8 = ⌈K · r8⌉ and p6 = ⌈K · r6⌉, each rounded up to the granularity, clamped in this order
        so that p4, the rest, is never negative.
    """
    share_8 = min(share_above_middle, share_above_low)
    share_6 = max(0.0, share_above_low - share_8)
    padded = math.ceil(channels / granularity) * granularity
    p8 = min(padded, _whole_runs(channels * share_8 / granularity) * granularity)
    p6 = min(padded - p8, _whole_runs(channels * share_6 / granularity) * granularity)
    return Split(p4=padded - p8 - p6, p6=p6, p8=p8)


def _whole_runs(runs: float) -> int:
    """⌈runs⌉, where an excess of less than a billionth comes from rounding the shares."""
    return math.ceil(runs - 1e-9)
