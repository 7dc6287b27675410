"""TensorRT's quantizing operators, written out in standard operators for ONNX Runtime.

The graph for TensorRT carries none of these: its importers know the operators by name. The copy
for ONNX Runtime carries them as model-local functions.

What the operators are (inputs, outputs, attributes) is in docs/baselines.md with its sources:
NVIDIA's operator pages (DynamicQuantize, Dequantize), the quantization schemes of TensorRT's
developer guide, the checks of onnx-tensorrt's importers, and the graphs that NVIDIA Model
Optimizer exports. All block along the last axis here; `axis` is carried and not read.

Containers. ONNX Runtime 1.31 has no kernel for FLOAT4E2M1 on the CPU. Every E2M1 number is an
E4M3 number, so quantized activations travel as FLOAT8E4M3FN; weights stay packed, and their two
codes a byte are read as UINT8 from the same place in the data file. E8M0 scales are UINT8 in
TensorRT's ONNX form, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
from onnx import helper

from mmcompile.formats import E2M1
from mmcompile.model.passes.baselines.kinds import MXFP8, NVFP4
from mmcompile.model.passes.pending import small
from mmcompile.quantize import E8M0_SCALES, element_table

TRT = "trt"
"""Domain of TensorRT's operators in exports of NVIDIA's tools; the importer looks at names only."""
OWN = "mmcompile.baseline"
"""Domain of the functions that stand for operators on FLOAT4E2M1 in the copy for ONNX Runtime."""
MXFP8_QUANTIZE, MXFP8_DEQUANTIZE = "TRT_MXFP8DynamicQuantize", "TRT_MXFP8DequantizeLinear"
FP4_QUANTIZE = "TRT_FP4DynamicQuantize"
FP4_DEQUANTIZE, FP4_UNPACK = "FP4Dequantize", "FP4DequantizePacked"


def function_protos(kind: str, opset: int) -> list[onnx.FunctionProto]:
    """The functions that a baseline needs in ONNX Runtime.

    Args:
        kind: name of the baseline.
        opset: version of the standard domain, at least 19.
    """
    found = []
    for domain, name, signature, body in _FUNCTIONS.get(kind, ()):
        if opset < 18:
            raise ValueError(f"opset {opset} has no ReduceMax with axes as an input")
        function = onnx.parser.parse_function(
            f'<domain: "{domain}", opset_import: ["": {opset}]>\n{name} {signature} {{{body}}}'
        )
        logic = [onnx.NodeProto.FromString(n.SerializeToString()) for n in function.node]
        used = {value for node in logic for value in node.input}
        del function.node[:]
        function.node.extend(
            helper.make_node("Constant", [], [value], value=small(value, array))
            for value, array in _TABLES.items()
            if value in used
        )
        function.node.extend(logic)
        found.append(function)
    return found


_F32 = np.float32
_TABLES: dict[str, npt.NDArray[Any]] = {
    "powers": E8M0_SCALES,
    "inverses": np.append(np.ldexp(_F32(1), 127 - np.arange(255)), _F32(np.nan)).astype(_F32),
    "elements": element_table(E2M1),
    "first": np.array([0], np.int64),
    "last": np.array([-1], np.int64),
    "one_value": np.array([1], np.int64),
    "bias": np.array(127, np.int64),
    "none": np.array(0, np.int64),
    "sixteen": np.array(16, np.int32),
    "nothing": np.array(0, _F32),
    "unit": np.array(1, _F32),
    "half": np.array(0.5, _F32),
    "two": np.array(2, _F32),
    "four": np.array(4, _F32),
    "six": np.array(6, _F32),
    "minus_six": np.array(-6, _F32),
    "e4m3_max": np.array(448, _F32),
    "minus_e4m3_max": np.array(-448, _F32),
    "half_e4m3_max": np.array(224, _F32),
    "smallest": np.array(2.0**-126, _F32),
    "lowest_exponent": np.array(-126, _F32),
    "highest_exponent": np.array(127, _F32),
    "inverse_ln2": np.array(1 / np.log(2), _F32),
}

# [..., K] → [..., K / block, block]
_BLOCKS = """
    x_float = Cast <to = 1> (x)
    x_shape = Shape (x_float)
    block_value = Constant <value_int: int = @block_size> ()
    block_1 = Reshape (block_value, one_value)
    leading = Slice (x_shape, first, last)
    block_shape = Concat <axis = 0> (leading, last, block_1)
    blocks = Reshape (x_float, block_shape)
