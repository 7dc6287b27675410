"""How far one tensor is from another, accumulated over samples without keeping them.

The definitions are those of polygraphy's comparators, and tests hold them against these. They are
not called, since they import PyTorch wherever it is installed (a second and 170 MB per run) and
know neither KL divergence nor sums over samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Agreement:
    """Running agreement of a tensor with its reference.

    Cosine similarity is taken per sample over the whole tensor and averaged; SQNR is the ratio of
    the energies of signal and error over all samples, in dB.
    """

    cosines: list[float] = field(default_factory=list)
    signal: float = 0.0
    noise: float = 0.0
    max_abs_error: float = 0.0
    kl_sum: float = 0.0
    agreed: int = 0
    rows: int = 0
    mismatch: str | None = None

    def add(self, reference: Array, value: Array, *, logits: bool = False) -> None:
        """Counts one sample; with `logits`, also KL divergence and top-1 over the last axis."""
        if reference.shape != value.shape:
            self.mismatch = f"shape {value.shape} instead of {reference.shape}"
            return
        if reference.dtype != value.dtype:
            self.mismatch = f"type {value.dtype} instead of {reference.dtype}"
            return
        if not reference.size:
            return
        a = reference.astype(np.float64)
        b = value.astype(np.float64)
        with np.errstate(invalid="ignore"):
            error = b - a
        both_equal = (a == b) | (np.isnan(a) & np.isnan(b))
        error[both_equal] = 0.0
        if not np.isfinite(error).all():
            self.mismatch = "NaN or infinity where the original has a number"
            return
        finite = np.where(np.isfinite(a), a, 0.0)
        energy = float((finite**2).sum())
        self.signal += energy
        self.noise += float((error**2).sum())
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max()))
        self.cosines.append(cosine(finite, finite + error))
        if logits and a.ndim and np.issubdtype(reference.dtype, np.floating):
            self._add_logits(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]))

    def _add_logits(self, reference: Array, value: Array) -> None:
        log_p = _log_softmax(reference)
        log_q = _log_softmax(value)
        p = np.exp(log_p)
        # A masked token has the logit -inf on both sides and adds nothing.
        ratio = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
        self.kl_sum += float((p * ratio).sum())
        self.agreed += int((reference.argmax(-1) == value.argmax(-1)).sum())
        self.rows += reference.shape[0]

    @property
    def cosine_mean(self) -> float:
        """Mean cosine similarity over samples; NaN where the tensors cannot be compared."""
        if self.mismatch or not self.cosines:
            return math.nan
        return sum(self.cosines) / len(self.cosines)

    @property
    def cosine_min(self) -> float:
        """Cosine similarity of the worst sample."""
        return math.nan if self.mismatch or not self.cosines else min(self.cosines)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise ratio in dB; infinite where equal."""
        if self.mismatch:
            return math.nan
        return decibel(self.signal, self.noise)

    @property
    def kl_divergence(self) -> float | None:
        """Mean KL(original ‖ compiled) per row of logits, in nats; None for other tensors."""
        return self.kl_sum / self.rows if self.rows else None

    @property
    def top1_agreement(self) -> float | None:
        """Share of rows of logits whose largest entry is the same; None for other tensors."""
        return self.agreed / self.rows if self.rows else None


def cosine(a: Array, b: Array) -> float:
    """Cosine similarity of two tensors as vectors; 1 for two zeros."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    lengths = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / lengths if lengths else float(np.array_equal(a, b))


def decibel(signal: float, noise: float) -> float:
    """10·log10(signal / noise); infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
