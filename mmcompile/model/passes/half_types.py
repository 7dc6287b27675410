"""The half-precision types that what is no quantized linear may compute in."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, helper

from mmcompile.model.rest import Rest


@dataclass(frozen=True)
class HalfType:
    """A floating-point type of two bytes.

    Attributes:
        name: what it is asked for by.
        elem_type: its `onnx.TensorProto` type.
        largest: its largest finite number.
        smallest: its smallest number above zero.
    """

    name: str
    elem_type: int
    largest: float
    smallest: float

    @property
    def mask(self) -> float:
        """What masks are clipped to: two of them and a score stay far inside of the range."""
        return self.largest / 8

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
        HalfType(Rest.FP16, TensorProto.FLOAT16, 65504.0, 2.0**-24),
        HalfType(Rest.BF16, TensorProto.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 2.0**-133),
    )
}
"""Both by name."""
FP16, BF16 = HALF_TYPES[Rest.FP16], HALF_TYPES[Rest.BF16]
