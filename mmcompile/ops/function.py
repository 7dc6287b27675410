"""The meaning of `MicroMixLinear` as an ONNX function in standard operators.

The function needs nothing newer than opset 15. It has no access to the bits of a float, so that
it takes the power of two below v from two roundings (S. M. Rump, "Ultimately Fast Accurate
Summation", SIAM J. Sci. Comput. 31(5), 2009, Algorithm 3.5 for the unit in the first place): with
t = fl((2²³ + 1)·v), ufp(v) = t − fl(t·(1 − 2⁻²⁴)).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from mmcompile.formats import BLOCK_FORMATS
from mmcompile.ops.schema import ATTRIBUTES, DOMAIN, INPUTS, OP_TYPE
from mmcompile.plan import SCALE_WORD, SEGMENT_ALIGNMENT, GroupPlan
from mmcompile.quantize import E4M3_SCALES, E8M0_SCALES, element_table

if TYPE_CHECKING:
    import onnx


def needs_half_blocks(groups: Iterable[GroupPlan]) -> bool:
    """Whether any activation segment has blocks of 16: `function_proto`'s `half_blocks`."""
    return any(segment.activation.block == 16 for g in groups for segment in g.segments)


def function_proto(opset: int, *, half_blocks: bool, unpacked: bool = False) -> onnx.FunctionProto:
    """The operator's meaning in standard operators of the given opset.

    Args:
        opset: version of the default ONNX domain in the model, `MIN_OPSET` to `MAX_OPSET`.
        half_blocks: compute activation scales per 16 channels. Needed where a node of the model
            quantizes activations to NVFP4; without it the function is smaller and faster.
        unpacked: take `weight` as [N, K_pad] of any float type, already dequantized, and ignore
            `scales`. Never
            written to a model; for verifying models whose decoding would take too much memory.
    """
    scales = _SCALES_PER_16 if half_blocks else _SCALES_PER_32
    if unpacked:
        body = _LAYOUT + _REORDER + scales + _ROUND + _UNPACKED_PRODUCT + _RESHAPE
    else:
        body = _LAYOUT + _WEIGHT + _REORDER + scales + _ROUND + _PRODUCT + _RESHAPE
    reduce_max = "ReduceMax <keepdims = 1> ({0}, last_axis)"
    if opset < 18:  # axes became an input in opset 18
        reduce_max = "ReduceMax <axes = [-1], keepdims = 1> ({0})"
    body = re.sub(r"BlockMax \((\w+)\)", lambda match: reduce_max.format(match[1]), body)
    from onnx import parser

    function = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {opset}]>\n'
        f"{OP_TYPE} <{', '.join(field.name for field in ATTRIBUTES)}>"
        f" ({', '.join(field.name for field in INPUTS)}) => (y) {{\n{body}}}"
    )
    function.doc_string = _DOC
    logic = list(function.node)
    del function.node[:]
    function.node.extend(_constant(name, value) for name, value in _tables().items())
    function.node.extend(logic)
    return function


def _constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    from onnx import helper, numpy_helper

    tensor = numpy_helper.from_array(np.asarray(value), name)
    return helper.make_node("Constant", [], [name], value=tensor)


