"""Operands of the kernels' checks: what they stand for and how they are packed, by ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from mmcompile.cuda.layers import MIXES, NVFP4, LayerShape, mixed_segments
from mmcompile.doctor.operands import (
    EXACT_UNIT,
    act_formats,
    act_values,
    any_operand,
    exact_operand,
    pack_activations,
    pack_constants,
    quantized,
    weight_formats,
    weight_values,
)
from tests.node_models import words_first

ELEMENTS = (
    ml_dtypes.float4_e2m1fn,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float4_e2m1fn,
)
SHAPE = LayerShape(544, 12, mixed_segments("everything", 544), 2.0**-5, 2.0**3)
BITS = (4, 6, 6, 8, 4)


def scale_values(scales, number, tensor_scale):
    if number == NVFP4:
        return scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * tensor_scale
    return np.ldexp(1.0, scales.astype(int) - 127)


def numbers_of(operand, numbers, tensor_scale):
    for codes, scales, number in zip(operand.codes, operand.scales, numbers, strict=True):
        block = 16 if number == NVFP4 else 32
        elements = codes.view(ELEMENTS[number]).astype(np.float64)
        yield elements, np.repeat(scale_values(scales, number, tensor_scale), block, axis=1)


def test_activations():
    act = any_operand(np.random.default_rng(0), SHAPE, act_formats(SHAPE), 50)
    codes, words = pack_activations(act, SHAPE)
    numbers = [segment.act_format for segment in SHAPE.segments]
    values, packed = [], []
    made = numbers_of(act, numbers, SHAPE.act_tensor_scale)
    for segment, part, (elements, scales) in zip(SHAPE.segments, act.codes, made, strict=True):
        values.append(elements * scales)
        if BITS[segment.act_format] == BITS[segment.weight_format] == 4:
            packed.append(part[:, ::2] | part[:, 1::2] << 4)
        else:
            fp8 = elements.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
            packed.append(fp8.view(np.uint8))
    np.testing.assert_array_equal(act_values(act, SHAPE), np.concatenate(values, axis=1))
    np.testing.assert_array_equal(codes, np.concatenate(packed, axis=1))
    np.testing.assert_array_equal(words, np.concatenate([words_first(s) for s in act.scales]))


def test_weights():
    weight = any_operand(np.random.default_rng(1), SHAPE, weight_formats(SHAPE), 12)
    constants = pack_constants(weight, SHAPE, np.arange(544, dtype=np.int32))
    numbers = [segment.weight_format for segment in SHAPE.segments]
    made = list(numbers_of(weight, numbers, SHAPE.weight_tensor_scale))
    values = np.concatenate([elements * scales for elements, scales in made], axis=1)
    np.testing.assert_array_equal(weight_values(weight, SHAPE), values)
    rows = []
    for codes, number in zip(weight.codes, numbers, strict=True):
        bits = np.unpackbits(codes[..., None], axis=2, bitorder="little")[..., : BITS[number]]
        row = np.packbits(bits.reshape(12, -1), axis=1, bitorder="little")
        rows.append(np.pad(row, ((0, 0), (0, -row.shape[1] % 16))))
    np.testing.assert_array_equal(constants.weight, np.concatenate(rows, axis=1))
    words = np.concatenate([words_first(scales) for scales in weight.scales])
    np.testing.assert_array_equal(constants.scales, words)


@pytest.mark.parametrize("mix", MIXES)
def test_sums_of_exact_operands_are_whole_units(mix):
    shape = LayerShape(256, 8, mixed_segments(mix, 256))
    random = np.random.default_rng(2)
    act = act_values(exact_operand(random, shape, act_formats(shape), 8), shape)
    weight = weight_values(exact_operand(random, shape, weight_formats(shape), 8), shape)
    units = act[:, None] * weight[None] / EXACT_UNIT
    assert (units == np.rint(units)).all() and np.abs(units).sum(axis=2).max() < 2**24
    assert len(np.unique(act)) > 10


def test_entries_outside_of_x_mean_zero():
    x = np.arange(1, 545, dtype=np.float32)[None]
    order = np.arange(544, dtype=np.int32)
    inside = act_values(quantized(x, order, SHAPE), SHAPE)
    order[[0, 100, 300, 543]] = -1, 544, -(2**31), 2**31 - 1
    found = act_values(quantized(x, order, SHAPE), SHAPE)
    assert (found[0, [0, 100, 300, 543]] == 0).all() and (inside[0, [100, 300, 543]] != 0).all()
