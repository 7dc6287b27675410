"""The half-precision types that what is no quantized linear may compute in."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, helper


@dataclass(frozen=True)
class HalfType:
    """A floating-point type of two bytes.

    Attributes:
        name: what it is asked for by.
        elem_type: its `onnx.TensorProto` type.
        largest: its largest finite number.
    """

    name: str
    elem_type: int
    largest: float

    @property
    def dtype(self) -> str:
        """Numpy's name of it."""
        return helper.tensor_dtype_to_np_dtype(self.elem_type).name

    @property
    def formal(self) -> str:
        """Its name in the schemas of onnx."""
        return f"tensor({self.dtype})"


HALF_TYPES = {
    half.name: half
    for half in (
        HalfType("fp16", TensorProto.FLOAT16, 65504.0),
        HalfType("bf16", TensorProto.BFLOAT16, (2 - 2.0**-7) * 2.0**127),
    )
}
"""Both by name."""
FP16, BF16 = HALF_TYPES["fp16"], HALF_TYPES["bf16"]