def _tables() -> dict[str, np.ndarray]:
    """The constants of the function: what differs between formats, indexed by format id."""
    formats = list(BLOCK_FORMATS.values())
    elements = [fmt.element for fmt in formats]
    values = {element.name: element_table(element) for element in elements}
    starts = dict(zip(values, np.cumsum([0, *map(len, values.values())]), strict=False))
    f32, i32, i64 = np.float32, np.int32, np.int64
    return {
        "format_bits": np.array([e.bits for e in elements], i64),
        "format_block": np.array([fmt.block for fmt in formats], i64),
        "format_is_nvfp4": np.array([fmt.scale == "e4m3" for fmt in formats]),
        "format_table_start": np.array([starts[e.name] for e in elements], i32),
        "format_max": np.array([e.max for e in elements], f32),
        "format_min_normal": np.array([2.0**e.emin for e in elements], f32),
        "format_inverse_max_power": np.array([2.0**-e.emax for e in elements], f32),
        "format_ufp_factor": np.array(
            [(2**23 + 1) * 2.0 ** (23 - e.mantissa_bits) for e in elements], f32
        ),
        "element_values": np.concatenate(list(values.values())).astype(f32),
        "scale_values": np.concatenate([E8M0_SCALES, E4M3_SCALES]).astype(f32),
        "zero": np.array(0, i64),
        "one": np.array(1, i64),
        "two": np.array(2, i64),
        "block": np.array(32, i64),
        "half_block": np.array(16, i64),
        "eight": np.array(8, i64),
        "segment_bits": np.array(8 * SEGMENT_ALIGNMENT, i64),
        "scale_word": np.array(SCALE_WORD, i64),
        "byte_range": np.array(256, i32),
        "first_axis": np.array([0], i64),
        "same": np.array([0], i64),  # in Reshape: the dimension that was there
        "last_axis": np.array([-1], i64),
        "pair": np.array([2], i64),
        "unit": np.array(1, f32),
        "half": np.array(0.5, f32),
        "nothing": np.array(0, f32),
        "ufp_factor": np.array(2**23 + 1, f32),
        "ufp_remainder": np.array(1 - 2.0**-24, f32),
        "rounding_factor": np.array(1.5, f32),
        "huge": np.array(2.0**64, f32),
        "shrink": np.array(2.0**-64, f32),
        "min_scale": np.array(2.0**-127, f32),
        "sixth": np.array(f32(1) / f32(6), f32),
        "e4m3_max": np.array(448, f32),
        "e4m3_min_normal": np.array(2.0**-6, f32),
        "e4m3_rounding": np.array(1.5 * 2.0**20, f32),
    }


_DOC = """Linear layer whose input channels are quantized in mixed block formats (MicroMix).
x is reordered by `order`, quantized segment by segment, and multiplied with the packed weight;
the products are summed in fp32, bias is added, and the sum is rounded once to the type of x.
TensorRT takes the plugin of the same name instead of this function."""

# Which segment, formats and bits belong to every permuted channel. All of it is constant.
_LAYOUT = """
    channels = Constant <value_ints: ints = @segment_channels> ()
    act_formats = Constant <value_ints: ints = @segment_act_formats> ()
    weight_formats = Constant <value_ints: ints = @segment_weight_formats> ()
    act_thresholds = Constant <value_floats: floats = @segment_act_thresholds> ()
    act_tensor_scale_value = Constant <value_float: float = @act_tensor_scale> ()
    weight_tensor_scale_value = Constant <value_float: float = @weight_tensor_scale> ()
    order_shape = Shape (order)
    padded_channels = Squeeze (order_shape, first_axis)
    channel = Range (zero, padded_channels, one)
    segment_end = CumSum (channels, zero)
    segment_start = Sub (segment_end, channels)
    channel_column = Unsqueeze (channel, last_axis)
    before_end = Less (channel_column, segment_end)
    behind_end = Not (before_end)
    segments_behind = Cast <to = 7> (behind_end)
    segment = ReduceSum <keepdims = 0> (segments_behind, last_axis)
"""

