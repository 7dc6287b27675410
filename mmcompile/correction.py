"""Weights corrected for the rounding of their inputs.

A layer meets x̂, its input rounded to block formats, and should answer W·x. The weight that does
so best over samples X̂[R, K], X[R, K] is not W but

    W' = W + W·Gᵀ,        G = (X̂ᵀX̂ + λ)⁻¹·X̂ᵀ(X − X̂) = X̂ᵀ(X̂X̂ᵀ + λ)⁻¹·(X − X̂)

which minimizes |X̂·W'ᵀ − X·Wᵀ|² + λ·|W' − W|²: correlated channels average out each other's
rounding errors. As error feedback may start from any weight, it costs nothing at run time (the
idea is GPTAQ's, Li et al. 2025; there it is interleaved with the rounding).

Both forms of G are the same. The first has K² entries and takes the factor that error feedback
needs anyway; the second is a product of [K, R] and [R, K], and cheaper where samples are few.

Samples are few, and what they say about small directions of the input does not hold for others.
So only a share t of the step is taken, 0 ≤ t ≤ 1, the one that errs least on inputs held back; the
error is a parabola in t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.hessian import Factor, factorize, solve

F32 = npt.NDArray[np.float32]

MOST_CHANNELS = 2**14
"""K beyond which G is not made as one array: it takes as much memory as H, 1 GiB here."""


@dataclass(frozen=True)
class Correction:
    """Gᵀ, as a product of one matrix or two.

    Attributes:
        factors: float32[K, K], or float32[K, R] and float32[R, K].
    """

    factors: tuple[F32, ...]

    def step(self, weight: F32) -> F32:
        """W·Gᵀ of a weight[N, K]."""
        for factor in self.factors:
            weight = weight @ factor
        return weight


def correction(factor: Factor, exact: F32, quantized: F32) -> Correction | None:
    """G; None where K is beyond `MOST_CHANNELS` and samples are many, or fp32 is too narrow.

    Args:
        factor: of X̂ᵀX̂ / R + λ.
        exact: X, float32[R, K].
        quantized: X̂, float32[R, K].
    """
    rows, channels = exact.shape
    error = exact - quantized
    if 2 * rows <= channels:
        dual = _dual(factor.damping, quantized)
        return None if dual is None else Correction((error.T, dual))
    if channels > MOST_CHANNELS:
        return None
    gain: F32 = quantized.T @ error
    gain /= np.float32(max(1, rows))
    solve(factor, gain)
    return Correction((gain.T,))


def _dual(damping: float, quantized: F32) -> F32 | None:
    """(X̂X̂ᵀ + R·λ)⁻¹·X̂: float32[R, K]; None where the matrix is not definite."""
    gram: F32 = quantized @ quantized.T
    diagonal = gram.diagonal()
    mean = float(diagonal[diagonal > 0].mean(dtype=np.float64))  # what a damping is relative to
    factor = factorize(gram, len(gram) * damping / mean)
    if factor is None:
        return None
    found = np.array(quantized)
    solve(factor, found)
    return found


def corrected(weight: F32, correction: Correction, quantized: F32, wanted: F32) -> F32:
    """W + t·W·Gᵀ with the best t on inputs held back.

    Args:
        weight: W, float32[N, K].
        correction: G.
        quantized: rounded inputs held back, float32[S, K].
        wanted: the outputs that are wanted of them, float32[S, N].
    """
    step = correction.step(weight)
    moved = quantized @ step.T
    missing = wanted - quantized @ weight.T
    length = float(np.vdot(moved, moved))
    share = float(np.vdot(missing, moved)) / length if length > 0 else 0.0
    if not share > 0:  # NaN, too
        return weight
    step *= np.float32(min(share, 1.0))
    step += weight
    return step
