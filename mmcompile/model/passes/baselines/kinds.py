"""What tells the baselines apart: opset, IR version, block length, bits."""

from __future__ import annotations

from dataclasses import dataclass

from mmcompile.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """A baseline.

    Attributes:
        name: what it is asked for by.
        title: what people call it.
        min_opset: the oldest opset of the standard domain that has what the graph needs:
            FLOAT8E4M3FN comes with opset 19, DequantizeLinear of FLOAT4E2M1 with 23. FP8 has 21,
            because ONNX Runtime moves Transposes between Q and DQ, and Transpose takes
            FLOAT8E4M3FN from 21 on.
        min_ir: the oldest IR version that knows those types.
        block: input channels that share a scale; 0 where a tensor shares it, or none has any.
        weight_bits: bits of a weight, block scales included.
        tensorrt: the oldest TensorRT, from 10.13 on, that takes the graph; from documentation, not
            tried (docs/baselines.md).
        needs_data: whether it needs the largest magnitude of every linear's input.
    """

    name: str
    title: str
    min_opset: int
    min_ir: int
    block: int
    weight_bits: float
    tensorrt: str
    needs_data: bool

    @property
    def is_quantized(self) -> bool:
        """Whether linears are quantized at all."""
        return self.weight_bits < 16


FP16 = Kind("fp16", "FP16", 15, 8, 0, weight_bits=16, tensorrt="10.13", needs_data=False)
FP8 = Kind("fp8", "FP8", 21, 10, 0, weight_bits=8, tensorrt="10.13", needs_data=True)
MXFP8 = Kind("mxfp8", "MXFP8", 19, 9, 32, weight_bits=8.25, tensorrt="10.13", needs_data=False)
NVFP4 = Kind("nvfp4", "NVFP4", 23, 11, 16, weight_bits=4.5, tensorrt="11.0", needs_data=True)
KINDS = {kind.name: kind for kind in (FP16, FP8, MXFP8, NVFP4)}
"""All baselines by name."""


def baseline_kind(name: str) -> Kind:
    """The baseline of that name.

    Raises:
        UsageError: there is none.
    """
    try:
        return KINDS[name]
    except KeyError:
        remedy = f"use one of {', '.join(KINDS)}"
        raise UsageError("unknown-baseline", name, "no such baseline", remedy) from None
