"""What is known of single GPUs, as data: every figure with where it was read.

A figure that is not known is None. Instruction rates are FLOP (two per multiply-add) per
multiprocessor and clock, dense, accumulating in fp32:

    fp16    fp16 and bf16 operands
    fp8     E4M3 operands without block scales
    block8  E4M3 operands with block scales: MXFP8, and 6-bit elements widened to E4M3
    block4  E2M1 operands with block scales: MXFP4 and NVFP4

None of them was measured by this project; `mmcompile doctor --selftest` measures them on the GPU
that it runs on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from mmcompile.errors import UsageError


class Figure(NamedTuple):
    """A number and the document that it stands in."""

    value: float
    source: str


@dataclass(frozen=True)
class Gpu:
    """One GPU model.

    Attributes:
        name: what users type, e.g. `rtx5090`.
        title: its full name.
        architecture: compute capability, e.g. 120.
        multiprocessors: SMs.
        clock: boost clock, Hz.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
        l2: bytes of the L2 cache.
        rates: FLOP per multiprocessor and clock, by kind of instruction; missing kinds do not
            exist on this GPU.
    """

    name: str
    title: str
    architecture: int
    multiprocessors: Figure
    clock: Figure | None
    bandwidth: Figure | None
    memory: Figure | None
    l2: Figure | None
    rates: Mapping[str, Figure]

    def flops(self, kind: str) -> float | None:
        """FLOP per second of the whole GPU at its boost clock; None where it cannot be said."""
        rate = self.rates.get(kind)
        if rate is None or self.clock is None:
            return None
        return rate.value * self.multiprocessors.value * self.clock.value


_RTX = "NVIDIA RTX Blackwell GPU Architecture whitepaper"
_5090 = "pocketmags.com, Linux Format, May 2025, RTX 5090"
_5080 = "techpowerup.com, review of the RTX 5080 Founders Edition"
_PRO = "NVIDIA RTX Blackwell PRO GPU Architecture whitepaper"
_SPARK = "dgx-spark.warehack.ing/hardware"
_H100 = "glennklockwood.com/garden/processors/h100, after NVIDIA's H100 whitepaper"
_H200 = "saulelectric.com/nvidia-h200.html, after NVIDIA's H200 datasheet"
_HOPPER = "github.com/NVIDIA/cudnn-frontend/pull/650"
_LAPTOP = "nvidia.com/geforce/laptops/50-series, specifications; quoted from memory"
_HALVED = (
    "measured on an RTX 5060 Ti at 51 TFLOP/s for 36 SMs: "
    "github.com/flashinfer-ai/flashinfer/issues/3628; RTX 5090: 209.5 TFLOP/s, " + _RTX
)
_PLAIN8 = (
    "measured on an RTX 5060 Ti, twice FP16: github.com/flashinfer-ai/flashinfer/issues/3628; "
    "RTX 5090: 419 TFLOP/s, " + _RTX
)
_BLOCK8 = (
    "measured on an RTX 5060 Ti, four times FP16 with fp32 sums (QMMA.SF): "
    "github.com/flashinfer-ai/flashinfer/issues/3628"
)
_BLOCK4 = (
    "measured on an RTX 5090, 4095 per SM and clock (OMMA.SF): "
    "github.com/Neroued/ninfer/pull/160; RTX 5090: 1676 TFLOP/s, " + _RTX
)
_FULL16 = (
    "RTX PRO 6000: 503.8 TFLOP/s of BF16 with fp32 sums, " + _PRO + ", as quoted in "
    "github.com/NVIDIA/cudnn-frontend/pull/597"
)
_SPARK16 = (
    "91 to 92 TFLOP/s of BF16 measured, which 512 per SM and clock could not give (59): "
    "github.com/huggingface/kernels/pull/283; same table row as RTX PRO in "
    "github.com/NVIDIA/cudnn-frontend/pull/597"
)

_GEFORCE_RATES = MappingProxyType(
    {
        "fp16": Figure(512, _HALVED),
        "fp8": Figure(1024, _PLAIN8),
        "block8": Figure(2048, _BLOCK8),
        "block4": Figure(4096, _BLOCK4),
    }
)
_FAMILY = "; the same tensor cores as GeForce's, assumed"
_PRO_RATES = MappingProxyType(
    {
        "fp16": Figure(1024, _FULL16),
        "fp8": Figure(2048, f"{_PRO}: FP8 with fp32 sums at twice FP16"),
        "block8": Figure(2048, _BLOCK8 + _FAMILY),
        "block4": Figure(4096, _BLOCK4 + _FAMILY),
    }
)
_SPARK_RATES = MappingProxyType(
    {
        "fp16": Figure(1024, _SPARK16),
        "fp8": Figure(2048, "twice FP16, as on RTX PRO; assumed"),
        "block8": Figure(2048, _BLOCK8 + _FAMILY),
        "block4": Figure(4096, f"{_SPARK}: 1 PFLOP of FP4 with sparsity, 500 TFLOP/s dense"),
    }
)
_HOPPER_RATES = MappingProxyType(
    {
        "fp16": Figure(4096, _HOPPER),
        "fp8": Figure(8192, _HOPPER),
    }
)
"""Hopper multiplies no block-scaled operands; the portable kernels use its fp16 instructions."""

GPUS = (
    Gpu(
        "rtx5090",
        "GeForce RTX 5090",
        120,
        Figure(170, _5090),
        Figure(2.407e9, _5090),
        Figure(1.792e12, _5090),
        Figure(32e9, _5090),
        Figure(96 * 2**20, _5090),
        _GEFORCE_RATES,
    ),
    Gpu(
        "rtx5080",
        "GeForce RTX 5080",
        120,
        Figure(84, _5080),
        Figure(2.617e9, "fpsbench.com and notebookcheck.net (2.62 GHz), RTX 5080"),
        Figure(0.96e12, "notebookcheck.net, RTX 5080: 256 bits of GDDR7, 960 GB/s"),
        Figure(16e9, "notebookcheck.net, RTX 5080"),
        Figure(64 * 2**20, _5080),
        _GEFORCE_RATES,
    ),
    Gpu(
        "rtx5070tilaptop",
        "GeForce RTX 5070 Ti Laptop GPU",
        120,
        Figure(46, f"{_LAPTOP}: 5888 CUDA cores"),
        Figure(2.22e9, f"{_LAPTOP}: 1447 to 2220 MHz by the laptop's power"),
        Figure(0.672e12, f"{_LAPTOP}: 192 bits of GDDR7 at 28 Gbit/s"),
        Figure(12e9, _LAPTOP),
        None,
        _GEFORCE_RATES,
    ),
    Gpu(
        "rtxpro6000",
        "RTX PRO 6000 Blackwell",
        120,
        Figure(188, "gpu.name, RTX PRO 6000 Blackwell: 24,064 CUDA cores"),
        Figure(2.617e9, "hmc-tech.com, RTX PRO 6000 Blackwell; 503.8 TFLOP/s at 1024 and 188 SMs"),
        Figure(1.792e12, "gpu.name, RTX PRO 6000 Blackwell: 512 bits of GDDR7, 1,792 GB/s"),
        Figure(96e9, "gpu.name, RTX PRO 6000 Blackwell"),
        Figure(128 * 2**20, "press on GTC 2025 (ferreiradozezere.net): GB202 with 128 MB"),
        _PRO_RATES,
    ),
    Gpu(
        "dgxspark",
        "DGX Spark (GB10)",
        121,
        Figure(48, "github.com/huggingface/kernels/pull/283"),
        Figure(
            2.418e9,
            "29.71 TFLOP/s of FP32 at 256 per SM and clock: techpowerup.com, GB10, by "
            "github.com/huggingface/huggingface.js/pull/1861",
        ),
        Figure(0.273e12, "blog.kubesimplify.com, DGX Spark, day 3: 273 GB/s"),
        Figure(128e9, f"{_SPARK}; shared with the CPU"),
        Figure(24 * 2**20, "github.com/huggingface/kernels/pull/283"),
        _SPARK_RATES,
    ),
    Gpu(
        "h100",
        "H100 SXM5",
        90,
        Figure(132, _H100),
        Figure(1.83e9, f"{_H100}: 1.83 GHz in low precision, 989.4 TFLOP/s of FP16"),
        Figure(3.35e12, _H100),
        Figure(80e9, _H100),
        Figure(50 * 2**20, "3eyedtech.com/gpgpu, H100 SXM5"),
        _HOPPER_RATES,
    ),
    Gpu(
        "h200",
        "H200 SXM",
        90,
        Figure(132, _H200),
        Figure(1.83e9, f"{_HOPPER}: H100/H200, 989.5 TFLOP/s of BF16"),
        Figure(4.8e12, f"{_H200}: 4.8 TB/s"),
        Figure(141e9, f"{_H200}: 141 GB"),
        Figure(50 * 2**20, "the same chip as H100: 3eyedtech.com/gpgpu"),
        _HOPPER_RATES,
    ),
)
"""In the order in which they are listed."""


def plain_name(name: str) -> str:
    """A GPU's name without what people type differently: case, spaces, vendor."""
    wanted = "".join(name.lower().split()).replace("-", "").replace("_", "")
    return wanted.removeprefix("nvidia").removeprefix("geforce")


