"""The operator's function in standard ONNX, run by ONNX Runtime and onnx's own evaluator."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from mmcompile import ops
from mmcompile.formats import BLOCK_FORMATS
from tests import node_models as nm

MIXED = [(64, "mxfp4", "mxfp4"), (32, "mxfp6_e3m2", "mxfp6_e3m2"), (32, "mxfp8", "mxfp8")]
NVFP4_MIXED = [
    (32, "nvfp4", "nvfp4"),
    (32, "mxfp8", "mxfp6_e2m3"),
    (32, "nvfp4", "nvfp4"),
    (32, "mxfp4", "mxfp4"),
]
UNEQUAL = [(32, "mxfp8", "mxfp4"), (64, "mxfp6_e2m3", "mxfp6_e3m2"), (32, "mxfp8", "mxfp6_e2m3")]
LONG = [  # more than a word of scales, and padding behind codes and scales
    (160, "mxfp6_e3m2", "mxfp6_e3m2"),
    (96, "nvfp4", "nvfp4"),
    (32, "mxfp8", "mxfp8"),
]
SPLITS = {"mixed": MIXED, "nvfp4": NVFP4_MIXED, "unequal": UNEQUAL, "long": LONG} | {
    name: [(128, name, name)] for name in BLOCK_FORMATS
}


def values(rng, shape, kind):
    x = rng.standard_normal(shape)
    if kind == "wide":  # every block exponent from 2^-127 to 2^127, subnormals included
        x = x * 2.0 ** rng.integers(-150, 127, size=(shape[0], 1))
    if kind == "ties":  # quarter steps: many exact ties of every grid
        x = rng.integers(-64, 65, shape) / 8
    return x.astype(np.float32)


def case(split, seed, kind="normal", rows=5, out=24):
    rng = np.random.default_rng(seed)
    channels = sum(part[0] for part in SPLITS[split]) - 8
    order = np.concatenate([np.full(8, -1), rng.permutation(channels)])
    rng.shuffle(order)
    plan = nm.group(SPLITS[split], order, out, act_scale=2.0**-9, weight_scale=2.0**-10)
    x = values(rng, (rows, channels), kind)
    weight = values(rng, (out, channels), kind)
    bias = rng.standard_normal(out).astype(np.float32)
    return plan, x, weight, bias


@pytest.mark.parametrize("opset", [15, 17, 18, 20, 25])
@pytest.mark.parametrize("split", ["mixed", "nvfp4"])
def test_function_is_valid_onnx_at_every_opset(opset, split):
    plan, x, weight, bias = case(split, 0)
    model = nm.node_model(plan, *nm.spec_pack(weight, plan), bias, opset=opset)
    onnx.checker.check_model(model)
    y, x_hat, _ = nm.run(nm.with_operands(model), x)
    np.testing.assert_array_equal(x_hat, nm.spec_operand(x, plan, "act"))
    assert y.shape == (5, 24)


@pytest.mark.parametrize("kind", ["normal", "wide", "ties"])
@pytest.mark.parametrize("split", SPLITS)
def test_operands_are_bit_exact_and_products_within_the_summation_bound(split, kind):
    for seed in range(4):
        plan, x, weight, bias = case(split, seed, kind)
        model = nm.with_operands(nm.node_model(plan, *nm.spec_pack(weight, plan), bias))
        y, x_hat, w_hat = nm.run(model, x)
        spec_x = nm.spec_operand(x, plan, "act")
        spec_w = nm.spec_operand(weight, plan, "weight")
        np.testing.assert_array_equal(x_hat, spec_x)
        np.testing.assert_array_equal(w_hat.T, spec_w)
        if kind != "wide":
            exact = spec_x.astype(np.float64) @ spec_w.astype(np.float64).T + bias
            assert (np.abs(y - exact) <= nm.summation_bound(spec_x, spec_w, bias)).all()


@pytest.mark.parametrize("split", ["mixed", "nvfp4", "unequal", "long"])
def test_onnx_reference_evaluator_agrees(split):
    plan, x, weight, bias = case(split, 3)
    model = nm.with_operands(nm.node_model(plan, *nm.spec_pack(weight, plan), bias))
    _, x_hat, w_hat = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(x_hat, nm.spec_operand(x, plan, "act"))
    np.testing.assert_array_equal(w_hat.T, nm.spec_operand(weight, plan, "weight"))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), split=st.sampled_from(sorted(SPLITS)), data=st.data())
def test_operands_over_random_thresholds(seed, split, data):
    threshold = data.draw(st.sampled_from([1.0, 1.25, 1.5, 1.75, 1.875, 2.0]))
    rng = np.random.default_rng(seed)
    segments = [(*part, threshold, threshold) for part in SPLITS[split]]
    channels = sum(part[0] for part in SPLITS[split])
    plan = nm.group(segments, rng.permutation(channels), 16, act_scale=2.0**-8)
    x = (rng.standard_normal((3, channels)) * 2.0 ** rng.integers(-30, 30)).astype(np.float32)
    weight = rng.standard_normal((16, channels)).astype(np.float32)
    model = nm.with_operands(nm.node_model(plan, *nm.spec_pack(weight, plan), np.zeros(16)))
    _, x_hat, w_hat = nm.run(model, x)
    np.testing.assert_array_equal(x_hat, nm.spec_operand(x, plan, "act"))
    np.testing.assert_array_equal(w_hat.T, nm.spec_operand(weight, plan, "weight"))


@pytest.mark.parametrize("split", ["mixed", "nvfp4"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_answer_nan_and_touch_no_other_row(split, poison):
    plan, x, weight, bias = case(split, 1)
    model = nm.node_model(plan, *nm.spec_pack(weight, plan), bias)
    (clean,) = nm.run(model, x)
    poisoned = x.copy()
    poisoned[2, 17] = poison
    (y,) = nm.run(model, poisoned)
    assert np.isnan(y[2]).all()
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(y[others], clean[others])


@pytest.mark.parametrize("split", ["mixed", "nvfp4"])
def test_zero_rows_answer_the_bias(split):
    plan, x, weight, bias = case(split, 1)
    model = nm.node_model(plan, *nm.spec_pack(weight, plan), bias)
    (y,) = nm.run(model, np.zeros_like(x))
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (0,), (2, 0), (2, 1, 3)])
@pytest.mark.parametrize("split", ["mixed", "nvfp4"])
def test_any_rank_and_no_rows(lead, split):
    plan, _, weight, bias = case(split, 1)
    model = nm.node_model(plan, *nm.spec_pack(weight, plan), bias, rank=len(lead) + 1)
    x = np.random.default_rng(0).standard_normal((*lead, 120)).astype(np.float32)
    (y,) = nm.run(model, x)
    assert y.shape == (*lead, 24)


def test_half_precision_is_rounded_once():
    plan, x, weight, bias = case("mixed", 5)
    x16 = x.astype(np.float16)
    packed = nm.spec_pack(weight, plan)
    (y32,) = nm.run(nm.node_model(plan, *packed, bias), x16.astype(np.float32))
    (y16,) = nm.run(nm.node_model(plan, *packed, bias, elem_type=TensorProto.FLOAT16), x16)
    assert y16.dtype == np.float16
    np.testing.assert_array_equal(y16, y32.astype(np.float16))


def test_attributes_follow_the_schema():
    plan, *_ = case("mixed", 0)
    assert list(ops.node_attributes(plan)) == [field.name for field in ops.ATTRIBUTES]
    function = ops.function_proto(18, half_blocks=False)
    assert list(function.attribute) == [field.name for field in ops.ATTRIBUTES]
    assert list(function.input) == [field.name for field in ops.INPUTS]
