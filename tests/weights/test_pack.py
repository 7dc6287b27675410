"""Packed groups against the numpy statement of the specification, from models on disk."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.errors import ExitCode, UnsupportedModelError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.model.source import load_model
from mmcompile.packed import dequantize_activations, dequantize_weight, native_segments
from mmcompile.weights.hessian import hessian
from mmcompile.weights.pack import LEAST_HESSIAN_ROWS, SampledInputs, pack_group
from tests import models
from tests import node_models as nm
from tests.compiling import mixed, planned, prepare, uniform
from tests.models import K, N, model_of, weight
from tests.weights.test_hessian import inputs

node = helper.make_node

UNEQUAL = ((32, "mxfp8", "mxfp4", 1.5, 1.75), (64, "mxfp4", "mxfp6_e3m2", 1.75, 2.0))
SEARCHED = (
    (32, "mxfp8", "mxfp4", 1.5, 1.75, "searched"),
    (32, "nvfp4", "nvfp4", 2.0, 2.0, "searched"),
    (32, "mxfp4", "mxfp6_e3m2", 1.75, 2.0, "rule"),
)
PLANS = {
    "mxfp4": lambda group: uniform(group, "mxfp4"),
    "mxfp6_e2m3": lambda group: uniform(group, "mxfp6_e2m3"),
    "mxfp6_e3m2": lambda group: uniform(group, "mxfp6_e3m2"),
    "mxfp8": uniform,
    "nvfp4": lambda group: uniform(group, "nvfp4"),
    "mixed": mixed,
    "unequal": lambda group: planned(group, np.random.default_rng(1).permutation(K), UNEQUAL),
    "searched": lambda group: planned(group, range(K), SEARCHED, 2.0**-8, 2.0**-10),
}
DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def packed(prepared, make):
    (group,) = prepared.groups
    plan = make(group)
    return pack_group(group, plan, prepared.source), plan


def check(found, plan, rows, bias):
    """Against spec_pack of weight rows [N, K] in float32."""
    codes, scales = nm.spec_pack(rows, plan)
    np.testing.assert_array_equal(found.weight.view(np.uint8), codes)
    np.testing.assert_array_equal(found.scales.view(np.uint8), scales)
    np.testing.assert_array_equal(found.order, plan.channel_order())
    np.testing.assert_array_equal(found.bias, np.broadcast_to(bias, len(rows)))
    types = [array.dtype.name for array in (found.order, found.weight, found.scales, found.bias)]
    assert types == ["int32", "int8", "int8", "float32"]
    assert codes.shape == (len(rows), plan.row_bytes)
    assert scales.shape == (plan.scale_words, len(rows), 4)
    ordered = nm.permute(rows, plan.channel_order()).astype(np.float64)
    noise = ((nm.spec_operand(rows, plan, "weight") - ordered) ** 2).sum()
    expected = 10 * math.log10((ordered**2).sum() / noise) if noise else math.inf
    assert found.weight_sqnr_db == pytest.approx(expected, rel=1e-6)


def linear(values, channels_first=True):
    """A Gemm with a weight [K, N], stored transposed unless channels come first."""
    made = node("Gemm", ["x", "W"], ["y"], name="linear", transB=int(not channels_first))
    stored = {"W": values if channels_first else values.T.copy()}
    dtype = helper.np_dtype_to_tensor_dtype(values.dtype)
    return model_of([made], stored, x=("rows", K), y=("rows", N), dtype=dtype)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_first", [True, False])
def test_packed_bytes_are_those_of_the_specification(channels_first, dtype, plan, tmp_path):
    values = weight(K, N, seed=2).astype(DTYPES[dtype])
    prepared = prepare(linear(values, channels_first), tmp_path)
    assert prepared.sites[0].channels_first == channels_first
    found, made = packed(prepared, PLANS[plan])
    check(found, made, values.astype(np.float32).T, 0)


@pytest.mark.parametrize("plan", ["mixed", "mxfp6_e2m3"])
@pytest.mark.parametrize("variant", ["cast_weight", "dequantized_weight", "constant_node_weight"])
def test_computed_weights(variant, plan, tmp_path):
    model = models.LINEAR_MODELS[variant]()
    prepared = prepare(model, tmp_path)
    found, made = packed(prepared, PLANS[plan])
    (site,) = prepared.sites
    check(found, made, np.asarray(site.weight.read(prepared.source)).T, 0)


@pytest.mark.parametrize("plan", ["mixed", "nvfp4"])
def test_group_of_several_layers_stacks_rows_and_biases(plan, tmp_path):
    sizes = {"q": 64, "k": 32, "v": 48}
    found, made = packed(prepare(models.shared_input((64, 32, 48)), tmp_path), PLANS[plan])
    rows = np.concatenate([weight(K, n, seed=s).T for s, n in enumerate(sizes.values())])
    bias = np.concatenate([weight(64, seed=10), weight(32, seed=11), np.zeros(48, np.float32)])
    check(found, made, rows, bias)


def test_layers_of_one_group_may_be_stored_differently(tmp_path):
    nodes = [
        node("Gemm", ["x", "A"], ["a"], name="a", alpha=0.25),
        node("Gemm", ["x", "B", "c"], ["b"], name="b", transB=1, beta=3.0),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    a, b, c = weight(K, 16, seed=1), weight(32, K, seed=2), weight(1, seed=3)
    model = model_of(nodes, {"A": a, "B": b, "c": c}, x=("rows", K), y=("rows", 48))
    found, made = packed(prepare(model, tmp_path), mixed)
    bias = np.concatenate([np.zeros(16, np.float32), np.full(32, np.float32(3) * c[0])])
    check(found, made, np.concatenate([np.float32(0.25) * a.T, b]), bias)


@pytest.mark.parametrize("alpha", [0.0, 0.3, -2.0])
def test_factors_are_part_of_weight_and_bias(alpha, tmp_path):
    model = models.gemm(alpha=alpha, beta=-0.7)
    found, made = packed(prepare(model, tmp_path), mixed)
    rows = np.float32(alpha) * weight(K, N).T
    if alpha == 0:
        assert not dequantize_weight(found, made).any()
        assert found.weight_sqnr_db == math.inf
        np.testing.assert_array_equal(found.bias, weight(N, seed=1) * np.float32(-0.7))
    else:
        check(found, made, rows, weight(N, seed=1) * np.float32(-0.7))


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_at_any_place_of_a_file(offset, dtype, tmp_path):
    """External data need not be aligned to its elements."""
    values = weight(K, N, seed=2).astype(DTYPES[dtype])
    model = linear(values)
    data = values.tobytes()
    (tmp_path / "weights.bin").write_bytes(b"\0" * offset + data)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", offset), ("length", len(data))):
        tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    prepared = prepare(tmp_path / "model.onnx", tmp_path)
    found, made = packed(prepared, mixed)
    check(found, made, values.astype(np.float32).T, 0)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("plan", ["mixed", "nvfp4", "mxfp8"])
def test_weight_that_is_not_finite_names_node_and_weight(plan, poison, tmp_path):
    model = models.shared_input()
    (broken,) = (t for t in model.graph.initializer if t.name == "Wk")
    values = numpy_helper.to_array(broken).copy()
    values[17, 3] = poison
    broken.CopyFrom(numpy_helper.from_array(values, "Wk"))
    prepared = prepare(model, tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        packed(prepared, PLANS[plan])
    error = caught.value
    assert (error.code, error.exit_code) == ("weight-not-finite", ExitCode.UNSUPPORTED_MODEL)
    assert error.where == "node k, weight Wk"
    assert "--exclude 'k'" in error.on_command_line()
    # What the remedy says works.
    assert packed(prepare(model, tmp_path, exclude=("k",)), PLANS[plan])


def with_large_block(amax):
    """Three layers; one block of k's weight reaches `amax`, in row 3 of 64."""
    model = models.shared_input((64, 64, 48))
    (large,) = (t for t in model.graph.initializer if t.name == "Wk")
    values = numpy_helper.to_array(large).copy()
    values[17, 3] = amax
    large.CopyFrom(numpy_helper.from_array(values, "Wk"))
    return model