# The weight as float[K_pad, N]: codes from a little-endian bit stream, times their block scale.
# Segments are padded to whole units of 16 bytes and their scales to whole words of 4 bytes: Mod,
# which has the divisor's sign, of a negated length is what is missing to the next multiple.
_WEIGHT = """
    weight_format = Gather (weight_formats, segment)
    first_channel = Gather (segment_start, segment)
    channel_in_segment = Sub (channel, first_channel)
    segment_code_bits = Gather (format_bits, weight_formats)
    filled_bits = Mul (channels, segment_code_bits)
    negative_bits = Neg (filled_bits)
    padding_bits = Mod (negative_bits, segment_bits)
    padded_bits = Add (filled_bits, padding_bits)
    padded_bit_end = CumSum (padded_bits, zero)
    segment_first_bit = Sub (padded_bit_end, padded_bits)
    first_bit = Gather (segment_first_bit, segment)
    code_bits = Gather (segment_code_bits, segment)
    bit_in_segment = Mul (channel_in_segment, code_bits)
    bit_start = Add (first_bit, bit_in_segment)
    byte_index = Div (bit_start, eight)
    byte_start = Mul (byte_index, eight)
    code_shift = Sub (bit_start, byte_start)
    weight_shape = Shape (weight)
    row_bytes_1 = Gather (weight_shape, last_axis)
    last_byte = Sub (row_bytes_1, one)
    following_byte = Add (byte_index, one)
    next_byte_index = Min (following_byte, last_byte)
    weight_bytes = Cast <to = 2> (weight)
    weight_int = Cast <to = 6> (weight_bytes)
    weight_columns = Transpose <perm = [1, 0]> (weight_int)
    low_byte = Gather <axis = 0> (weight_columns, byte_index)
    high_byte = Gather <axis = 0> (weight_columns, next_byte_index)
    high_part = Mul (high_byte, byte_range)
    word = Add (low_byte, high_part)
    shift_power = Pow (two, code_shift)
    shift_int = Cast <to = 6> (shift_power)
    shift_column = Unsqueeze (shift_int, last_axis)
    shifted = Div (word, shift_column)
    mask_power = Pow (two, code_bits)
    mask_int = Cast <to = 6> (mask_power)
    mask_column = Unsqueeze (mask_int, last_axis)
    code = Mod (shifted, mask_column)
    table_start = Gather (format_table_start, weight_format)
    table_start_column = Unsqueeze (table_start, last_axis)
    table_index = Add (code, table_start_column)
    element = Gather (element_values, table_index)

    segment_weight_block = Gather (format_block, weight_formats)
    filled_scales = Div (channels, segment_weight_block)
    negative_scales = Neg (filled_scales)
    padding_scales = Mod (negative_scales, scale_word)
    segment_scales = Add (filled_scales, padding_scales)
    scale_end = CumSum (segment_scales, zero)
    scale_start = Sub (scale_end, segment_scales)
    scale_bytes_1 = Gather (scale_end, last_axis)
    scale_bytes_0 = Squeeze (scale_bytes_1, first_axis)
    scale_position = Range (zero, scale_bytes_0, one)
    scale_position_column = Unsqueeze (scale_position, last_axis)
    before_scale_end = Less (scale_position_column, scale_end)
    behind_scale_end = Not (before_scale_end)
    scale_segments_behind = Cast <to = 7> (behind_scale_end)
    scale_segment = ReduceSum <keepdims = 0> (scale_segments_behind, last_axis)
    scale_format = Gather (weight_formats, scale_segment)
    scale_is_nvfp4 = Gather (format_is_nvfp4, scale_format)
    scale_nvfp4_int = Cast <to = 6> (scale_is_nvfp4)
    scale_table_start = Mul (scale_nvfp4_int, byte_range)
    scale_table_column = Unsqueeze (scale_table_start, last_axis)
    scales_unsigned = Cast <to = 2> (scales)
    scales_int = Cast <to = 6> (scales_unsigned)
    scale_word_columns = Transpose <perm = [0, 2, 1]> (scales_int)
    scale_columns = Flatten <axis = 2> (scale_word_columns)
    scale_table_index = Add (scale_columns, scale_table_column)
    scale_bytes_value = Gather (scale_values, scale_table_index)
    scale_tensor_scale = Where (scale_is_nvfp4, weight_tensor_scale_value, unit)
    scale_tensor_column = Unsqueeze (scale_tensor_scale, last_axis)
    scale_rows = Mul (scale_bytes_value, scale_tensor_column)

    first_scale = Gather (scale_start, segment)
    channel_block = Gather (segment_weight_block, segment)
    block_in_segment = Div (channel_in_segment, channel_block)
    scale_index = Add (first_scale, block_in_segment)
    block_scale = Gather <axis = 0> (scale_rows, scale_index)
    dequantized_weight = Mul (element, block_scale)
"""

