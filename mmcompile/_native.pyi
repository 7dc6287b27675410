"""The compiled half of formats.py: packs weights and emulates activations, bit for bit alike.

A segment is `(channels, format id, threshold)`; the channels are a multiple of 32, the threshold
lies in [1, 2] (NVFP4 ignores it). An order maps positions to source channels, −1 to zeros. Bytes
are laid out as docs/spec.md says (layout version 2). Every function raises ValueError for arguments
that do not fit each other, and TypeError for arrays of another dtype or memory layout.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def quantize_pack(
    weight: npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint16],
    channels_first: bool,
    order: npt.NDArray[np.int32],
    segments: Sequence[tuple[int, int, float]],
    tensor_scale: float,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint8],
    threads: int,
    bf16: bool = False,
    instruction_set: str = "",
) -> npt.NDArray[np.float64]:
    """Quantizes a weight and writes its packed rows.

    Args:
        weight: [K, N] if `channels_first`, else [N, K]; float32, float16, or bfloat16 bits as
            uint16; any strides, may be read-only.
        channels_first: whether the input channels are the first axis.
        order: int32[K_pad].
        segments: their channels sum to K_pad.
        tensor_scale: NVFP4's, a power of two in 2^-100..2^100; 1 without NVFP4.
        codes: written, C-contiguous uint8[N, row_bytes]; may be a slice of rows.
        scales: written, uint8[scale_words, N, 4]; may be a slice of rows, `scales[:, i:j]` of a
            C-contiguous array.
        threads: at least 1; the result does not depend on it.
        bf16: whether `weight` holds bfloat16 bits.
        instruction_set: one of `instruction_sets()`, the best if empty; the result does not depend
            on it.

    Returns:
        float64[S, 2]: Σ w² and Σ (w − ŵ)² of each segment; NaN where it holds NaN or Inf.
    """

def instruction_sets() -> list[str]:
    """The instruction sets that this processor has and `quantize_pack` can use, best first."""

def dequantize(
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.uint8],
    segments: Sequence[tuple[int, int, float]],
    tensor_scale: float,
    out: npt.NDArray[np.float32],
    threads: int,
) -> None:
    """Writes the values of packed rows to `out`, C-contiguous float32[N, K_pad]."""

def quantize_rows(
    x: npt.NDArray[np.float32],
    order: npt.NDArray[np.int32],
    segments: Sequence[tuple[int, int, float]],
    tensor_scale: float,
    threads: int,
) -> npt.NDArray[np.float32]:
    """Rows of activations as a kernel sees them: ordered, quantized and dequantized.

    Args:
        x: float32[M, K] of any strides.
        order: int32[K_pad].
        segments: of the activations' formats; their channels sum to K_pad.
        tensor_scale: NVFP4's, as above.
        threads: at least 1; the result does not depend on it.

    Returns:
        float32[M, K_pad].
    """