# 2^121 · 2^emax is the least amax of scale byte 248 under every rule, 2^122 · 2^emax of 249.
@pytest.mark.parametrize("plan", ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2"])
def test_weight_block_scale_above_248_names_node_and_weight(plan, tmp_path):
    emax = BLOCK_FORMATS[plan].element.emax
    found, _ = packed(prepare(with_large_block(2.0 ** (121 + emax)), tmp_path), PLANS[plan])
    assert found.scales.view(np.uint8).max() == 248
    prepared = prepare(with_large_block(2.0 ** (122 + emax)), tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        packed(prepared, PLANS[plan])
    error = caught.value
    assert (error.code, error.exit_code) == ("weight-too-large", ExitCode.UNSUPPORTED_MODEL)
    assert error.where == "node k, weight Wk"
    assert error.reason == "a block of the weight has the scale 2^122, kernels take up to 2^121"
    assert "--exclude 'k'" in error.on_command_line()


@pytest.mark.parametrize(("name", "largest"), [("mxfp8", 247), ("nvfp4", 0x7E)])
def test_weight_block_scales_that_never_pass_248(name, largest, tmp_path):
    """E4M3 elements have emax 8, so that the largest fp32 needs 2^120; NVFP4's scales are E4M3."""
    prepared = prepare(with_large_block(float(np.finfo(np.float32).max)), tmp_path)
    segments = [(K, name, name, 1.75, 1.75)]
    found, _ = packed(prepared, lambda group: planned(group, range(K), segments))
    assert found.scales.view(np.uint8).max() == largest


def test_weights_that_the_formats_hold_are_exact(tmp_path):
    values = np.random.default_rng(0).integers(-3, 4, (K, N)).astype(np.float32)
    found, made = packed(prepare(linear(values), tmp_path), lambda g: uniform(g, "mxfp4"))
    assert found.weight_sqnr_db == math.inf
    np.testing.assert_array_equal(dequantize_weight(found, made), values.T)


def test_weights_of_zero(tmp_path):
    found, made = packed(prepare(linear(np.zeros((K, N), np.float32)), tmp_path), mixed)
    assert found.weight_sqnr_db == math.inf
    assert not dequantize_weight(found, made).any()
    assert not found.weight.any()


@pytest.mark.parametrize("plan", PLANS)
def test_bytes_mean_what_the_specification_says(plan, tmp_path):
    found, made = packed(prepare(models.matmul(), tmp_path), PLANS[plan])
    expected = nm.spec_operand(weight(K, N).T, made, "weight")
    np.testing.assert_array_equal(dequantize_weight(found, made), expected)
    rows = np.random.default_rng(3).standard_normal((7, K)).astype(np.float32)
    expected = nm.spec_operand(rows, made, "act")
    np.testing.assert_array_equal(dequantize_activations(rows, made), expected)
    np.testing.assert_array_equal(dequantize_activations(rows[:, ::-1][:, ::-1], made), expected)


def test_sides_of_a_segment_are_not_confused(tmp_path):
    """Formats and thresholds of activations and weights differ in every field."""
    (group,) = prepare(models.matmul(), tmp_path).groups
    made = PLANS["unequal"](group)
    assert native_segments(made.segments, "weight") == [(32, 0, 1.75), (64, 2, 2.0)]
    assert native_segments(made.segments, "act") == [(32, 3, 1.5), (64, 0, 1.75)]
    searched = PLANS["searched"](group).segments
    assert native_segments(searched, "weight") == [(32, 0, None), (32, 4, None), (32, 2, 2.0)]
    assert native_segments(searched, "act") == [(32, 3, 1.5), (32, 4, 2.0), (32, 0, 1.75)]
    scaled = planned(group, range(K), [(K, "nvfp4", "nvfp4", 2.0, 2.0)], 2.0**-3, 2.0**-12)
    rows = np.random.default_rng(3).standard_normal((7, K)).astype(np.float32)
    np.testing.assert_array_equal(
        dequantize_activations(rows, scaled), nm.spec_operand(rows, scaled, "act")
    )
    other = planned(group, range(K), [(K, "nvfp4", "nvfp4", 2.0, 2.0)], 2.0**-12, 2.0**-3)
    assert (dequantize_activations(rows, scaled) != dequantize_activations(rows, other)).any()


def test_packing_does_not_depend_on_threads(tmp_path, monkeypatch):
    prepared = prepare(models.shared_input((1024, 33, 65)), tmp_path)
    one, many = [], []
    for count, into in ((1, one), (7, many)):
        monkeypatch.setattr("mmcompile.weights.pack.THREADS", count)
        found, _ = packed(prepared, mixed)
        into.extend([found.weight.tobytes(), found.scales.tobytes(), found.weight_sqnr_db])
    assert one == many


def test_source_is_read_in_place(tmp_path):
    """The weight's file may be read-only and mapped; packing writes nothing to it."""
    prepared = prepare(models.matmul(), tmp_path)
    before = (tmp_path / "original.onnx").read_bytes()
    view = prepared.sites[0].read_weight(prepared.source)
    assert not view.flags.writeable
    packed(prepared, mixed)
    assert (tmp_path / "original.onnx").read_bytes() == before
    onnx.checker.check_model(onnx.load(tmp_path / "original.onnx"))
    assert load_model(tmp_path / "original.onnx").weights.ref("W") is not None


def test_plan_that_does_not_fit_is_no_crash(tmp_path):
    """Plans are checked when they are loaded; the native module checks again."""
    prepared = prepare(models.matmul(), tmp_path)
    (group,) = prepared.groups
    site = dataclasses.replace(group.sites[0], channels_first=False)
    wrong = dataclasses.replace(group, sites=(site,))
    with pytest.raises(ValueError, match=r"order|codes"):
        pack_group(wrong, uniform(group), prepared.source)


# Error feedback

ROWS = 512
DAMPINGS = (0.05,)
FOUR_BITS = {
    "mxfp4": [(K, "mxfp8", "mxfp4", 1.75, 1.75)],
    "searched": SEARCHED,
    "nvfp4": [(K, "nvfp4", "nvfp4", 2.0, 2.0, "searched")],
}


def four_bits(name):
    return lambda group: planned(group, range(K), FOUR_BITS[name], 2.0**-8, 2.0**-10)


def sampled(dampings=DAMPINGS, seed=4):
    """Correlated inputs, a quarter of them held back."""
    values = inputs(ROWS, K, seed)
    return SampledInputs(values[: -ROWS // 4], values[-ROWS // 4 :], dampings)


def harmful():
    """What is learnt from correlated inputs does not hold of those held back: they are white."""
    white = np.random.default_rng(5).standard_normal((ROWS, K)).astype(np.float32)
    return SampledInputs(inputs(ROWS, K, 4), white, (0.001,))


def with_feedback(prepared, make, given):
    """Packed to nearest and with feedback, and the plan."""
    (group,) = prepared.groups
    plan = make(group)
    nearest = pack_group(group, plan, prepared.source)
    return nearest, pack_group(group, plan, prepared.source, given), plan


def error(found, plan, rows, held_back, layer=slice(None)):
    """Squared error of the output on inputs held back, both operands quantized, in float64."""
    quantized = nm.spec_operand(held_back, plan, "act").astype(np.float64)
    packed_rows = dequantize_weight(found, plan)[layer].astype(np.float64)
    exact = held_back.astype(np.float64) @ rows[layer].T.astype(np.float64)
    return float(np.square(quantized @ packed_rows.T - exact).sum())


def assert_same_bytes(one, other):
    for ours, theirs in zip(one.constants(), other.constants(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("plan", FOUR_BITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_first", [True, False])
def test_feedback_lowers_the_error_on_inputs_held_back(channels_first, dtype, plan, tmp_path):
    values = weight(K, N, seed=2).astype(DTYPES[dtype])
    prepared = prepare(linear(values, channels_first), tmp_path)
    given = sampled()
    nearest, found, made = with_feedback(prepared, four_bits(plan), given)
    (rounding,) = found.rounding
    assert (rounding.node, rounding.reason) == ("linear", "")
    rows = values.astype(np.float32).T
    before, after = (error(p, made, rows, given.held_back) for p in (nearest, found))
    assert after < before
    assert rounding.gain_db == pytest.approx(10 * math.log10(before / after), abs=1e-3)
    assert nearest.rounding == ()
    np.testing.assert_array_equal(found.order, nearest.order)
    np.testing.assert_array_equal(found.bias, nearest.bias)
    # The weight's own error grows: it is not what is made small. The figure is that of the bytes.
    ordered = nm.permute(rows, made.channel_order()).astype(np.float64)
    noise = np.square(dequantize_weight(found, made) - ordered).sum()
    sqnr = 10 * math.log10(np.square(ordered).sum() / noise)
    assert found.weight_sqnr_db == pytest.approx(sqnr, abs=1e-3)
    assert found.weight_sqnr_db < nearest.weight_sqnr_db


@pytest.mark.parametrize("plan", [*PLANS, *FOUR_BITS])
def test_no_plan_errs_more_than_rounding_to_nearest(plan, tmp_path):
    make = PLANS.get(plan) or four_bits(plan)
    given = sampled((0.01, 0.25))
    nearest, found, made = with_feedback(prepare(models.matmul(), tmp_path), make, given)
    rows = weight(K, N).T
    assert error(found, made, rows, given.held_back) <= error(
        nearest, made, rows, given.held_back
    ) * (1 + 1e-6)
    if found.rounding[0].reason:
        assert_same_bytes(found, nearest)


def test_padding_of_codes_and_scales_stays_zero(tmp_path):
    """Shuffled padding channels, 16 bytes of a row and 4 bytes of scales are never all used."""
    prepared = prepare(models.matmul(), tmp_path)
    order = np.random.default_rng(0).permutation([*range(K), *[-1] * 32])
    segments = [
        (32, "mxfp8", "mxfp6_e2m3", 1.75, 1.75, "searched"),
        (96, "mxfp8", "mxfp6_e3m2", 1.75, 1.75, "searched"),
    ]
    make = lambda group: planned(group, order, segments)  # noqa: E731
    _, found, made = with_feedback(prepared, make, sampled())
    assert not found.rounding[0].reason
    assert not dequantize_weight(found, made)[:, order < 0].any()
    codes, scales = found.weight.view(np.uint8), found.scales.view(np.uint8)
    assert made.row_bytes == 32 + 80
    assert not codes[:, 24:32].any()
    assert not codes[:, 32 + 72 :].any()
    assert scales.shape == (2, N, 4)
    assert not scales[0, :, 1:].any()
    assert not scales[1, :, 3].any()
    assert scales[0, :, 0].all()
    assert scales[1, :, :3].all()


def test_feedback_that_does_harm_is_not_kept(tmp_path):
    prepared = prepare(models.matmul(), tmp_path)
    nearest, found, _ = with_feedback(prepared, four_bits("mxfp4"), harmful())
    assert_same_bytes(found, nearest)
    assert found.weight_sqnr_db == nearest.weight_sqnr_db
    (rounding,) = found.rounding
    assert (rounding.gain_db, rounding.reason) == (0, "no better on samples held back")
    # It was the inputs held back that decided.
    same = SampledInputs(harmful().seen, harmful().seen, harmful().dampings)
    assert not with_feedback(prepared, four_bits("mxfp4"), same)[1].rounding[0].reason


@pytest.mark.parametrize(
    ("seen", "held"), [(LEAST_HESSIAN_ROWS - 1, 99), (99, LEAST_HESSIAN_ROWS - 1), (0, 0)]
)
def test_few_inputs_are_not_enough(seen, held, tmp_path):
    values = inputs(200, K)
    given = SampledInputs(values[:seen], values[200 - held :], DAMPINGS)
    nearest, found, _ = with_feedback(prepare(models.matmul(), tmp_path), four_bits("mxfp4"), given)
    assert_same_bytes(found, nearest)
    assert found.rounding[0].reason == f"fewer than {LEAST_HESSIAN_ROWS} sampled inputs"
    enough = SampledInputs(values[:LEAST_HESSIAN_ROWS], values[-LEAST_HESSIAN_ROWS:], DAMPINGS)
    (rounding,) = with_feedback(prepare(models.matmul(), tmp_path), four_bits("mxfp4"), enough)[
        1
    ].rounding
    assert "fewer" not in rounding.reason


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["seen", "held_back"])
@pytest.mark.filterwarnings("error")
def test_inputs_that_are_not_finite_leave_rounding_to_nearest(part, poison, tmp_path):
    given = sampled()
    broken = getattr(given, part).copy()
    broken[3, 5] = poison
    given = dataclasses.replace(given, **{part: broken})
    nearest, found, _ = with_feedback(prepare(models.matmul(), tmp_path), four_bits("mxfp4"), given)
    assert_same_bytes(found, nearest)
    assert found.rounding[0].reason == "the sampled inputs hold NaN or infinity"


def test_inputs_of_zero_leave_rounding_to_nearest(tmp_path):
    nothing = np.zeros((100, K), np.float32)
    given = SampledInputs(nothing, nothing, DAMPINGS)
    nearest, found, _ = with_feedback(prepare(models.matmul(), tmp_path), four_bits("mxfp4"), given)
    assert_same_bytes(found, nearest)
    assert found.rounding[0].reason == "the Hessian is not positive definite"


def test_layers_of_a_group_are_decided_one_by_one(tmp_path):
    """v's weight is exact in its format, so that nothing is better than that."""
    model = models.shared_input((64, 32, 48))
    (exact,) = (t for t in model.graph.initializer if t.name == "Wv")
    values = np.random.default_rng(0).integers(-3, 4, (K, 48)).astype(np.float32)
    exact.CopyFrom(numpy_helper.from_array(values, "Wv"))
    given = sampled((0.01, 0.05))
    nearest, found, made = with_feedback(prepare(model, tmp_path), four_bits("mxfp4"), given)
    rows = np.concatenate([weight(K, 64, seed=0).T, weight(K, 32, seed=1).T, values.T])
    assert [rounding.node for rounding in found.rounding] == ["q", "k", "v"]
    q, k, v = found.rounding
    assert v.reason == "no better on samples held back"
    assert (v.gain_db, q.reason, k.reason) == (0, "", "")
    for rounding, layer in ((q, slice(0, 64)), (k, slice(64, 96))):
        before, after = (error(p, made, rows, given.held_back, layer) for p in (nearest, found))
        assert after < before
        assert rounding.gain_db == pytest.approx(10 * math.log10(before / after), abs=1e-3)
    np.testing.assert_array_equal(found.weight[96:], nearest.weight[96:])
    np.testing.assert_array_equal(found.scales[:, 96:], nearest.scales[:, 96:])


def test_the_best_damping_is_kept(tmp_path):
    prepared = prepare(models.matmul(), tmp_path)
    given = sampled()
    dampings = (100.0, 0.05, 1e-4)
    gains, alone = {}, {}
    for damping in dampings:
        one = dataclasses.replace(given, dampings=(damping,))
        _, alone[damping], _ = with_feedback(prepared, four_bits("mxfp4"), one)
        gains[damping] = alone[damping].rounding[0].gain_db
    assert len(set(gains.values())) == len(dampings)
    best = max(gains, key=gains.get)
    for order in (dampings, dampings[::-1], (dampings[1], dampings[0], dampings[2])):
        together = dataclasses.replace(given, dampings=order)
        _, found, _ = with_feedback(prepared, four_bits("mxfp4"), together)
        assert_same_bytes(found, alone[best])
        assert found.rounding[0].gain_db == pytest.approx(gains[best], abs=1e-6)
        assert found.weight_sqnr_db == pytest.approx(alone[best].weight_sqnr_db, abs=1e-6)


def test_a_group_has_one_factor_for_each_damping(tmp_path, monkeypatch):
    """The Hessian is most of the work where many rows were sampled."""
    made = []

    def counted(rows):
        made.append(len(rows))
        return hessian(rows)

    monkeypatch.setattr("mmcompile.weights.pack.hessian", counted)
    prepared = prepare(models.shared_input((64, 32, 48)), tmp_path)
    with_feedback(prepared, four_bits("mxfp4"), sampled((0.01, 0.05, 0.25)))
    assert len(made) == 3


def test_rows_of_a_weight_are_rounded_in_blocks(tmp_path, monkeypatch):
    """Large weights are not in memory as float32 at once; the last block is shorter."""
    prepared = prepare(models.matmul(), tmp_path)
    _, whole, made = with_feedback(prepared, four_bits("mxfp4"), sampled())
    monkeypatch.setattr("mmcompile.weights.pack.WEIGHT_BLOCK", 24 * K)
    _, parts, _ = with_feedback(prepared, four_bits("mxfp4"), sampled())
    rows, held_back = weight(K, N).T, sampled().held_back
    assert error(parts, made, rows, held_back) == pytest.approx(
        error(whole, made, rows, held_back), rel=0.01
    )
    assert parts.rounding[0].gain_db == pytest.approx(whole.rounding[0].gain_db, abs=0.05)


def test_a_weight_that_is_not_finite_is_refused_with_sampled_inputs_too(tmp_path):
    values = weight(K, N)
    values[3, 4] = np.nan
    prepared = prepare(linear(values), tmp_path)
    (group,) = prepared.groups
    with pytest.raises(UnsupportedModelError) as caught:
        pack_group(group, four_bits("mxfp4")(group), prepared.source, sampled())
    assert caught.value.code == "weight-not-finite"


@pytest.mark.filterwarnings("error")
def test_weights_near_the_end_of_fp32_are_no_crash(tmp_path):
    """Sums over them overflow, so that nothing can be compared; scales are within bounds."""
    values = weight(K, N) * np.float32(2.0**121)
    prepared = prepare(linear(values), tmp_path)
    nearest, found, _ = with_feedback(prepared, uniform, sampled())
    assert_same_bytes(found, nearest)
    assert found.rounding[0].reason