# The activations as float[M, K_pad] in the permuted order. Rows of the transpose are gathered,
# since gathering columns moves four bytes at a time. Padding reads channel 0 times zero; where
# that is NaN or infinite, the row's answer is NaN in any case.
_REORDER = """
    x_float = Cast <to = 1> (x)
    x_rows = Flatten <axis = -1> (x_float)
    x_columns = Transpose <perm = [1, 0]> (x_rows)
    zero_int = Cast <to = 6> (zero)
    is_padding = Less (order, zero_int)
    is_channel = Not (is_padding)
    channel_mask = Cast <to = 1> (is_channel)
    source_channel = Max (order, zero_int)
    x_ordered = Gather <axis = 0> (x_columns, source_channel)
    x_unmasked = Transpose <perm = [1, 0]> (x_ordered)
    x_permuted = Mul (x_unmasked, channel_mask)
    block_1 = Reshape (block, last_axis)
    blocks_1 = Div (order_shape, block_1)
    block_channel = Range (zero, padded_channels, block)
    block_segment = Gather (segment, block_channel)
    block_format = Gather (act_formats, block_segment)
    threshold = Gather (act_thresholds, block_segment)
    half_threshold = Mul (threshold, half)
    inverse_max_power = Gather (format_inverse_max_power, block_format)
"""

# Two-dimensional, since ONNX Runtime is slow where a scalar meets a last axis of length one; by
# Reshape, since its ReduceMax leaves the shape of an empty tensor as it was.
# E8M0: the power of two below amax, over the format's largest power of two, doubled where amax's
# mantissa exceeds the threshold. (2^23 + 1) times amax must not overflow: the power is the product
# of those of min(amax, 2^64) and of max(amax / 2^64, 1).
_E8M0_SCALE = """
    amax_low = Min (amax, huge)
    low_product = Mul (amax_low, ufp_factor)
    low_remainder = Mul (low_product, ufp_remainder)
    low_power = Sub (low_product, low_remainder)
    amax_shrunk = Mul (amax, shrink)
    amax_high = Max (amax_shrunk, unit)
    high_product = Mul (amax_high, ufp_factor)
    high_remainder = Mul (high_product, ufp_remainder)
    high_power = Sub (high_product, high_remainder)
    amax_power = Mul (low_power, high_power)
    half_amax_value = Mul (amax, half)
    amax_half_limit = Mul (amax_power, half_threshold)
    rounds_up = Greater (half_amax_value, amax_half_limit)
    round_up = Cast <to = 1> (rounds_up)
    round_up_factor = Add (round_up, unit)
    scale_power = Mul (amax_power, inverse_max_power)
    scale_rounded = Mul (scale_power, round_up_factor)
    e8m0_scale = Max (scale_rounded, min_scale)
"""

_SCALES_PER_32 = f"""
    block_shape = Concat <axis = 0> (same, blocks_1, block_1)
    x_blocks = Reshape (x_permuted, block_shape)
    x_magnitude = Abs (x_blocks)
    amax_column = BlockMax (x_magnitude)
    amax_shape = Concat <axis = 0> (same, blocks_1)
    amax = Reshape (amax_column, amax_shape)
{_E8M0_SCALE}
    e8m0_inverse = Reciprocal (e8m0_scale)
    inverse_scale = Unsqueeze (e8m0_inverse, last_axis)
    scale = Unsqueeze (e8m0_scale, last_axis)
    parameter_shape = Concat <axis = 0> (blocks_1, block_1)
"""

