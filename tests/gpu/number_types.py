"""fp32, fp16 and bf16 as bits, and how float64 numbers round to them; numpy has no bf16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
BitArray = npt.NDArray[Any]
"""uint32 of fp32, uint16 of the others."""

TYPE_NAMES = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}
BITS_TYPE: dict[int, type[np.unsignedinteger[Any]]] = {
    FLOAT32: np.uint32,
    FLOAT16: np.uint16,
    BFLOAT16: np.uint16,
}
SIZE = {FLOAT32: 4, FLOAT16: 2, BFLOAT16: 2}
ROUNDOFF = {FLOAT32: 2.0**-24, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}
"""Largest relative error of rounding to nearest, half a unit in the last place of 1."""
SMALLEST_HALF_STEP = {FLOAT32: 2.0**-150, FLOAT16: 2.0**-25, BFLOAT16: 2.0**-134}
"""Largest error of rounding a subnormal number."""
LARGEST = {FLOAT32: (2 - 2.0**-23) * 2.0**127, FLOAT16: 65504.0, BFLOAT16: (2 - 2.0**-7) * 2.0**127}


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
