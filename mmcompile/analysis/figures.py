"""Figures of plans and of sets of plans: costs, shares, agreement, fronts, rank correlation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmcompile.dtypes import F64
from mmcompile.plan import PADDING, GroupPlan, QuantPlan
from mmcompile.report.analysis import FormatShare
from mmcompile.targets.target import FormatPair, Kind

Pair = tuple[str, str]
"""Formats of activations and weights."""


def mean_act_bits(plan: QuantPlan) -> float:
    """Mean bits per activation element, every layer's input weighted by its weights."""
    weights = [group.in_channels * sum(group.out_channels) for group in plan.groups]
    bits = [group.act_bits() for group in plan.groups]
    return float(np.average(bits, weights=weights))


def channel_pairs(group: GroupPlan) -> list[Pair]:
    """The pair of formats of every source channel: K of them."""
    found: list[Pair] = [("", "")] * group.in_channels
    positions = iter(group.channel_order().tolist())
    for segment in group.segments:
        pair = (segment.act_format, segment.weight_format)
        for _, channel in zip(range(segment.channels), positions, strict=False):
            if channel != PADDING:
                found[channel] = pair
    return found


def format_shares(groups: Sequence[GroupPlan]) -> tuple[FormatShare, ...]:
    """The shares of all multiplications per pair of formats, the cheapest pair first."""
    counts: Counter[Pair] = Counter()
    for group in groups:
        outputs = sum(group.out_channels)
        for pair, channels in Counter(channel_pairs(group)).items():
            counts[pair] += outputs * channels
    total = counts.total() or 1
    return tuple(FormatShare(*pair, counts[pair] / total) for pair in sorted(counts, key=pair_rank))


def pair_rank(pair: Pair) -> tuple[bool, float, Pair]:
    """Sorts pairs of formats, the cheapest first: the faster instruction, then fewer bits."""
    formats = FormatPair(*pair)
    return formats.kind is Kind.BLOCK8, formats.bits, pair


def format_agreement(first: QuantPlan, second: QuantPlan) -> tuple[float, float]:
    """How far two plans of one model give channels the same formats.

    Returns:
        The share of all multiplications whose pair of formats is the same, and what it would be if
        the channels had been dealt out at random in the same shares.
    """
    same = whole = 0
    for one, other in zip(first.groups, second.groups, strict=True):
        outputs = sum(one.out_channels)
        pairs = zip(channel_pairs(one), channel_pairs(other), strict=True)
        same += outputs * sum(a == b for a, b in pairs)
        whole += outputs * one.in_channels
    shares = [
        {(s.act_format, s.weight_format): s.share for s in format_shares(plan.groups)}
        for plan in (first, second)
    ]
    by_chance = sum(share * shares[1].get(pair, 0.0) for pair, share in shares[0].items())
    return same / max(1, whole), by_chance


def pareto_front(costs: Sequence[float], errors: Sequence[float | None]) -> list[bool]:
    """Which points no other point beats: at most the cost and the error, and less of one of them.

    Points without an error are on no front. Costs that differ by less than a millionth are equal.
    """
    points = [(round(c, 6), e) for c, e in zip(costs, errors, strict=True)]
    known = [(cost, error) for cost, error in points if error is not None]
    return [
        error is not None
        and not any(c <= cost and e <= error and (c < cost or e < error) for c, e in known)
        for cost, error in points
    ]


def rank_correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Spearman's ρ of two figures, ties sharing their mean rank.

    Pairs of which one figure is missing are left out. None for fewer than three, and where all
    values of a figure are equal.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 3:
        return None
    ranks = [_ranks(np.array(values)) for values in zip(*pairs, strict=True)]
    deviations = [rank - rank.mean() for rank in ranks]
    norm = float(np.sqrt(np.prod([deviation @ deviation for deviation in deviations])))
    return float(deviations[0] @ deviations[1]) / norm if norm else None


def _ranks(values: F64) -> F64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: F64 = np.cumsum(counts).astype(np.float64)
    ranks: F64 = (ends - (counts - 1) / 2)[inverse]
    return ranks