def parse_gpu(name: str) -> Gpu:
    """The GPU of that name, as users type it.

    Raises:
        UsageError: unknown, or a family of GPUs that differ in their numbers; lists the known.
    """
    wanted = plain_name(name)
    wanted = {"gb10": "dgxspark", "h100sxm": "h100", "h200sxm": "h200"}.get(wanted, wanted)
    for gpu in GPUS:
        if wanted == gpu.name:
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    reason = f"there are no figures of '{name}'"
    if wanted.startswith("sm"):
        reason = f"'{name}' is a family; its GPUs differ in multiprocessors and bandwidth"
    raise UsageError("unknown-gpu-model", "--gpu", reason, f"use one of {known}")


def identify_gpu(reported: str) -> Gpu | None:
    """The GPU that a driver calls so, e.g. `NVIDIA H100 80GB HBM3`; None where it is not known.

    Only whole names count: an `RTX 5090 Laptop GPU` or an `H100 PCIe` is another product.
    """
    found = _REPORTED.get(plain_name(reported))
    return next((gpu for gpu in GPUS if gpu.name == found), None)


_REPORTED = {
    "rtx5090": "rtx5090",
    "rtx5080": "rtx5080",
    "rtx5070tilaptopgpu": "rtx5070tilaptop",
    "rtxpro6000blackwellworkstationedition": "rtxpro6000",
    "gb10": "dgxspark",
    "h10080gbhbm3": "h100",
    "h200": "h200",
}
"""What drivers report, as `plain_name` writes it."""