# Blocks of 16 throughout: a block of 32 is a pair of them that shares the larger amax.
_SCALES_PER_16 = f"""
    half_block_1 = Reshape (half_block, last_axis)
    half_blocks_1 = Mul (blocks_1, pair)
    block_shape = Concat <axis = 0> (same, half_blocks_1, half_block_1)
    x_blocks = Reshape (x_permuted, block_shape)
    x_magnitude = Abs (x_blocks)
    half_amax_column = BlockMax (x_magnitude)
    half_shape = Concat <axis = 0> (same, half_blocks_1)
    half_amax = Reshape (half_amax_column, half_shape)
    pair_shape = Concat <axis = 0> (same, blocks_1, pair)
    amax_pairs = Reshape (half_amax, pair_shape)
    amax_column = BlockMax (amax_pairs)
    amax_shape = Concat <axis = 0> (same, blocks_1)
    amax = Reshape (amax_column, amax_shape)
{_E8M0_SCALE}
    sixth_of_unit = Div (sixth, act_tensor_scale_value)
    nvfp4_ratio = Mul (half_amax, sixth_of_unit)
    nvfp4_clamped = Min (nvfp4_ratio, e4m3_max)
    nvfp4_floor = Max (nvfp4_clamped, e4m3_min_normal)
    nvfp4_product = Mul (nvfp4_floor, ufp_factor)
    nvfp4_remainder = Mul (nvfp4_product, ufp_remainder)
    nvfp4_power = Sub (nvfp4_product, nvfp4_remainder)
    nvfp4_rounder = Mul (nvfp4_power, e4m3_rounding)
    nvfp4_raised = Add (nvfp4_clamped, nvfp4_rounder)
    nvfp4_code = Sub (nvfp4_raised, nvfp4_rounder)
    nvfp4_finite = Mul (nvfp4_code, act_tensor_scale_value)
    nvfp4_nonfinite = Mul (half_amax, nothing)
    nvfp4_scale = Add (nvfp4_finite, nvfp4_nonfinite)
    nvfp4_pairs = Reshape (nvfp4_scale, pair_shape)
    e8m0_column = Unsqueeze (e8m0_scale, last_axis)
    act_is_nvfp4 = Gather (format_is_nvfp4, block_format)
    act_is_nvfp4_column = Unsqueeze (act_is_nvfp4, last_axis)
    pair_scale = Where (act_is_nvfp4_column, nvfp4_pairs, e8m0_column)
    half_scale = Reshape (pair_scale, half_shape)
    scale_is_zero = Equal (half_scale, nothing)
    zero_scale = Cast <to = 1> (scale_is_zero)
    scale_is_nonzero = Not (scale_is_zero)
    nonzero_scale = Cast <to = 1> (scale_is_nonzero)
    safe_scale = Add (half_scale, zero_scale)
    safe_inverse = Reciprocal (safe_scale)
    half_inverse = Mul (safe_inverse, nonzero_scale)
    inverse_scale = Unsqueeze (half_inverse, last_axis)
    scale = Unsqueeze (half_scale, last_axis)
    parameter_shape = Concat <axis = 0> (half_blocks_1, half_block_1)
"""

# Nearest even onto the grid: adding and subtracting 1.5 * 2^23 grid steps rounds at the step. The
# step is that of the power of two below |v|, or of the smallest normal.
_ROUND = """
    channel_format = Gather (act_formats, segment)
    channel_max = Gather (format_max, channel_format)
    channel_min_normal = Gather (format_min_normal, channel_format)
    channel_ufp_factor = Gather (format_ufp_factor, channel_format)
    largest = Reshape (channel_max, parameter_shape)
    smallest = Neg (largest)
    min_normal = Reshape (channel_min_normal, parameter_shape)
    step_factor = Reshape (channel_ufp_factor, parameter_shape)
    v = Mul (x_blocks, inverse_scale)
    v_below = Min (v, largest)
    v_clamped = Max (v_below, smallest)
    v_magnitude = Abs (v_clamped)
    v_normal = Max (v_magnitude, min_normal)
    v_product = Mul (v_normal, step_factor)
    v_remainder = Mul (v_product, ufp_remainder)
    v_power = Sub (v_product, v_remainder)
    rounder = Mul (v_power, rounding_factor)
    raised = Add (v_clamped, rounder)
    rounded = Sub (raised, rounder)
    x_dequantized = Mul (rounded, scale)
    matrix_shape = Concat <axis = 0> (same, order_shape)
    dequantized_x = Reshape (x_dequantized, matrix_shape)
"""

_PRODUCT = """
    product = MatMul (dequantized_x, dequantized_weight)
    biased = Add (product, bias)
"""

_UNPACKED_PRODUCT = """
    dequantized_weight = Cast <to = 1> (weight)
    biased = Gemm <transB = 1> (dequantized_x, dequantized_weight, bias)
"""

_RESHAPE = """
    y_rows = CastLike (biased, x)
    x_shape = Shape (x)
    leading = Slice (x_shape, first_axis, last_axis)
    bias_shape = Shape (bias)
    y_shape = Concat <axis = 0> (leading, bias_shape)
    y = Reshape <allowzero = 1> (y_rows, y_shape)
"""
