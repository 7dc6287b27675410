"""fp32, fp16 and bf16 as bits, and how float64 numbers round to them; numpy has no bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
BitArray = npt.NDArray[Any]
"""uint32 of fp32, uint16 of the others."""


@dataclass(frozen=True)
class NumberType:
    """A type of x and y.

    Attributes:
        name: the short one.
        bits: numpy's type of as many bits.
        precision: significant bits, the hidden one too.
        highest: exponent of the largest numbers; 1 - highest is that of the smallest normal ones.
    """

    name: str
    bits: type[np.unsignedinteger[Any]]
    precision: int
    highest: int

    @property
    def size(self) -> int:
        """Bytes."""
        return np.dtype(self.bits).itemsize

    @property
    def roundoff(self) -> float:
        """Largest relative error of rounding to nearest: half a unit in the last place of 1."""
        return 2.0**-self.precision

    @property
    def half_step(self) -> float:
        """Largest error of rounding a subnormal number."""
        return 2.0 ** (1 - self.highest - self.precision)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return (2 - 2.0 ** (1 - self.precision)) * 2.0**self.highest


NUMBER_TYPES = {
    FLOAT32: NumberType("fp32", np.uint32, 24, 127),
    FLOAT16: NumberType("fp16", np.uint16, 11, 15),
    BFLOAT16: NumberType("bf16", np.uint16, 8, 127),
}
"""By `MmcType`."""


def widen(bits: BitArray, number_type: int) -> F32:
    """The numbers that bits stand for, exactly."""
    if number_type == FLOAT32:
        return bits.view(np.float32)
    if number_type == FLOAT16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: npt.NDArray[np.floating[Any]], number_type: int) -> BitArray:
    """Bits of the nearest numbers, ties to even; float64 that bf16 is made of must be fp32s."""
    with np.errstate(over="ignore"):
        if number_type == FLOAT16:
            return values.astype(np.float16).view(np.uint16)
        bits = values.astype(np.float32).view(np.uint32)
    if number_type == FLOAT32:
        return bits
    rounded = ((bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