"""

# ⌈log2(amax / 448)⌉ from a logarithm, which may be off by one, and two exact comparisons.
_E8M0 = """
    magnitude = Abs (blocks)
    amax = ReduceMax <keepdims = 1> (magnitude, last)
    ratio = Div (amax, e4m3_max)
    positive = Max (ratio, smallest)
    logarithm = Log (positive)
    exponent_value = Mul (logarithm, inverse_ln2)
    exponent_up = Ceil (exponent_value)
    exponent_low = Max (exponent_up, lowest_exponent)
    exponent_in = Min (exponent_low, highest_exponent)
    not_number = IsNaN (exponent_in)
    exponent_safe = Where (not_number, nothing, exponent_in)
    exponent = Cast <to = 7> (exponent_safe)
    guess = Add (exponent, bias)
    guess_scale = Gather (powers, guess)
    upper = Mul (guess_scale, e4m3_max)
    too_small = Greater (amax, upper)
    increment = Cast <to = 7> (too_small)
    lower = Mul (guess_scale, half_e4m3_max)
    too_large = LessOrEqual (amax, lower)
    decrement = Cast <to = 7> (too_large)
    raised = Add (guess, increment)
    byte_value = Sub (raised, decrement)
    byte = Max (byte_value, none)
"""

_MXFP8_QUANTIZE = f"""{_BLOCKS}{_E8M0}
    inverse = Gather (inverses, byte)
    scaled = Mul (blocks, inverse)
    above = Max (scaled, minus_e4m3_max)
    clamped = Min (above, e4m3_max)
    flat = Reshape (clamped, x_shape)
    y = Cast <to = 17> (flat)
    byte_flat = Squeeze (byte, last)
    y_scale = Cast <to = 2> (byte_flat)
"""

_MXFP8_DEQUANTIZE = f"""{_BLOCKS}
    byte = Cast <to = 6> (x_scale)
    scale = Gather (powers, byte)
    scale_column = Unsqueeze (scale, last)
    product = Mul (blocks, scale_column)
    flat = Reshape (product, x_shape)
    y = Cast <to: int = @output_dtype> (flat)
"""

# The E4M3 block scale is amax / 6 in units of the tensor scale. The step of the E2M1 grid is ½
# below 2, 1 below 4 and 2 above; Round goes to even, which is the even code.
_FP4_QUANTIZE = f"""{_BLOCKS}
    magnitude = Abs (blocks)
    amax = ReduceMax <keepdims = 1> (magnitude, last)
    sixth = Div (amax, six)
    ratio = Div (sixth, tensor_scale)
    ratio_in = Min (ratio, e4m3_max)
    scale_code = Cast <to = 17> (ratio_in)
    scale_value = Cast <to = 1> (scale_code)
    block_step = Mul (scale_value, tensor_scale)
    is_zero = Equal (block_step, nothing)
    divisor = Where (is_zero, unit, block_step)
    quotient = Div (blocks, divisor)
    scaled = Where (is_zero, nothing, quotient)
    above = Max (scaled, minus_six)
    clamped = Min (above, six)
    size = Abs (clamped)
    below_four = Less (size, four)
    large_step = Where (below_four, unit, two)
    below_two = Less (size, two)
    grid_step = Where (below_two, half, large_step)
    steps = Div (clamped, grid_step)
    whole_steps = Round (steps)
    element = Mul (whole_steps, grid_step)
    flat = Reshape (element, x_shape)
    y = Cast <to = 17> (flat)
    scale_flat = Squeeze (ratio_in, last)
    y_scale = Cast <to = 17> (scale_flat)
"""

_FP4_DEQUANTIZE = f"""{_BLOCKS}
    scale_column = Unsqueeze (x_scale, last)
    product = Mul (blocks, scale_column)
    y = Reshape (product, x_shape)
"""

_FP4_UNPACK = """
    bytes = Cast <to = 6> (x)
    low = Mod (bytes, sixteen)
    high = Div (bytes, sixteen)
    low_column = Unsqueeze (low, last)
    high_column = Unsqueeze (high, last)
    code = Concat <axis = -1> (low_column, high_column)
    value = Gather (elements, code)
    block_value = Constant <value_int: int = @block_size> ()
    block_1 = Reshape (block_value, one_value)
    x_shape = Shape (x)
    leading = Slice (x_shape, first, last)
    block_shape = Concat <axis = 0> (leading, last, block_1)
    blocks = Reshape (value, block_shape)
    scale_column = Unsqueeze (x_scale, last)
    product = Mul (blocks, scale_column)
    row_shape = Concat <axis = 0> (leading, last)
    y = Reshape (product, row_shape)
"""

_QUANTIZE = "(x) => (y, y_scale)"
_FUNCTIONS = {
    MXFP8.name: (
        (TRT, MXFP8_QUANTIZE, f"<axis, block_size, output_dtype> {_QUANTIZE}", _MXFP8_QUANTIZE),
        (
            TRT,
            MXFP8_DEQUANTIZE,
            "<axis, block_size, output_dtype> (x, x_scale) => (y)",
            _MXFP8_DEQUANTIZE,
        ),
    ),
    NVFP4.name: (
        (
            TRT,
            FP4_QUANTIZE,
            "<axis, block_size, scale_type> (x, tensor_scale) => (y, y_scale)",
            _FP4_QUANTIZE,
        ),
        (OWN, FP4_DEQUANTIZE, "<axis, block_size> (x, x_scale) => (y)", _FP4_DEQUANTIZE),
        (OWN, FP4_UNPACK, "<axis, block_size> (x, x_scale) => (y)", _FP4_UNPACK),
    ),
}
