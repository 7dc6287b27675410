"""Weights corrected for the rounding of their inputs.

A layer meets x̂, its input rounded to block formats, and should answer W·x. The weight that does
so best over samples X̂[R, K], X[R, K] is not W but

    W' = W + W·Gᵀ,        G = (X̂ᵀX̂ + λ)⁻¹·X̂ᵀ(X − X̂)

which minimizes |X̂·W'ᵀ − X·Wᵀ|² + λ·|W' − W|²: correlated channels average out each other's
rounding errors. As error feedback may start from any weight, it costs nothing at run time (the
idea is GPTAQ's, Li et al. 2025; there it is interleaved with the rounding).

Samples are few, and what they say about small directions of the input does not hold for others.
So only a share t of the step is taken, 0 ≤ t ≤ 1, the one that errs least on inputs held back; the
error is a parabola in t.
"""

from __future__ import annotations

import numpy as np

from mmcompile.dtypes import F32
from mmcompile.weights.hessian import Factor, solve

MOST_CHANNELS = 2**14
"""K beyond which weights are not corrected: G takes as much memory as the Hessian, 1 GiB here."""
LEAST_SHARE = 0.5
"""Samples per channel below which weights are not corrected: most directions were never seen."""


def correction(factor: Factor, exact: F32, quantized: F32) -> F32 | None:
    """G as float32[K, K]; None beyond `MOST_CHANNELS`, and where samples are too few for it.

    Args:
        factor: of X̂ᵀX̂ / R + λ.
        exact: X, float32[R, K].
        quantized: X̂, float32[R, K].
    """
    rows, channels = exact.shape
    if channels > MOST_CHANNELS or rows < channels * LEAST_SHARE:
        return None
    gain: F32 = quantized.T @ (exact - quantized)
    gain /= np.float32(rows)
    solve(factor, gain)
    return gain


def corrected(weight: F32, gain: F32, quantized: F32, wanted: F32) -> F32:
    """W + t·W·Gᵀ with the best t on inputs held back.

    Args:
        weight: W, float32[N, K].
        gain: G.
        quantized: rounded inputs held back, float32[S, K].
        wanted: the outputs that are wanted of them, float32[S, N].
    """
    step: F32 = weight @ gain.T
    moved = quantized @ step.T
    missing = wanted - quantized @ weight.T
    length = float(np.vdot(moved, moved))
    share = float(np.vdot(missing, moved)) / length if length > 0 else 0.0
    if not share > 0:  # NaN, too
        return weight
    step *= np.float32(min(share, 1.0))
    step += weight
    return step
