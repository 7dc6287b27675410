"""What is known of GPUs, as data: every figure with where it was read, and nothing elsewhere.

A figure that is not known is None. Instruction rates are FLOP (two per multiply-add) per
multiprocessor and clock, dense, accumulating in fp32; `target.Kind` names the instructions.

None of them was measured by this project; `mmcompile doctor --selftest` measures them on the GPU
that it runs on. To add a GPU, add an entry to `GPUS`; an architecture, to `TARGETS`.
"""

from __future__ import annotations

from types import MappingProxyType

from mmcompile.targets.target import Figure, Gpu, Kernels, Kind, Target

_RTX = "NVIDIA RTX Blackwell GPU Architecture whitepaper"
_5090 = "pocketmags.com, Linux Format, May 2025, RTX 5090"
_5080 = "techpowerup.com, review of the RTX 5080 Founders Edition"
_PRO = "NVIDIA RTX Blackwell PRO GPU Architecture whitepaper"
_SPARK = "dgx-spark.warehack.ing/hardware"
_H100 = "glennklockwood.com/garden/processors/h100, after NVIDIA's H100 whitepaper"
_H200 = "saulelectric.com/nvidia-h200.html, after NVIDIA's H200 datasheet"
_HOPPER = "github.com/NVIDIA/cudnn-frontend/pull/650"
_B200 = "NVIDIA Blackwell architecture brief: B200, dense, 2.25 PFLOP/s of FP16; from memory"
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
        Kind.FP16: Figure(512, _HALVED),
        Kind.FP8: Figure(1024, _PLAIN8),
        Kind.BLOCK8: Figure(2048, _BLOCK8),
        Kind.BLOCK4: Figure(4096, _BLOCK4),
    }
)
_FAMILY = "; the same tensor cores as GeForce's, assumed"
_PRO_RATES = MappingProxyType(
    {
        Kind.FP16: Figure(1024, _FULL16),
        Kind.FP8: Figure(2048, f"{_PRO}: FP8 with fp32 sums at twice FP16"),
        Kind.BLOCK8: Figure(2048, _BLOCK8 + _FAMILY),
        Kind.BLOCK4: Figure(4096, _BLOCK4 + _FAMILY),
    }
)
_SPARK_RATES = MappingProxyType(
    {
        Kind.FP16: Figure(1024, _SPARK16),
        Kind.FP8: Figure(2048, "twice FP16, as on RTX PRO; assumed"),
        Kind.BLOCK8: Figure(2048, _BLOCK8 + _FAMILY),
        Kind.BLOCK4: Figure(4096, f"{_SPARK}: 1 PFLOP of FP4 with sparsity, 500 TFLOP/s dense"),
    }
)
_HOPPER_RATES = MappingProxyType(
    {
        Kind.FP16: Figure(4096, _HOPPER),
        Kind.FP8: Figure(8192, _HOPPER),
    }
)
"""Hopper multiplies no block-scaled operands; the portable kernels use its fp16 instructions."""
_B200_RATES = MappingProxyType(
    {
        Kind.FP16: Figure(8192, _B200),
        Kind.FP8: Figure(16384, f"{_B200}; FP8 at twice FP16"),
        Kind.BLOCK8: Figure(16384, f"{_B200}; tcgen05 kind::mxf8f6f4 at the rate of FP8"),
        Kind.BLOCK4: Figure(32768, f"{_B200}; tcgen05 kind::mxf4nvf4 at twice FP8"),
    }
)

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

TARGETS = (
    Target(
        "sm_120",
        "GeForce RTX 50",
        Kernels.NATIVE,
        _GEFORCE_RATES,
        ("rtx5090", "rtx5080", "rtx5070ti", "rtx5070tilaptop", "rtx5070", "rtx5060ti", "rtx5060"),
    ),
    Target("sm_120", "RTX PRO Blackwell", Kernels.NATIVE, _PRO_RATES, ("rtxpro6000",)),
    Target("sm_121", "DGX Spark (GB10)", Kernels.NATIVE, _SPARK_RATES, ("dgxspark", "gb10")),
    Target("sm_100", "Blackwell B200", Kernels.NONE, _B200_RATES, ("b200", "gb200")),
    Target(
        "sm_90",
        "Hopper, portable kernels",
        Kernels.PORTABLE,
        _HOPPER_RATES,
        ("h100", "h200", "gh200"),
    ),
    Target(
        "sm_89",
        "Ada, portable kernels",
        Kernels.PORTABLE,
        MappingProxyType({}),
        ("rtx4090", "rtx4080", "l4", "l40", "l40s"),
    ),
    Target(
        "sm_80",
        "Ampere A100, portable kernels",
        Kernels.PORTABLE,
        MappingProxyType({}),
        ("a100", "a30"),
    ),
)
"""Blackwell natively; older GPUs through the portable implementation of the same mathematics. An
architecture's own name stands for the first of its entries."""

DEFAULT_TARGET = TARGETS[0].name
DEFAULT_GPU = GPUS[0].name
"""What is meant where nobody names one."""

SYNONYMS = {"gb10": "dgxspark", "h100sxm": "h100", "h200sxm": "h200"}
"""Other names of GPUs, as `names.plain_name` writes them."""

REPORTED = {
    "rtx5090": "rtx5090",
    "rtx5080": "rtx5080",
    "rtx5070tilaptopgpu": "rtx5070tilaptop",
    "rtxpro6000blackwellworkstationedition": "rtxpro6000",
    "gb10": "dgxspark",
    "h10080gbhbm3": "h100",
    "h200": "h200",
}
"""What drivers report, as `names.plain_name` writes it."""
