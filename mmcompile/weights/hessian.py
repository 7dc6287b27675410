"""The Hessian of a layer's output error, H = XᵀX, factored as error feedback needs it.

For a row w of the weight and its rounded ŵ, the squared error of the layer's output over sampled
inputs X[R, K] is (w − ŵ)·XᵀX·(w − ŵ)ᵀ, so that H = XᵀX / R is its Hessian up to a factor. With
H = U·diag(D)·Uᵀ, U unit upper triangular, the error is Σ_k D_k·((w − ŵ)·U)_k²: term k holds the
errors of channels 0 to k only, which is what rounding channel after channel wants (QuIP, Chee et
al. 2023, LDLQ; theorem 6 there: the same as GPTQ, Frantar et al. 2022, which takes a Cholesky
factor of H⁻¹ instead and so inverts it).

One array of K² float32 holds H and then U in place: 4 GiB for K = 32768.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmcompile.dtypes import F32, F64

BLOCK = 192
"""Channels that are factored at once: large for BLAS, small beside K."""
_LEAF = 64
"""Rows of a triangle that are inverted at once."""
_STRIP = 256
"""Rows of H that are computed at once."""


@dataclass(frozen=True)
class Factor:
    """H = U·diag(D)·Uᵀ.

    Attributes:
        upper: float32[K, K], U above its diagonal; the other entries mean nothing.
        diagonal: float32[K], D, positive.
    """

    upper: F32
    diagonal: F32


def hessian(rows: F32) -> F32:
    """XᵀX / R of rows[R, K]: float32[K, K] on and above the diagonal; the rest means nothing.

    Strip by strip: numpy gives `rows.T @ rows` to BLAS's ssyrk, which crashes in OpenBLAS 0.3 for
    K = 32768, and then mirrors the result, which takes longer than the product where R is small.
    """
    channels = rows.shape[1]
    product = np.zeros((channels, channels), np.float32)
    for first in range(0, channels, _STRIP):
        last = min(first + _STRIP, channels)
        strip = product[first:last, first:]
        np.matmul(rows[:, first:last].T, rows[:, first:], out=strip)
        strip /= np.float32(max(1, len(rows)))
    return product


def factorize(matrix: F32, damping: float) -> Factor | None:
    """U and D of a symmetric matrix, which is overwritten; None where it is not definite.

    Args:
        matrix: float32[K, K], C-contiguous; read on and above the diagonal.
        damping: added to the diagonal, relative to its mean over channels that are ever used:
            what calibration did not see must not look free.
    """
    diagonal = matrix.diagonal()
    used = diagonal[diagonal > 0]
    if not used.size or not np.isfinite(diagonal).all():
        return None
    np.einsum("kk->k", matrix)[:] += np.float32(damping * float(used.mean(dtype=np.float64)))
    found = np.empty(len(matrix), np.float32)
    try:
        for stop in range(len(matrix), 0, -BLOCK):
            _factor_block(matrix, max(0, stop - BLOCK), stop, found)
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(found).all() and (found > 0).all()):
        return None
    return Factor(matrix, found)


def _factor_block(matrix: F32, start: int, stop: int, diagonal: F32) -> None:
    """Columns start to stop of U and D, those from `stop` on being known.

    Raises:
        numpy.linalg.LinAlgError: the block is not positive definite.
    """
    columns, known = slice(start, stop), slice(stop, len(matrix))
    block = matrix[:stop, columns]
    block -= matrix[:stop, known] @ (matrix[columns, known] * diagonal[known]).T
    # Read backwards, U·D·Uᵀ is L·D·Lᵀ, and the upper triangle is the lower that numpy reads.
    lower = np.linalg.cholesky(block[start:][::-1, ::-1].astype(np.float64))
    root = np.diag(lower)
    upper: F64 = (lower / root)[::-1, ::-1]
    block_diagonal = np.square(root)[::-1]
    diagonal[columns] = block_diagonal
    block[start:] = upper
    solve = _unit_inverse(upper).T / block_diagonal
    block[:start] = block[:start] @ solve.astype(np.float32)


def solve(factor: Factor, right: F32) -> None:
    """Overwrites `right`, float32[K, M], with H⁻¹·right: two triangular solves, block by block."""
    blocks = range(0, len(right), BLOCK)
    for start in reversed(blocks):
        stop = min(start + BLOCK, len(right))
        right[start:stop] -= factor.upper[start:stop, stop:] @ right[stop:]
        right[start:stop] = _inverse(factor, start, stop) @ right[start:stop]
    right /= factor.diagonal[:, None]
    for start in blocks:
        stop = min(start + BLOCK, len(right))
        right[start:stop] -= factor.upper[:start, start:stop].T @ right[:start]
        right[start:stop] = _inverse(factor, start, stop).T @ right[start:stop]


def _inverse(factor: Factor, start: int, stop: int) -> F32:
    """The inverse of a diagonal block of U."""
    block = np.triu(factor.upper[start:stop, start:stop].astype(np.float64), 1)
    return _unit_inverse(block + np.eye(stop - start)).astype(np.float32)


def _unit_inverse(upper: F64) -> F64:
    """The inverse of a unit upper triangular matrix, half by half: products, which BLAS is fast at.

    numpy's general inverse of such a block takes more than twice as long.
    """
    size = len(upper)
    if size <= _LEAF:
        return np.linalg.inv(upper).astype(np.float64, copy=False)
    half = size // 2
    inverse = np.zeros((size, size))
    first, last = _unit_inverse(upper[:half, :half]), _unit_inverse(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -(first @ upper[:half, half:] @ last)
    return inverse
