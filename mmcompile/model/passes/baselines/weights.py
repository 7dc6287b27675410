"""Weights of the quantized baselines: codes and scales, a few rows at a time.

The element and scale arithmetic is that of docs/spec.md (`mmcompile.formats`); what differs from
the uniform formats there is NVFP4's tensor scale, which is amax / (6 · 448) here, as NVIDIA's
exports have it, and no power of two.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmcompile.errors import UnsupportedModelError
from mmcompile.formats import E2M1, E4M3
from mmcompile.model.sites import LinearSite
from mmcompile.model.source import SourceModel
from mmcompile.quantize import encode_elements, mx_scale_bytes

Bytes = npt.NDArray[np.uint8]
_CHUNK = 2 * 2**20
"""Weights that are quantized at a time; the temporaries take about 20 bytes each."""
MXFP8_THRESHOLD = 1.75
"""Block exponent ⌈log2(amax / 448)⌉: 448 = 1.75 · 2⁸, so a mantissa above 1.75 adds one."""


@dataclass(frozen=True)
class SiteWeight:
    """A linear's weight, read from the model when it is asked for.

    Attributes:
        site: the linear.
        source: its model.
    """

    site: LinearSite
    source: SourceModel

    def rows(self) -> npt.NDArray[np.generic]:
        """The weight as [N, K], any strides, `alpha` not applied."""
        weight = self.site.weight.read(self.source)
        return weight.T if self.site.channels_first else weight

    @functools.cached_property
    def amax(self) -> float:
        """The largest magnitude.

        Raises:
            UnsupportedModelError: the weight holds NaN or infinity.
        """
        weight = self.rows()
        largest = 0.0
        for start, stop in _chunks(weight.shape):
            part = np.abs(weight[start:stop].astype(np.float32)).max(initial=0)
            if not np.isfinite(part):
                site = self.site
                raise UnsupportedModelError(
                    "weight-not-finite",
                    f"node {site.node}, weight {site.weight.name}",
                    "the weight holds NaN or infinity",
                    f"mend the model, or leave the layer alone with --exclude '{site.node}'",
                )
            largest = max(largest, float(part))
        return largest

    def channel_amax(self) -> npt.NDArray[np.float32]:
        """float32[N], the largest magnitude of every output channel."""
        weight = self.rows()
        parts = [
            np.abs(weight[a:b].astype(np.float32)).max(axis=1) for a, b in _chunks(weight.shape)
        ]
        return np.concatenate(parts)

    def fp8(self, scale: npt.NDArray[np.float32], *, channels_first: bool) -> Bytes:
        """E4M3 codes of weight / scale.

        Args:
            scale: float32 scalar, or float32[N].
            channels_first: return [K, N] instead of [N, K].
        """
        weight = self.rows()
        count, channels = weight.shape
        codes = np.empty((channels, count) if channels_first else (count, channels), np.uint8)
        rows = codes.T if channels_first else codes
        scale = np.broadcast_to(scale.reshape(-1, 1), (count, 1))
        for start, stop in _chunks(weight.shape):
            values = weight[start:stop].astype(np.float32) / scale[start:stop]
            rows[start:stop] = encode_elements(values, E4M3)
        return codes

    def mxfp8(self) -> tuple[Bytes, Bytes]:
        """E4M3 codes [N, K] and E8M0 bytes [N, K / 32]."""
        weight = self.rows()
        count, channels = weight.shape
        codes = np.empty((count, channels), np.uint8)
        scales = np.empty((count, channels // 32), np.uint8)
        for start, stop in _chunks(weight.shape):
            blocks = weight[start:stop].astype(np.float32).reshape(stop - start, -1, 32)
            found = mx_scale_bytes(np.abs(blocks).max(axis=-1), E4M3, MXFP8_THRESHOLD)
            values = np.ldexp(blocks, 127 - found.astype(np.int32)[..., None])
            codes[start:stop] = encode_elements(values, E4M3).reshape(stop - start, channels)
            scales[start:stop] = found
        return codes, scales

    def nvfp4(self, tensor_scale: np.float32) -> tuple[Bytes, Bytes]:
        """Packed E2M1 codes [N, K / 2], low nibble first, and E4M3 bytes [N, K / 16]."""
        weight = self.rows()
        count, channels = weight.shape
        codes = np.empty((count, channels // 2), np.uint8)
        scales = np.empty((count, channels // 16), np.uint8)
        for start, stop in _chunks(weight.shape):
            blocks = weight[start:stop].astype(np.float32).reshape(stop - start, -1, 16)
            ratio = np.abs(blocks).max(axis=-1) / np.float32(6) / tensor_scale
            found = np.minimum(ratio, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
            step = found.astype(np.float32) * tensor_scale
            values = np.zeros_like(blocks)
            np.divide(blocks, step[..., None], out=values, where=step[..., None] > 0)
            single = encode_elements(values, E2M1).reshape(stop - start, channels)
            codes[start:stop] = single[:, 0::2] | single[:, 1::2] << 4
            scales[start:stop] = found.view(np.uint8)
        return codes, scales


def nvfp4_global_scale(amax: float) -> np.float32:
    """NVFP4's fp32 tensor scale, amax / (6 · 448); 1 for a tensor of zeros.

    Source: NVIDIA Model Optimizer, `export_fp4`: the largest block scale becomes E4M3's 448.
    """
    return np.float32(amax / 6 / 448) or np.float32(1)


def fp8_scale(amax: npt.ArrayLike) -> npt.NDArray[np.float16]:
    """FP8 scales amax / 448 in float16, the type that the graph computes in.

    Rounded up, so that nothing saturates; never 0, which nothing can be divided by.
    """
    exact = np.asarray(amax, np.float64) / 448
    exact = np.where(exact == 0, 1.0, exact)
    scale = exact.astype(np.float16)
    scale = np.where(
        scale.astype(np.float64) < exact, np.nextafter(scale, np.float16(65504)), scale
    )
    return np.asarray(scale, np.float16)


def _chunks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ranges of rows."""
    count, channels = shape
    step = max(1, _CHUNK // max(1, channels))
    return [(start, min(count, start + step)) for start in range(0, count, step)]
