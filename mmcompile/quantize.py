"""How values become codes and codes values: the numpy statement of docs/spec.md.

The reference that the native module and the kernels are compared with, so it is written to be
read; `mmcompile._native` is the fast one.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mmcompile.errors import UsageError
from mmcompile.formats import (
    E2M1,
    E4M3,
    E4M3_NAN,
    E8M0_BIAS,
    E8M0_NAN,
    FLOAT32_MANTISSA_BITS,
    LOWEST_THRESHOLD,
    OCP_THRESHOLD,
    SEARCHED_ELEMENTS,
    TENSOR_SCALE_EXPONENT,
    THRESHOLDS,
    BlockFormat,
    ElementFormat,
)

FloatArray = npt.NDArray[np.float32]
CodeArray = npt.NDArray[np.uint8]
Scalar = TypeVar("Scalar", bound=np.generic)


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
    if not fmt.has_tensor_scale:
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
    if not fmt.has_tensor_scale:
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
    if not fmt.has_tensor_scale:
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
    if not fmt.has_tensor_scale:
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
    if not fmt.has_tensor_scale:
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
