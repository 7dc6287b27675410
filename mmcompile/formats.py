"""Block formats: their tables, and the numpy statement of how values become codes.

This is the Python implementation of docs/spec.md and the reference that the native module and
the kernels are compared with, so it is written to be read; `mmcompile._native` is the fast one.
Element and E8M0 encodings: OCP Microscaling Formats (MX) v1.0, sections 5.2 to 5.4, 6.3.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from mmcompile.errors import UsageError

FloatArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint8]
ScaleFormat = Literal["e8m0", "e4m3"]
Scalar = TypeVar("Scalar", bound=np.generic)

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


E2M1 = ElementFormat("e2m1", bits=4, exponent_bits=2, mantissa_bits=1, bias=1, max=6.0)
E2M3 = ElementFormat("e2m3", bits=6, exponent_bits=2, mantissa_bits=3, bias=1, max=7.5)
E3M2 = ElementFormat("e3m2", bits=6, exponent_bits=3, mantissa_bits=2, bias=3, max=28.0)
E4M3 = ElementFormat("e4m3", bits=8, exponent_bits=4, mantissa_bits=3, bias=7, max=448.0)

BLOCK_FORMATS: dict[str, BlockFormat] = {
    fmt.name: fmt
    for fmt in (
        BlockFormat(0, "mxfp4", E2M1, block=32, scale="e8m0"),
        BlockFormat(1, "mxfp6_e2m3", E2M3, block=32, scale="e8m0"),
        BlockFormat(2, "mxfp6_e3m2", E3M2, block=32, scale="e8m0"),
        BlockFormat(3, "mxfp8", E4M3, block=32, scale="e8m0"),
        BlockFormat(4, "nvfp4", E2M1, block=16, scale="e4m3"),
    )
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
        "mxfp4": 1.75,
        "mxfp6_e2m3": 1.875,
        "mxfp6_e3m2": 1.75,
        "mxfp8": 1.75,
        "nvfp4": OCP_THRESHOLD,
    },
    "ocp": dict.fromkeys(BLOCK_FORMATS, OCP_THRESHOLD),
    "saturation_free": {
        # max / 2^emax: amax beyond it would saturate without the larger exponent.
        "mxfp4": 1.5,
        "mxfp6_e2m3": 1.875,
        "mxfp6_e3m2": 1.75,
        "mxfp8": 1.75,
        "nvfp4": OCP_THRESHOLD,
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


def _read_only(table: FloatArray) -> FloatArray:
    table.setflags(write=False)
    return table


def element_table(element: ElementFormat) -> FloatArray:
    """The value of every code, float32[2^bits]; NaN for E4M3's S.1111.111."""
    codes = np.arange(2**element.bits)
    mantissa = codes % 2**element.mantissa_bits
    field = (codes >> element.mantissa_bits) % 2**element.exponent_bits
    hidden = np.where(field > 0, 2**element.mantissa_bits, 0)
    exponent = np.maximum(field, 1) - element.bias - element.mantissa_bits
    magnitude = np.ldexp((hidden + mantissa).astype(np.float32), exponent)
    magnitude[magnitude > element.max] = np.nan
    negative = codes >= 2 ** (element.bits - 1)
    return _read_only(np.where(negative, -magnitude, magnitude))


def _e8m0_scales() -> FloatArray:
    # 2^-127, the value of byte 0, is a subnormal of fp32 and exact.
    powers = np.ldexp(np.float32(1), np.arange(E8M0_NAN) - E8M0_BIAS)
    return _read_only(np.append(powers, np.float32(np.nan)))


E8M0_SCALES: FloatArray = _e8m0_scales()
"""Value of every E8M0 byte, float32[256]: 2^(byte − 127), NaN for 255."""
E4M3_SCALES: FloatArray = element_table(E4M3)
"""Value of every E4M3 byte, float32[256]."""


