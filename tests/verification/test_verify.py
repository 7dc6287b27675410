"""Verification: its measures against their formulas, and that it finds what is broken."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mmcompile import ops
from mmcompile.errors import ExitCode, UnsupportedModelError, UsageError
from mmcompile.model.source import load_model
from mmcompile.packed import dequantize_weight
from mmcompile.progress import Silent
from mmcompile.verification import nodes as verify_nodes
from mmcompile.verification import outputs as verify_outputs
from mmcompile.verification import unpacked
from mmcompile.verification.compiled import compiled_nodes, read_nodes
from mmcompile.verification.metrics import Agreement, cosine, decibel
from mmcompile.verification.nodes import MEASURED_ROWS, layer_error, node_excess
from mmcompile.verification.outputs import LayerSpec, compare_layers, compare_outputs, first_below
from mmcompile.weights.pack import pack_group
from tests import models
from tests import node_models as nm
from tests.compiling import compiled, mixed, prepare, uniform
from tests.models import K, N, model_of, weight
from tests.running import run

F32 = np.float32
node = helper.make_node
random = np.random.default_rng


# Measures


def agreement(*pairs, logits=False):
    found = Agreement()
    for reference, value in pairs:
        found.add(np.asarray(reference), np.asarray(value), logits=logits)
    return found


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_measures_equal_their_formulas():
    pairs = []
    for seed, shape in enumerate([(2, 5, 7), (1, 3, 7), (4, 1, 7)]):
        a = random(seed).standard_normal(shape).astype(F32) * 3
        pairs.append((a, a + random(9 + seed).standard_normal(shape).astype(F32)))
    found = agreement(*pairs, logits=True)
    wide = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    cosines = [(a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) for a, b in wide]
    assert found.cosine_mean == pytest.approx(np.mean(cosines))
    assert found.cosine_min == pytest.approx(np.min(cosines))
    signal = sum((a**2).sum() for a, _ in wide)
    noise = sum(((a - b) ** 2).sum() for a, b in wide)
    assert found.sqnr_db == pytest.approx(10 * np.log10(signal / noise))
    assert found.max_abs_error == pytest.approx(max(np.abs(a - b).max() for a, b in wide))
    divergences = [
        (softmax(a) * np.log(softmax(a) / softmax(b))).sum(-1).reshape(-1) for a, b in wide
    ]
    assert found.kl_divergence == pytest.approx(np.concatenate(divergences).mean())
    same = [(a.argmax(-1) == b.argmax(-1)).reshape(-1) for a, b in wide]
    assert found.top1_agreement == pytest.approx(np.concatenate(same).mean())
    assert 0 < found.top1_agreement < 1
    assert found.mismatch is None


def test_divergence_is_that_of_the_original_from_the_compiled():
    a, b = np.array([[0.0, 0.0]]), np.log(np.array([[0.9, 0.1]]))
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert agreement((a, b), logits=True).kl_divergence == pytest.approx(expected)


def test_equal_tensors():
    found = agreement((np.ones((2, 3), F32), np.ones((2, 3), F32)), logits=True)
    assert (found.cosine_mean, found.cosine_min) == (1, 1)
    assert (found.sqnr_db, found.max_abs_error) == (math.inf, 0)
    assert (found.kl_divergence, found.top1_agreement) == (0, 1)


def test_only_logits_have_divergence_and_top1():
    found = agreement((np.ones((2, 3), F32), np.zeros((2, 3), F32)))
    assert found.kl_divergence is None
    assert found.top1_agreement is None
    assert found.sqnr_db == 0
    labels = agreement((np.array([3, 1]), np.array([3, 2])), logits=True)
    assert labels.kl_divergence is None
    assert labels.max_abs_error == 1


def test_masked_logits_add_nothing():
    """Logits of -inf stand for tokens that cannot be; both models mask them."""
    a = np.array([[1.0, -np.inf, 2.0], [0.0, 0.0, -np.inf]], F32)
    b = np.array([[1.5, -np.inf, 2.0], [0.0, 0.5, -np.inf]], F32)
    found = agreement((a, b), logits=True)
    kept = [softmax(row[np.isfinite(row)].astype(np.float64)) for row in (*a, *b)]
    expected = np.mean([(p * np.log(p / q)).sum() for p, q in zip(kept[:2], kept[2:], strict=True)])
    assert found.kl_divergence == pytest.approx(expected)
    assert math.isfinite(found.sqnr_db)
    assert found.mismatch is None


@pytest.mark.parametrize(
    ("reference", "value", "mismatch"),
    [
        (np.zeros((2, 3), F32), np.zeros((3, 2), F32), "shape (3, 2) instead of (2, 3)"),
        (np.zeros(3, F32), np.zeros(3, np.float16), "type float16 instead of float32"),
        (np.array([1, 2.0]), np.array([1, np.nan]), "NaN or infinity where"),
        (np.array([1, 2.0]), np.array([np.inf, 2]), "NaN or infinity where"),
        (np.array([np.inf, 2.0]), np.array([-np.inf, 2]), "NaN or infinity where"),
    ],
)
def test_tensors_that_cannot_be_compared(reference, value, mismatch):
    found = agreement((np.ones(2), np.ones(2)), (reference, value))
    assert mismatch in found.mismatch
    assert math.isnan(found.cosine_mean)
    assert math.isnan(found.cosine_min)
    assert math.isnan(found.sqnr_db)


def test_what_is_not_finite_on_both_sides_is_equal():
    a = np.array([np.nan, np.inf, -np.inf, 3.0])
    assert agreement((a, a.copy())).mismatch is None
    assert agreement((a, a.copy())).sqnr_db == math.inf
    found = agreement((a, np.array([np.nan, np.inf, -np.inf, 4.0])))
    assert found.sqnr_db == pytest.approx(10 * math.log10(9))


def test_nothing_to_compare():
    found = agreement((np.zeros((0, 4), F32), np.zeros((0, 4), F32)))
    assert found.mismatch is None
    assert math.isnan(found.cosine_mean)


def test_cosine_and_decibel_at_their_edges():
    zero, one = np.zeros(3, F32), np.ones(3, F32)
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == 0
    assert cosine(one, -one) == pytest.approx(-1)
    assert decibel(0.0, 1.0) == -math.inf
    assert decibel(1.0, 0.0) == decibel(0.0, 0.0) == math.inf
    assert decibel(100.0, 1.0) == pytest.approx(20)


# Whole models

LAYERS = ("first", "second", "third", "fourth")


def deep_model():
    """Four layers in a row, the second with a bias; `other` is another output."""
    nodes, values, read = [], {}, "x"
    for seed, name in enumerate(LAYERS):
        nodes.append(node("MatMul", [read, f"W{name}"], [f"{name}_product"], name=name))
        values[f"W{name}"] = weight(K, K, seed=seed) * F32(3)
        if name == "second":
            nodes.append(node("Add", ["second_product", "b"], ["second_sum"], name="bias"))
            values["b"] = weight(K, seed=9)
        source = nodes[-1].output[0]
        nodes.append(node("Softsign" if name != "fourth" else "Identity", [source], [f"{name}_y"]))
        read = f"{name}_y"
    nodes[-1].output[0] = "y"
    nodes.append(node("Neg", ["second_y"], ["other"]))
    model = model_of(nodes, values, y=("batch", "sequence", K))
    model.graph.output.append(helper.make_tensor_value_info("other", 1, ["b", "s", K]))
    return model


TENSORS = {name: f"{name}_product" for name in LAYERS} | {"second": "second_sum"}
SPECS = [LayerSpec(name, TENSORS[name], K) for name in LAYERS]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    prepared = prepare(deep_model(), folder)
    return prepared.source, compiled(prepared, folder, uniform).path


def samples(count=3):
    return [{"x": random(i).standard_normal((1, 5 + i, K)).astype(F32)} for i in range(count)]


def damaged(path, folder, tensor, change):
    """A copy of a compiled model with other bytes in one of its constants."""
    model = onnx.load(path)
    for initializer in model.graph.initializer:
        if initializer.name == tensor:
            values = numpy_helper.to_array(initializer).copy()
            change(values)
            initializer.CopyFrom(numpy_helper.from_array(values, tensor))
            break
    else:
        raise KeyError(tensor)
    onnx.save(model, folder / "damaged.onnx")
    return load_model(folder / "damaged.onnx")


@pytest.fixture(params=["as it is", "unpacked"])
def way(request, monkeypatch):
    """Both ways to run a compiled model: its own decoding of weights, and the native one."""
    if request.param == "unpacked":
        monkeypatch.setattr(unpacked, "DEPLOYABLE_WEIGHTS", 0)
    return request.param


def test_outputs_are_compared_over_all_samples(deep, way):
    original, path = deep
    model = load_model(path)
    assert unpacked.runs_unpacked(model) == (way == "unpacked")
    found = compare_outputs(original, [model], samples(), frozenset(["y"]), Silent())[0]
    pairs = [(run(original.path, s), run(path, s)) for s in samples()]
    assert list(found) == ["y", "other"]
    for index, name in enumerate(found):
        expected = agreement(*((a[index], b[index]) for a, b in pairs), logits=name == "y")
        assert found[name].cosine_mean == pytest.approx(expected.cosine_mean, abs=1e-6)
        assert found[name].sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-2)
        assert 10 < found[name].sqnr_db < 60
    assert found["y"].kl_divergence == pytest.approx(expected_kl(pairs), rel=1e-2)
    assert found["y"].rows == 5 + 6 + 7
    assert found["other"].kl_divergence is None


def expected_kl(pairs):
    rows = [
        (softmax(a.astype(np.float64)) * np.log(softmax(a.astype(np.float64)) / softmax(b)))
        .sum(-1)
        .reshape(-1)
        for (a, _), (b, _) in pairs
    ]
    return np.concatenate(rows).mean()


def test_bound_on_kept_outputs_changes_nothing(deep, monkeypatch):
    original, path = deep
    model = load_model(path)
    whole = compare_outputs(original, [model], samples(), frozenset(), Silent())[0]
    monkeypatch.setattr(verify_outputs, "KEPT_BYTES", 1)
    apart = compare_outputs(original, [model], samples(), frozenset(), Silent())[0]
    assert vars(whole["y"]) == vars(apart["y"])
    assert len(apart["y"].cosines) == 3


def test_output_of_another_shape_or_missing_is_a_mismatch(deep, tmp_path):
    original, path = deep
    model = onnx.load(path)
    model.graph.output[1].name = "second_y"
    model.graph.node.append(node("Concat", ["y", "y"], ["twice"], axis=0))
    model.graph.output[0].name = "twice"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for inner in model.graph.node:  # y: what was y, twice
        inner.output[:] = [{"y": "once", "twice": "y"}.get(n, n) for n in inner.output]
        inner.input[:] = ["once" if n == "y" else n for n in inner.input]
    model.graph.output[0].name = "y"
    onnx.save(model, tmp_path / "other.onnx")
    other = load_model(tmp_path / "other.onnx")
    (found,) = compare_outputs(original, [other], samples(1), frozenset(), Silent())
    assert found["y"].mismatch == f"shape (2, 5, {K}) instead of (1, 5, {K})"
    assert found["other"].mismatch == "missing from the compiled model"


@pytest.mark.parametrize(
    ("layer", "constant", "change"),
    [
        ("first", "weight", lambda v: np.negative(v, out=v)),
        ("second", "scales", lambda v: np.add(v[..., 1], 2, out=v[..., 1])),
        ("third", "order", lambda v: np.copyto(v, v[::-1])),
        ("fourth", "bias", lambda v: np.add(v, 4, out=v)),
        ("fourth", "weight", lambda v: np.copyto(v, np.roll(v, 1, axis=0))),
    ],
)
def test_damaged_layer_is_the_first_bad_one(layer, constant, change, deep, way, tmp_path):
    original, path = deep
    broken = damaged(path, tmp_path, f"mmcompile.{constant}.{layer}", change)
    found = compare_layers(original, broken, SPECS, samples(2), Silent())
    assert list(found) == list(LAYERS)
    assert first_below(found, 0.95) == layer
    assert all(found[name].cosine_mean > 0.99 for name in LAYERS[: LAYERS.index(layer)])


def test_whole_model_has_no_bad_layer(deep, way):
    original, path = deep
    found = compare_layers(original, load_model(path), SPECS, samples(2), Silent())
    assert first_below(found, 0.99) is None
    assert first_below(found, 1.0) == "first"


def test_damage_of_one_byte_shows(deep, tmp_path):
    """The top exponent bit of one E4M3 code: a weight times or through 2^8."""
    original, path = deep
    row, byte = 3, 5

    def flip(values):
        values.view(np.uint8)[row, byte] ^= 0x40

    broken = damaged(path, tmp_path, "mmcompile.weight.third", flip)
    before = compare_layers(original, load_model(path), SPECS, samples(), Silent())
    after = compare_layers(original, broken, SPECS, samples(), Silent())
    lost = {name: before[name].sqnr_db - after[name].sqnr_db for name in LAYERS}
    assert lost["first"] == lost["second"] == 0
    assert lost["third"] > 0.1


def test_comparing_prints_nothing_and_leaves_polygraphys_logger_alone(deep, capfd):
    from polygraphy.logger import G_LOGGER

    original, path = deep
    before = G_LOGGER.module_severity.get()
    compare_layers(original, load_model(path), SPECS, samples(2), Silent())
    compare_outputs(original, [load_model(path)], samples(2), frozenset(), Silent())
    assert G_LOGGER.module_severity.get() == before
    assert capfd.readouterr() == ("", "")


def test_layer_of_nan_is_bad(deep, tmp_path):
    original, path = deep
    broken = damaged(path, tmp_path, "mmcompile.scales.second", lambda v: v.view("u1").fill(255))
    found = compare_layers(original, broken, SPECS, samples(1), Silent())
    assert first_below(found, 0.0) == "second"
    assert math.isnan(found["second"].cosine_mean)


def test_layers_are_compared_in_portions_within_the_bound(deep, monkeypatch):
    original, path = deep
    model = load_model(path)
    whole = compare_layers(original, model, SPECS, samples(), Silent())
    opened = []
    open_session = verify_outputs.open_session

    def counted(proto, folder):
        opened.append([value.name for value in proto.graph.output])
        return open_session(proto, folder)

    monkeypatch.setattr(verify_outputs, "open_session", counted)
    # Two layers of both models, for 7 tokens of 96 channels of 4 bytes.
    monkeypatch.setattr(verify_outputs, "LAYER_BYTES", 2 * (2 * 4 * 7 * K))
    apart = compare_layers(original, model, SPECS, samples(), Silent())
    assert opened == [[TENSORS["first"], TENSORS["second"]], [TENSORS["third"], TENSORS["fourth"]]]
    assert {k: vars(v) for k, v in whole.items()} == {k: vars(v) for k, v in apart.items()}


@given(
    st.lists(st.integers(1, 2**20), max_size=12), st.integers(1, 4096), st.integers(2**20, 2**31)
)
def test_portions(widths, tokens, bound):
    layers = [LayerSpec(str(i), str(i), width) for i, width in enumerate(widths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_outputs, "LAYER_BYTES", bound)
        portions = list(verify_outputs._portions(layers, tokens))
    assert [layer for portion in portions for layer in portion] == layers
    for portion in portions:
        size = sum(2 * 4 * tokens * layer.channels for layer in portion)
        assert size <= bound or len(portion) == 1
    assert all(portions)


def test_first_below():
    found = {"a": agreement(([1.0, 0.0], [1.0, 0.2])), "b": agreement(([1.0, 0.0], [0.5, 1.0]))}
    assert first_below(found, 0.9) == "b"
    assert first_below(found, 0.99) == "a"
    assert first_below(found, 0.1) is None
    assert first_below({"c": Agreement()} | found, 0.1) == "c"


def test_rejected_sample_is_named(deep):
    original, path = deep
    bad = [*samples(1), {"x": np.zeros((1, 5, K + 1), F32)}]
    with pytest.raises(UsageError) as caught:
        compare_outputs(original, [load_model(path)], bad, frozenset(), Silent())
    assert caught.value.code == "sample-rejected"
    assert caught.value.where == "verification sample 1"
    assert "\n" not in str(caught.value)


def test_model_that_the_runtime_refuses(deep):
    original, path = deep
    loaded = load_model(path)
    loaded.proto.functions[0].node[-1].op_type = "Unheard"
    with pytest.raises(UnsupportedModelError) as caught:
        compare_outputs(original, [loaded], samples(1), frozenset(), Silent())
    assert caught.value.code == "model-not-runnable"


# One node against the specification


TYPES = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}


def one_node(tmp_path, plan=mixed, model=None):
    prepared = prepare(model or models.matmul_add(), tmp_path)
    (group,) = prepared.groups
    made = plan(group)
    return made, pack_group(group, made, prepared.source), prepared


def rows(count=8, channels=K, seed=5):
    return random(seed).standard_normal((count, channels)).astype(F32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("plan", ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8", "nvfp4", "mixed"])
def test_node_is_within_the_bound(plan, dtype, tmp_path):
    make = mixed if plan == "mixed" else lambda group: uniform(group, plan)
    made, packed, _ = one_node(tmp_path, make)
    excess = node_excess(made, packed, rows(), TYPES[dtype], 18)
    assert 0 < excess <= 1


def test_bound_is_far_below_the_results(tmp_path):
    """By more than the smallest step of any format, so that no wrong rounding can hide."""
    (group,) = prepare(models.matmul(), tmp_path).groups
    made = uniform(group)
    x = rows(64)
    x_hat = nm.spec_operand(x, made, "act")
    w_hat = nm.spec_operand(weight(K, N).T, made, "weight")
    exact = x_hat.astype(np.float64) @ w_hat.T
    assert np.median(np.abs(exact) / nm.summation_bound(x_hat, w_hat, 0)) > 1e3


ATTRIBUTES = {
    # What the plan says is quantized to, and what the node is told.
    "threshold": {"segment_act_thresholds": [1.0, 2.0, 2.0, 1.0]},
    "activation format": {"segment_act_formats": [0, 4, 1, 2]},
    "weight format": {"segment_weight_formats": [0, 4, 2, 2]},
    # A power of two shows only where block scales leave the normal range of E4M3.
    "tensor scale of activations": {"act_tensor_scale": 2.0**9},
    "tensor scale of weights": {"weight_tensor_scale": 2.0**-11},
}


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_node_with_a_wrong_attribute_is_out_of_the_bound(what, tmp_path, monkeypatch):
    made, packed, _ = one_node(tmp_path)
    right = ops.node_attributes(made)
    assert node_excess(made, packed, rows(), TYPES["fp32"], 18) <= 1
    monkeypatch.setattr(ops, "node_attributes", lambda _: right | ATTRIBUTES[what])
    assert node_excess(made, packed, rows(), TYPES["fp32"], 18) > 1


def swapped(name, first, second):
    def change(inner):
        if inner.output[0] == name:
            inner.input[:] = [{first: second}.get(value, value) for value in inner.input]

    return change


FUNCTIONS = {
    "no clamp": swapped("v_clamped", "v_below", "v"),
    "no rounding": swapped("x_dequantized", "rounded", "v_clamped"),
    "no bias": swapped("biased", "bias", "nothing"),
    "low nibbles only": swapped("code", "shifted", "word"),
}


@pytest.mark.parametrize("fault", FUNCTIONS)
def test_node_with_another_function_is_out_of_the_bound(fault, tmp_path, monkeypatch):
    """What `node_excess` proves: the function does with its bytes what the specification says."""
    made, packed, _ = one_node(tmp_path)
    right = ops.function_proto
    before = right(18, half_blocks=True).SerializeToString()

    def wrong(*args, **options):
        function = right(*args, **options)
        for inner in function.node:
            FUNCTIONS[fault](inner)
        assert function.SerializeToString() != before
        return function

    monkeypatch.setattr(ops, "function_proto", wrong)
    assert node_excess(made, packed, 100 * rows(), TYPES["fp32"], 18) > 1


def test_node_that_answers_nan_is_out_of_the_bound(tmp_path, monkeypatch):
    made, packed, _ = one_node(tmp_path)
    monkeypatch.setattr(verify_nodes, "_run", lambda *_: np.full((8, N), np.nan, F32))
    assert node_excess(made, packed, rows(), TYPES["fp32"], 18) == math.inf
    poisoned = rows()
    poisoned[:] = np.nan
    assert node_excess(made, packed, poisoned, TYPES["fp32"], 18) == 0


def test_damaged_bytes_are_no_matter_of_the_node(deep, tmp_path):
    """Both sides read the same bytes: that they are the weights, `compare_layers` shows."""
    _, path = deep
    broken = damaged(path, tmp_path, "mmcompile.scales.first", lambda v: np.add(v, 3, out=v))
    for (_, plan, packed), (_, _, right) in zip(
        read_nodes(broken), read_nodes(load_model(path)), strict=True
    ):
        assert node_excess(plan, packed, rows(), TYPES["fp32"], 20) <= 1
        differs = (dequantize_weight(packed, plan) != dequantize_weight(right, plan)).any()
        assert differs == (plan.name == "first")


@pytest.mark.parametrize("plan", [uniform, mixed])
def test_layer_error_equals_its_formula(plan, tmp_path):
    made, packed, prepared = one_node(tmp_path, plan, models.shared_input())
    x = rows(100)
    found = layer_error(prepared.groups[0], made, packed, x, prepared.source)
    weights = np.concatenate([weight(K, n, seed=s) for s, n in enumerate((N, 32, 32))], axis=1)
    used = x[:: -(-len(x) // MEASURED_ROWS)]
    exact = used.astype(np.float64) @ weights
    x_hat = nm.spec_operand(used, made, "act").astype(np.float64)
    quantized = x_hat @ nm.spec_operand(weights.T, made, "weight").T
    ratios = ((quantized - exact) ** 2).sum(1) / (exact**2).sum(1)
    assert found.output_sqnr_db == pytest.approx(-10 * math.log10(ratios.mean()), rel=1e-4)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(quantized, axis=1)
    cosines = (exact * quantized).sum(1) / lengths
    assert found.output_cosine == pytest.approx(cosines.mean(), rel=1e-5)


def test_layer_error_at_its_edges(tmp_path):
    made, packed, prepared = one_node(tmp_path, uniform)
    (group,) = prepared.groups
    assert layer_error(group, made, packed, np.zeros((0, K), F32), prepared.source) is None
    zeros = layer_error(group, made, packed, np.zeros((3, K), F32), prepared.source)
    assert (zeros.output_sqnr_db, zeros.output_cosine) == (math.inf, 1)


# Reading a compiled model


def test_compiled_nodes_give_back_the_plan(tmp_path):
    prepared = prepare(models.shared_input((64, 32, 48)), tmp_path)
    result = compiled(prepared, tmp_path)
    ((found, plan, packed),) = read_nodes(load_model(result.path))
    (written,), (bytes_written,) = result.plans, result.packed
    assert found.name == plan.name == "q+k+v"
    assert found.outputs == ("q_out", "k_out", "v_out")
    assert plan.order == written.order
    assert (plan.in_channels, plan.out_channels) == (K, (144,))
    assert (plan.act_tensor_scale, plan.weight_tensor_scale) == (2.0**-8, 2.0**-10)
    for read, planned in zip(plan.segments, written.segments, strict=True):
        assert (read.channels, read.act_format, read.weight_format, read.act_threshold) == (
            planned.channels,
            planned.act_format,
            planned.weight_format,
            planned.act_threshold,
        )
    for field in ("order", "weight", "scales", "bias"):
        np.testing.assert_array_equal(getattr(packed, field), getattr(bytes_written, field))


def test_node_without_a_split_is_its_own_output(deep):
    _, path = deep
    outputs = [found.outputs for found in compiled_nodes(load_model(path))]
    assert outputs == [(TENSORS[name],) for name in LAYERS]


def set_attribute(name, value):
    def change(model):
        (inner,) = (n for n in model.graph.node if n.op_type == ops.OP_TYPE)
        kept = [a for a in inner.attribute if a.name != name]
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del inner.attribute[:]
        inner.attribute.extend(copies)
        if value is not None:
            inner.attribute.append(helper.make_attribute(name, value))

    return change


def set_constant(name, make):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == f"mmcompile.{name}.linear":
                values = make(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def drop_input(model):
    (inner,) = (n for n in model.graph.node if n.op_type == ops.OP_TYPE)
    del inner.input[4:]


MALFORMED = {
    "layout of yesterday": set_attribute("layout_version", 1),
    "layout of tomorrow": set_attribute("layout_version", 3),
    "no layout": set_attribute("layout_version", None),
    "no segments": set_attribute("segment_channels", None),
    "fewer segments": set_attribute("segment_channels", [96]),
    "other segments": set_attribute("segment_channels", [32, 32, 32, 64]),
    "format that is not known": set_attribute("segment_act_formats", [0, 4, 3, 9]),
    "format below zero": set_attribute("segment_act_formats", [0, 4, 3, -1]),
    "formats that are no numbers": set_attribute("segment_act_formats", ["a", "b", "c", "d"]),
    "scale no power of two": set_attribute("weight_tensor_scale", 0.3),
    "scale that is a list": set_attribute("act_tensor_scale", [1.0]),
    "threshold": set_attribute("segment_act_thresholds", [1.0, 1.0, 1.0, 2.5]),
    "weight cut": set_constant("weight", lambda v: v[:, :-1].copy()),
    "scales cut": set_constant("scales", lambda v: v[:-1].copy()),
    "scales of fewer rows": set_constant("scales", lambda v: v[:, :-1].copy()),
    "scales row by row": set_constant("scales", lambda v: v.reshape(v.shape[1], -1).copy()),
    "nvfp4 meets another format": set_attribute("segment_act_formats", [0, 3, 3, 2]),
    "weight of another type": set_constant("weight", lambda v: v.astype(np.float32)),
    "bias of another type": set_constant("bias", lambda v: v.astype(np.float64)),
    "order out of range": set_constant("order", lambda v: v + 1),
    "order with a channel twice": set_constant("order", lambda v: np.where(v == 3, 4, v)),
    "order too short": set_constant("order", lambda v: v[1:].copy()),
    "input missing": drop_input,
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_node_is_refused_in_one_line(fault, tmp_path):
    result = compiled(prepare(models.matmul_add(), tmp_path), tmp_path)
    model = result.proto
    MALFORMED[fault](model)
    onnx.save(model, tmp_path / "malformed.onnx")
    with pytest.raises(UnsupportedModelError) as caught:
        list(read_nodes(load_model(tmp_path / "malformed.onnx")))
    error = caught.value
    assert error.code in ("node-malformed", "layout-version")
    assert error.exit_code == ExitCode.UNSUPPORTED_MODEL
    assert error.where == "node linear"
    assert "\n" not in str(error)
