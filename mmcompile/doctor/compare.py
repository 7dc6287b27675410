"""What results of the kernels are compared with, and how a difference is told.

A float64 product of the dequantized operands, and the bound of docs/spec.md, section 7, widened to
what tensor cores do. They do not round every addition to nearest: an instruction aligns its
products and the accumulator at the largest of them, cuts off what lies below the last place kept,
adds, and cuts the sum to fp32 (M. Fasi, N. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of
NVIDIA tensor cores", PeerJ CS 2021; A100 and later keep some bits more). With u = 2^-23, one place:

- each of an instruction's k products and its accumulator loses at most u times the largest of
  them: k + 1 losses;
- so does their sum: 1;
- fp16 atoms add that sum to the accumulator by one fp32 operation: 1.

None of these is larger than u times the sum of all magnitudes, S, but for terms in u². The
smallest k is 16, so that K_pad channels take at most 19/16 · K_pad losses. To these come the sums
over warps along K (at most 4) and over splits (at most 16), the tensor scale (exact), the bias and
the residual: 22. So with m = 19/16 · K_pad + 32 the sum is within m·u / (1 − m·u) · S, which is
about 2.4 times the bound of the specification. One rounding to y's type follows.

This assumes that at least 24 bits are kept in an instruction. It is known of fp16 instructions;
Hopper's own FP8 instructions, which no kernel here uses, keep about 14 (DeepSeek-V3, arXiv
2412.19437, 3.3.2). Should the block-scaled ones of sm_120 keep fewer than 24, then checks of exact
sums are what fails there, and this bound is to be derived anew with the bits that they show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.calls import Disagreement
from mmcompile.cuda.number_types import F64, NUMBER_TYPES, BitArray, widen

_PLACE = 2.0**-23
_SMALLEST = 2.0**-149
"""A product or a sum below fp32's normal numbers loses at most this."""


@dataclass(frozen=True)
class Reference:
    """The exact y, and the sum of the magnitudes of all that is added up in it, float64[M, N]."""

    exact: F64
    magnitude: F64
    padded_channels: int

    def rows(self, chosen: npt.NDArray[np.intp]) -> Reference:
        """Some of the rows."""
        return Reference(self.exact[chosen], self.magnitude[chosen], self.padded_channels)


def reference(act: F64, weight: F64, *added: F64 | None) -> Reference:
    """The float64 product and what is added to it; its own error is 2^-29 of the bound."""
    exact, magnitude = act @ weight.T, np.abs(act) @ np.abs(weight).T
    for term in added:
        if term is not None:
            exact, magnitude = exact + term, magnitude + np.abs(term)
    return Reference(exact, magnitude, act.shape[1])


def within_bound(bits: BitArray, y_type: int, wanted: Reference) -> float:
    """The largest error of y as a share of its bound; where the exact y is NaN, y is NaN.

    Raises:
        Disagreement: an error is larger than the bound.
    """
    kind = NUMBER_TYPES[y_type]
    with np.errstate(invalid="ignore"):  # a signalling NaN is one that is found
        y = widen(bits, y_type).astype(np.float64)
    steps = 19 * wanted.padded_channels // 16 + 32
    loss = steps * _PLACE / (1 - steps * _PLACE) * wanted.magnitude + steps * _SMALLEST
    reach = np.abs(wanted.exact) + loss
    bound = loss + kind.roundoff * reach + kind.half_step
    with np.errstate(invalid="ignore"):
        # Beyond the largest number and half a step, infinity is the right rounding.
        right = np.isinf(y) & (reach >= kind.largest) & (np.sign(y) == np.sign(wanted.exact))
        right |= np.isnan(y) & np.isnan(wanted.exact)
        share = np.where(right, 0.0, np.abs(y - wanted.exact) / bound)
    share[np.isnan(share)] = np.inf
    wrong = share > 1
    worst = np.unravel_index(int(np.argmax(share)), share.shape)
    if not wrong.any():
        return float(share[worst])
    row, channel = (int(i) for i in worst)
    raise Disagreement(
        f"{int(wrong.sum())} of {wrong.size} values of y ({kind.name}) are beyond the bound; the "
        f"worst is y[{row}, {channel}] = {y[worst]:.9g}, exact {wanted.exact[worst]:.9g}, allowed "
        f"± {bound[worst]:.3g}; rows {_span(np.flatnonzero(wrong.any(axis=1)))}, "
        f"channels {_span(np.flatnonzero(wrong.any(axis=0)))}"
    )


def same_bits(
    found: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic], what: str = "values of y"
) -> None:
    """Two arrays of codes, or of bits, are the same.

    Raises:
        Disagreement: they are not, or their shapes are not.
    """
    if found.shape != wanted.shape:
        raise Disagreement(f"{what} have the shape {found.shape}, not {wanted.shape}")
    wrong = np.argwhere(found != wanted)
    if len(wrong) == 0:
        return
    place = tuple(int(i) for i in wrong[0])
    spans = ", ".join(_span(np.unique(wrong[:, axis])) for axis in range(wrong.shape[1]))
    raise Disagreement(
        f"{len(wrong)} of {found.size} {what} differ; the first at {place}: "
        f"0x{int(found[place]):02x}, not 0x{int(wanted[place]):02x}; all in {spans}"
    )


def same_numbers(found: BitArray, wanted: BitArray, y_type: int) -> None:
    """Bits are the same, but that all NaNs are one; zeros may differ in their sign.

    Raises:
        Disagreement: they are not.
    """
    with np.errstate(invalid="ignore"):
        a, b = widen(found, y_type), widen(wanted, y_type)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
    same_bits(np.where(same, wanted, found), wanted)


def _span(indices: npt.NDArray[np.intp]) -> str:
    if len(indices) <= 6:
        return "{" + ", ".join(str(int(i)) for i in indices) + "}"
    return f"{len(indices)} of {int(indices[0])}..{int(indices[-1])}"