def nvfp4_tensor_scale(amax: float) -> float:
    """The power of two that lets NVFP4's block scales reach a tensor of this magnitude.

    2^ceil(log2(amax / (448·6))), kept within 2^±100; 1 for a tensor of zeros.

    Raises:
        UsageError: amax is not finite.
    """
    if not math.isfinite(amax):
        reason = f"the largest magnitude is {amax}"
        remedy = "remove NaN and Inf from the model or the data"
        raise UsageError("not-finite", "NVFP4 tensor scale", reason, remedy)
    if amax == 0:
        return 1.0
    # The quotient is exact where it is a power of two, hence so is the ceiling.
    mantissa, exponent = math.frexp(abs(amax) / (E4M3.max * E2M1.max))
    exponent -= mantissa == 0.5
    return math.ldexp(1.0, min(max(exponent, -TENSOR_SCALE_EXPONENT), TENSOR_SCALE_EXPONENT))


def encode_elements(values: FloatArray, element: ElementFormat) -> CodeArray:
    """Codes of the nearest elements, ties to even, saturating at ±max; zero keeps its sign.

    Args:
        values: float32 of any shape, Inf allowed, NaN not.
        element: the format.

    Returns:
        uint8 of the same shape.
    """
    magnitude = np.minimum(np.abs(values), np.float32(element.max))
    floor = np.maximum(magnitude, np.float32(2.0**element.emin))
    exponent = np.frexp(floor)[1] - 1
    # Below 2^(exponent+1) the grid is even with a step of 2^(exponent − mantissa_bits). The step
    # count plus the steps of all lower binades is the code, also where rounding carries over.
    steps = np.rint(np.ldexp(magnitude, element.mantissa_bits - exponent)).astype(np.int32)
    magnitude_codes = steps + ((exponent - element.emin) << element.mantissa_bits)
    sign = np.signbit(values).astype(np.int32) << (element.bits - 1)
    codes: CodeArray = (magnitude_codes | sign).astype(np.uint8)
    return codes


def threshold_bits(threshold: float) -> int:
    """The 23 mantissa bits T of a threshold in [1, 2]; 2 means that no mantissa exceeds it.

    Raises:
        ValueError: the threshold is outside [1, 2].
    """
    if not 1 <= threshold <= 2:
        raise ValueError(f"threshold {threshold} is outside [1, 2]")
    one = 1 << FLOAT32_MANTISSA_BITS
    return min(math.floor((threshold - 1) * one), one - 1)


def mx_scale_bytes(amax: FloatArray, element: ElementFormat, threshold: float) -> CodeArray:
    """E8M0 bytes of MX blocks.

    The exponent is floor(log2 amax) − emax, plus one where amax's mantissa exceeds the threshold,
    which one integer addition to amax's bits decides: it carries into the exponent field.

    Args:
        amax: largest magnitude of each block, float32 of any shape.
        element: format of the elements.
        threshold: mantissa threshold in [1, 2].

    Returns:
        uint8 of the same shape; 255 where amax is not finite.
    """
    bits = np.ascontiguousarray(amax).view(np.int32).reshape(amax.shape).astype(np.int64)
    carry = (1 << FLOAT32_MANTISSA_BITS) - 1 - threshold_bits(threshold)
    field = (bits + carry) >> FLOAT32_MANTISSA_BITS
    scales = np.clip(field - element.emax, 0, 254)
    return np.where(np.isfinite(amax), scales, E8M0_NAN).astype(np.uint8)


def nvfp4_scale_bytes(
    amax: FloatArray, tensor_scale: float, element: float = E2M1.max
) -> CodeArray:
    """E4M3 bytes of NVFP4 blocks: amax / 6 in units of the tensor scale, to nearest even.

    Args:
        amax: largest magnitude of each block, float32 of any shape.
        tensor_scale: a power of two in 2^±100.
        element: what amax is mapped onto, in place of 6.

    Returns:
        uint8 of the same shape; 0x7F (NaN) where amax is not finite.
    """
    _check_tensor_scale(tensor_scale)
    finite = np.isfinite(amax)
    factor = np.float32(1 / element) * np.float32(1 / tensor_scale)
    with np.errstate(over="ignore"):
        scaled = np.where(finite, amax, np.float32(0)) * factor
    return np.where(finite, encode_elements(scaled, E4M3), np.uint8(E4M3_NAN))


