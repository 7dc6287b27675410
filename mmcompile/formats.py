"""Block formats: what there is, by name. How values become codes is said in `quantize`.

Element and E8M0 encodings: OCP Microscaling Formats (MX) v1.0, sections 5.2 to 5.4, 6.3. Nothing
here needs more than Python's own library, so that the command line can show the names.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from mmcompile.errors import UsageError

ScaleFormat = Literal["e8m0", "e4m3"]
WeightScales = Literal["rule", "searched"]
"""How block scales of weights are found: by a rule on amax, or the better of two."""

E8M0_BIAS = 127
E8M0_NAN = 255
E4M3_NAN = 0x7F
"""S.1111.111 with a positive sign; E4M3 (the `fn` variant) has no infinity."""
FLOAT32_MANTISSA_BITS = 23
TENSOR_SCALE_EXPONENT = 100
"""NVFP4 tensor scales lie in 2^-100..2^100, so that no scale under- or overflows fp32."""


@dataclasses.dataclass(frozen=True)
class ElementFormat:
    """A small float: code = sign | exponent | mantissa, from the highest bit to the lowest.

    Attributes:
        name: the field's name of the format, e.g. `e2m1`.
        bits: length of a code, 4, 6 or 8.
        exponent_bits: length of the exponent field.
        mantissa_bits: length of the mantissa field.
        bias: exponent bias.
        max: largest finite magnitude.
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max: float

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal value, which the subnormals share."""
        return 1 - self.bias

    @property
    def emax(self) -> int:
        """Exponent of the largest value, floor(log2 max)."""
        return math.frexp(self.max)[1] - 1


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """Elements that share one scale per block.

    Attributes:
        id: the number that ONNX nodes and the native module know the format by.
        name: the name that plans and options know it by.
        element: format of the elements.
        block: elements per scale.
        scale: format of the scales.
    """

    id: int
    name: str
    element: ElementFormat
    block: int
    scale: ScaleFormat

    @property
    def stored_bits(self) -> float:
        """Bits of an element with its share of the block's scale."""
        return self.element.bits + 8 / self.block

    @property
    def has_tensor_scale(self) -> bool:
        """Whether block scales are relative to one scale of the whole tensor."""
        return self.scale == "e4m3"

    def multiplies(self, other: BlockFormat) -> bool:
        """Whether an instruction takes the two formats as operands: block scales must be alike."""
        return (self.scale, self.block) == (other.scale, other.block)


E2M1 = ElementFormat("e2m1", bits=4, exponent_bits=2, mantissa_bits=1, bias=1, max=6.0)
E2M3 = ElementFormat("e2m3", bits=6, exponent_bits=2, mantissa_bits=3, bias=1, max=7.5)
E3M2 = ElementFormat("e3m2", bits=6, exponent_bits=3, mantissa_bits=2, bias=3, max=28.0)
E4M3 = ElementFormat("e4m3", bits=8, exponent_bits=4, mantissa_bits=3, bias=7, max=448.0)

MXFP4 = BlockFormat(0, "mxfp4", E2M1, block=32, scale="e8m0")
MXFP6_E2M3 = BlockFormat(1, "mxfp6_e2m3", E2M3, block=32, scale="e8m0")
MXFP6_E3M2 = BlockFormat(2, "mxfp6_e3m2", E3M2, block=32, scale="e8m0")
MXFP8 = BlockFormat(3, "mxfp8", E4M3, block=32, scale="e8m0")
NVFP4 = BlockFormat(4, "nvfp4", E2M1, block=16, scale="e4m3")

BLOCK_FORMATS: dict[str, BlockFormat] = {
    fmt.name: fmt for fmt in (MXFP4, MXFP6_E2M3, MXFP6_E3M2, MXFP8, NVFP4)
}
"""All block formats by name, in the order of their ids."""

OCP_THRESHOLD = 2.0
"""The threshold that no mantissa exceeds: OCP's rule, exponent floor(log2 amax) − emax."""
LOWEST_THRESHOLD = 1.0
"""The threshold that every mantissa above 1 exceeds: the exponent is one more, if not exact."""
SEARCHED_ELEMENTS = (E2M1.max, 4.0)
"""Elements that a searched NVFP4 scale may map amax onto."""

THRESHOLDS: dict[str, dict[str, float]] = {
    "balanced": {
        MXFP4.name: 1.75,
        MXFP6_E2M3.name: 1.875,
        MXFP6_E3M2.name: 1.75,
        MXFP8.name: 1.75,
        NVFP4.name: OCP_THRESHOLD,
    },
    "ocp": dict.fromkeys(BLOCK_FORMATS, OCP_THRESHOLD),
    "saturation_free": {
        # max / 2^emax: amax beyond it would saturate without the larger exponent.
        MXFP4.name: 1.5,
        MXFP6_E2M3.name: 1.875,
        MXFP6_E3M2.name: 1.75,
        MXFP8.name: 1.75,
        NVFP4.name: OCP_THRESHOLD,
    },
}
"""Mantissa thresholds by rule and format name; NVFP4 rounds its scale and uses none."""


def block_format(name: str) -> BlockFormat:
    """The format of that name.

    Raises:
        UsageError: there is none.
    """
    try:
        return BLOCK_FORMATS[name]
    except KeyError:
        known = ", ".join(BLOCK_FORMATS)
        raise UsageError("unknown-format", name, "no such format", f"use one of {known}") from None
