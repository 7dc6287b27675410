"""What a quantized baseline has to compute, by ml_dtypes' casts and float64 products.

Nothing here uses mmcompile's own arithmetic. Tensors are quantized along their last axis.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn


def fp8_scale(amax: float) -> np.float16:
    """amax / 448, rounded up to float16; 1 for a tensor of zeros."""
    exact = amax / 448 or 1.0
    scale = np.float16(exact)
    return scale if float(scale) >= exact else np.nextafter(scale, np.float16(np.inf))


def fp8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float16 values of E4M3 codes, float16 scales."""
    ratio = values.astype(np.float32) / np.asarray(scale).astype(np.float32)
    codes = np.clip(ratio, -448, 448).astype(E4M3)
    return (codes.astype(np.float32) * np.asarray(scale).astype(np.float32)).astype(np.float16)


def mxfp8_exponents(values: np.ndarray) -> np.ndarray:
    """⌈log2(amax / 448)⌉ of every block of 32, at least −127."""
    amax = np.abs(values.astype(np.float64)).reshape(*values.shape[:-1], -1, 32).max(axis=-1)
    mantissa, exponent = np.frexp(amax / 448)
    exponent = np.where(amax == 0, -127, exponent - (mantissa == 0.5))
    return np.maximum(exponent, -127)


def mxfp8_codes(values: np.ndarray) -> np.ndarray:
    """E4M3 codes, as uint8."""
    scale = np.ldexp(1.0, mxfp8_exponents(values))[..., None]
    blocks = values.astype(np.float64).reshape(*scale.shape[:-1], 32) / scale
    return np.clip(blocks, -448, 448).astype(E4M3).reshape(values.shape)


def mxfp8(values: np.ndarray) -> np.ndarray:
    """float16 values of MXFP8."""
    scale = np.repeat(np.ldexp(1.0, mxfp8_exponents(values)), 32, axis=-1)
    return (mxfp8_codes(values).astype(np.float64) * scale).astype(np.float16)


def nvfp4_scale(amax: float) -> np.float32:
    """amax / 6 / 448, 1 for a tensor of zeros."""
    return np.float32(amax / 6 / 448) or np.float32(1)


def nvfp4_block_scales(values: np.ndarray, tensor_scale: np.float32) -> np.ndarray:
    """E4M3 block scales of blocks of 16."""
    amax = np.abs(values.astype(np.float32)).reshape(*values.shape[:-1], -1, 16).max(axis=-1)
    return np.minimum(amax / np.float32(6) / tensor_scale, np.float32(448)).astype(E4M3)


def nvfp4_codes(values: np.ndarray, tensor_scale: np.float32) -> np.ndarray:
    """E2M1 codes."""
    step = nvfp4_block_scales(values, tensor_scale).astype(np.float32) * tensor_scale
    blocks = values.astype(np.float32).reshape(*step.shape, 16)
    ratio = np.divide(blocks, step[..., None], np.zeros_like(blocks), where=step[..., None] > 0)
    return np.clip(ratio, -6, 6).astype(E2M1).reshape(values.shape)


def nvfp4(values: np.ndarray, tensor_scale: np.float32) -> np.ndarray:
    """float16 values of NVFP4 with two scales."""
    step = nvfp4_block_scales(values, tensor_scale).astype(np.float32) * tensor_scale
    codes = nvfp4_codes(values, tensor_scale).astype(np.float32)
    return (codes * np.repeat(step, 16, axis=-1)).astype(np.float16)


def dequantized(kind: str, values: np.ndarray, amax: float) -> np.ndarray:
    """What the product sees of a tensor, float16, quantized along the last axis."""
    if kind == "fp16":
        return values.astype(np.float16)
    if kind == "fp8":
        return fp8(values, fp8_scale(amax))
    return mxfp8(values) if kind == "mxfp8" else nvfp4(values, nvfp4_scale(amax))