def quantize_blocks(
    x: FloatArray,
    fmt: BlockFormat,
    threshold: float | None = None,
    tensor_scale: float = 1.0,
) -> tuple[CodeArray, CodeArray]:
    """Quantizes runs of `fmt.block` values along the last axis.

    A block that holds NaN or Inf gets a NaN scale and codes of zero.

    Args:
        x: float32[..., K], K a multiple of the block length.
        fmt: the block format.
        threshold: mantissa threshold of an MX format, `THRESHOLDS["balanced"]` if None.
        tensor_scale: NVFP4's tensor scale, a power of two; MX formats have none.

    Returns:
        Codes uint8[..., K], one per byte, and scales uint8[..., K // block].
    """
    blocks = _blocks(np.ascontiguousarray(x, dtype=np.float32), fmt.block)
    amax = np.abs(blocks).max(axis=-1, initial=0)
    if fmt.scale == "e8m0":
        limit = THRESHOLDS["balanced"][fmt.name] if threshold is None else threshold
        scales = mx_scale_bytes(amax, fmt.element, limit)
    else:
        scales = nvfp4_scale_bytes(amax, tensor_scale)
    codes = _encode_blocks(_finite(blocks, amax), scales, fmt, tensor_scale)
    return codes.reshape(np.shape(x)), scales


def quantize_blocks_searched(
    x: FloatArray, fmt: BlockFormat, tensor_scale: float = 1.0
) -> tuple[CodeArray, CodeArray]:
    """Like `quantize_blocks`, with the better of two scales for every block, as weights have it.

    MX: the exponent floor(log2 amax) − emax or one more. NVFP4: the scale that maps amax onto 6 or
    onto 4, between which the elements lie closer. The second is taken where the block's sum of
    squared errors, in fp32 and in the order of the channels, is smaller than with the first.

    Args:
        x: float32[..., K], K a multiple of the block length.
        fmt: the block format.
        tensor_scale: NVFP4's tensor scale, a power of two; MX formats have none.

    Returns:
        Codes uint8[..., K], one per byte, and scales uint8[..., K // block].
    """
    blocks = _blocks(np.ascontiguousarray(x, dtype=np.float32), fmt.block)
    amax = np.abs(blocks).max(axis=-1, initial=0)
    if fmt.scale == "e8m0":
        limits = (OCP_THRESHOLD, LOWEST_THRESHOLD)
        first, second = (mx_scale_bytes(amax, fmt.element, limit) for limit in limits)
        # Errors count in units of their own scale; the second, if it differs, is twice the first.
        ratio = np.float32(4)
    else:
        first, second = (nvfp4_scale_bytes(amax, tensor_scale, e) for e in SEARCHED_ELEMENTS)
        ratio = np.float32(1)
    blocks = _finite(blocks, amax)
    codes = [_encode_blocks(blocks, scales, fmt, tensor_scale) for scales in (first, second)]
    errors = [
        _block_errors(blocks, amax, tried, scales, fmt, tensor_scale)
        for tried, scales in zip(codes, (first, second), strict=True)
    ]
    better = ratio * errors[1] < errors[0]
    chosen = np.where(better[..., None], codes[1], codes[0])
    return chosen.reshape(np.shape(x)), np.where(better, second, first)


def dequantize_blocks(
    codes: CodeArray, scales: CodeArray, fmt: BlockFormat, tensor_scale: float = 1.0
) -> FloatArray:
    """The values that codes and scales stand for.

    Every product below 2^128 fits fp32 exactly. Above about 1.75·2^127 a value may be quantized to
    2^128 (or a code may ask for more), which is Inf in fp32.

    Args:
        codes: uint8[..., K], one code per byte.
        scales: uint8[..., K // block].
        fmt: the block format.
        tensor_scale: NVFP4's tensor scale, a power of two; MX formats have none.

    Returns:
        float32[..., K]; NaN throughout a block whose scale is NaN.
    """
    if fmt.scale == "e8m0":
        step = E8M0_SCALES[scales]
    else:
        _check_tensor_scale(tensor_scale)
        step = E4M3_SCALES[scales] * np.float32(tensor_scale)
    values = element_table(fmt.element)[_blocks(codes, fmt.block)]
    with np.errstate(over="ignore"):
        product: FloatArray = values * step[..., None]
    return product.reshape(codes.shape)


