"""The compiled half of formats.py: packs weights and emulates activations, bit for bit alike.

A segment is `(channels, format id, threshold)`; the channels are a multiple of 32, the threshold
lies in [1, 2] (NVFP4 ignores it) or is None, which searches the better of two scales per block
(docs/spec.md, searched scales; `dequantize` needs neither). An order maps positions to source
channels, −1 to zeros. Bytes are laid out as docs/spec.md says (layout version 2). Every function
raises ValueError for arguments that do not fit each other, and TypeError for arrays of another
dtype or memory layout.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def quantize_pack(
    weight: npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint16],
    channels_first: bool,
    order: npt.NDArray[np.int32],
    segments: Sequence[tuple[int, int, float | None]],
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
    segments: Sequence[tuple[int, int, float | None]],
    tensor_scale: float,
    out: npt.NDArray[np.float32],
    threads: int,
) -> None:
    """Writes the values of packed rows to `out`, C-contiguous float32[N, K_pad]."""

def quantize_rows(
    x: npt.NDArray[np.float32],
    order: npt.NDArray[np.int32],
    segments: Sequence[tuple[int, int, float | None]],
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

def order_rows(
    values: npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint16],
    channels_first: bool,
    order: npt.NDArray[np.int32],
    threads: int,
    bf16: bool = False,
) -> npt.NDArray[np.float32]:
    """Rows with their channels ordered, as they are otherwise.

    Args:
        values: [K, N] if `channels_first`, else [N, K]; types and strides as in `quantize_pack`.
        channels_first: whether the channels are the first axis.
        order: int32[K_pad], K_pad a multiple of 32.
        threads: at least 1; the result does not depend on it.
        bf16: whether `values` holds bfloat16 bits.

    Returns:
        C-contiguous float32[N, K_pad], zeros where the order says padding.
    """

def feedback_panel(
    target: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    factor: npt.NDArray[np.float32],
    loss: npt.NDArray[np.float32],
    format: int,  # noqa: A002
    threshold: float,
    searched: bool,
    tensor_scale: float,
    codes: npt.NDArray[np.uint8],
    code_offset: int,
    scales: npt.NDArray[np.uint8],
    first_word: int,
    first_block: int,
    error: npt.NDArray[np.float32],
    threads: int,
    instruction_set: str = "",
) -> None:
    """Quantizes P ≤ 128 channels of one segment, each after the errors of those before it.

    With H[K, K] = U·diag(D)·Uᵀ, U unit upper triangular, channel k of a row is rounded from
    u_k = target_k + Σ_i e_i·U[i, k] over the panel's earlier channels i, with e = w − ŵ, and has
    the loss D_k·(ŵ_k − u_k)² (LDLQ of QuIP, equal to GPTQ). A block's amax is that of its u before
    the feedback of its own channels. If `searched`, the block gets the scale of less loss of two,
    the first if equal: for MX ⌊log2 amax⌋ − emax and one more, for NVFP4 those that map amax onto 6
    and onto 4. Only the panel's own codes and scale bytes are written: padding is the caller's. All
    values must be finite. In every view of rows, only rows may lie apart.

    Args:
        target: float32[N, P], the weight plus the feedback of all earlier panels; P is a multiple
            of 32.
        weight: float32[N, P], w.
        factor: float32[P, P], U of the panel's channels; only entries above the diagonal are used.
        loss: C-contiguous float32[P], D.
        format: the format's id.
        threshold: mantissa threshold of MX scales in [1, 2], without effect if `searched`.
        searched: whether the better of two scales is searched.
        tensor_scale: NVFP4's, as above.
        codes: written, uint8[N, row_bytes].
        code_offset: where the panel's codes begin in a row, in bytes.
        scales: written, uint8[scale_words, N, 4], may be a slice of rows, as above.
        first_word: the first scale word of the panel's segment.
        first_block: the panel's first block, counted in the segment.
        error: written, float32[N, P], e.
        threads: at least 1; the result does not depend on it.
        instruction_set: as in `quantize_pack`; the result does not depend on it.
    """
