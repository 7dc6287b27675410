"""Weights rounded with error feedback: GPTQ on block formats, in the plan's channel order.

Rounding channel k of a weight row w leaves an error e_k = w_k − ŵ_k. Error feedback corrects the
channels that are still to come, so that the layer's output changes least: with H = U·diag(D)·Uᵀ
(`hessian`), channel k is rounded from

    u_k = w_k + Σ_{i<k} e_i·U[i, k],        and adds D_k·(ŵ_k − u_k)² to the output's error

(QuIP, Chee et al. 2023, LDLQ). Block scales are chosen when the first channel of a block is
reached, from the corrected values; where scales are searched, a block is rounded with either and
the one with the smaller sum of D_k·(ŵ_k − u_k)² is kept: the output's own error decides.

Channels are taken in the packed order, the cheapest format first: what 4 bits get wrong is
corrected by channels that are rounded more finely.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmcompile import _native
from mmcompile.dtypes import F32, U8
from mmcompile.packed import THREADS
from mmcompile.plan import GroupPlan
from mmcompile.weights.hessian import Factor

PANEL = 128
"""Channels that are rounded in one native call; what crosses panels is a matrix product."""


@dataclass(frozen=True)
class _Panel:
    """A run of ordered channels within one segment.

    Attributes:
        channels: where they lie in the order.
        format: id of the weights' format.
        threshold: of its block scales.
        searched: whether the better of two scales is taken instead.
        code_byte: where their codes begin in a packed row.
        scale_word: the scale word that their segment begins with.
        block: number of their first block in the segment.
    """

    channels: slice
    format: int
    threshold: float
    searched: bool
    code_byte: int
    scale_word: int
    block: int


def round_with_feedback(
    weight: F32, plan: GroupPlan, factor: Factor, codes: U8, scales: U8
) -> None:
    """Rounds and packs rows of a weight.

    Args:
        weight: C-contiguous float32[N, K_pad], finite, in the plan's order.
        plan: order, segments and tensor scale.
        factor: of the Hessian in the same order.
        codes: uint8[N, row_bytes], zeros; written.
        scales: uint8[scale_words, N, 4], zeros; written; may be a slice of rows.
    """
    error = np.empty_like(weight)
    for panel in _panels(plan):
        columns = panel.channels
        target = weight[:, columns]
        if columns.start:
            target = target + error[:, : columns.start] @ factor.upper[: columns.start, columns]
        _native.feedback_panel(
            target,
            weight[:, columns],
            factor.upper[columns, columns],
            factor.diagonal[columns],
            panel.format,
            panel.threshold,
            panel.searched,
            plan.weight_tensor_scale,
            codes,
            panel.code_byte,
            scales,
            panel.scale_word,
            panel.block,
            error[:, columns],
            THREADS,
        )


def _panels(plan: GroupPlan) -> Iterator[_Panel]:
    """The plan's channels, panel by panel."""
    channel = code_byte = scale_word = 0
    for segment in plan.segments:
        fmt = segment.weight
        for first in range(0, segment.channels, PANEL):
            last = min(first + PANEL, segment.channels)
            yield _Panel(
                slice(channel + first, channel + last),
                fmt.id,
                segment.weight_threshold,
                segment.weight_scales == "searched",
                code_byte + first * fmt.element.bits // 8,
                scale_word,
                first // fmt.block,
            )
        channel += segment.channels
        code_byte += segment.row_bytes
        scale_word += segment.scale_words