def pack_codes(codes: CodeArray, bits: int) -> CodeArray:
    """Packs codes into a little-endian bit stream along the last axis.

    Args:
        codes: uint8[..., K], each below 2^bits.
        bits: length of a code; K·bits is a multiple of 8.

    Returns:
        uint8[..., K·bits / 8]: code c occupies bits c·bits to (c+1)·bits − 1 of the stream.
    """
    if codes.shape[-1] * bits % 8:
        raise ValueError(f"{codes.shape[-1]} codes of {bits} bits fill no whole number of bytes")
    stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(_joined(stream), axis=-1, bitorder="little")


def unpack_codes(packed: CodeArray, bits: int) -> CodeArray:
    """The inverse of `pack_codes`: uint8[..., B] → uint8[..., 8·B / bits]."""
    if packed.shape[-1] * 8 % bits:
        raise ValueError(f"{packed.shape[-1]} bytes hold no whole number of {bits}-bit codes")
    stream = np.unpackbits(packed, axis=-1, bitorder="little")
    return np.packbits(_blocks(stream, bits), axis=-1, bitorder="little")[..., 0]


def _finite(blocks: FloatArray, amax: FloatArray) -> FloatArray:
    """The blocks, zeros in place of those that hold NaN or Inf."""
    return np.where(np.isfinite(amax)[..., None], blocks, np.float32(0))


def _encode_blocks(
    blocks: FloatArray, scales: CodeArray, fmt: BlockFormat, tensor_scale: float
) -> CodeArray:
    """Codes uint8[..., n, block] of finite blocks under given scales[..., n]."""
    if fmt.scale == "e8m0":
        reciprocal = np.ldexp(np.float32(1), E8M0_BIAS - scales.astype(np.int32))
    else:
        step = E4M3_SCALES[scales] * np.float32(tensor_scale)
        reciprocal = np.zeros_like(step)
        np.divide(np.float32(1), step, out=reciprocal, where=step > 0)
    # Where scales saturate, the product may overflow to Inf, which the encoding clamps like any
    # value beyond max.
    with np.errstate(over="ignore"):
        values = blocks * reciprocal[..., None]
    return encode_elements(values, fmt.element)


def _block_errors(
    blocks: FloatArray,
    amax: FloatArray,
    codes: CodeArray,
    scales: CodeArray,
    fmt: BlockFormat,
    tensor_scale: float,
) -> FloatArray:
    """Sums of squared errors of finite blocks, float32[..., n], by docs/spec.md, searched scales.

    The unit is an MX block's scale, and of an NVFP4 block 2^floor(log2 amax), within 2^±126.
    """
    elements = np.abs(element_table(fmt.element)[codes])
    if fmt.scale == "e8m0":
        unit = np.ldexp(np.float32(1), E8M0_BIAS - scales.astype(np.int32))
        rounded = elements
    else:
        field = np.ascontiguousarray(amax).view(np.int32).reshape(amax.shape)
        field = np.clip(2 * E8M0_BIAS - (field >> FLOAT32_MANTISSA_BITS), 1, 253)
        unit = np.ldexp(np.float32(1), field - E8M0_BIAS)
        step = E4M3_SCALES[scales] * np.float32(tensor_scale) * unit
        rounded = elements * np.where(np.isfinite(amax), step, np.float32(0))[..., None]
    squares = np.square(np.abs(blocks) * unit[..., None] - rounded)
    total = np.zeros(amax.shape, np.float32)
    for position in range(fmt.block):
        total += squares[..., position]
    return total


def _blocks(values: npt.NDArray[Scalar], length: int) -> npt.NDArray[Scalar]:
    """[..., K] → [..., K // length, length]."""
    if values.shape[-1] % length:
        raise ValueError(f"{values.shape[-1]} values are no whole number of blocks of {length}")
    return values.reshape(*values.shape[:-1], values.shape[-1] // length, length)


def _joined(values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """[..., a, b] → [..., a·b]."""
    return values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])


def _check_tensor_scale(tensor_scale: float) -> None:
    mantissa, exponent = math.frexp(tensor_scale)
    if mantissa != 0.5 or abs(exponent - 1) > TENSOR_SCALE_EXPONENT:
        raise ValueError(f"tensor scale {tensor_scale} is no power of two in 2^-100..2^100")
