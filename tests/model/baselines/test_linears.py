"""Every way to write a linear, in every baseline, against ml_dtypes and a float64 product."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mmcompile.errors import UnsupportedModelError, UsageError
from mmcompile.model.passes.baselines import KINDS
from tests.compiling import prepare
from tests.model.baselines import oracle
from tests.model.baselines.making import make, make_from, run_bfloat16
from tests.models import LINEAR_MODELS, K, N, gemm, matmul, model_of, shared_input, weight
from tests.running import run

QUANTIZED = [kind for kind in KINDS if kind != "fp16"]


def feed_of(model, seed=5):
    """Random inputs, floats among the float16 numbers.

    ONNX Runtime removes a Cast to float16 where one back follows, as its MatMul computes in
    float32; numbers that are float16 already are the same with and without it.
    """
    generator = np.random.default_rng(seed)
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = {"batch": 2, "sequence": 3, "rows": 5}
        shape = [d.dim_value or sizes[d.dim_param] for d in tensor.shape.dim]
        if tensor.elem_type == TensorProto.INT64:
            feed[value.name] = generator.integers(0, 32, shape)
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            sizes_of_channels = np.exp(generator.normal(0, 1, shape))
            values = generator.standard_normal(shape) * sizes_of_channels
            feed[value.name] = np.asarray(values).astype(np.float16).astype(dtype)
    return feed


def expected(kind, site, source, x, amax):
    """The linear's output in float64, and a bound of what rounding may change.

    Both operands are rounded to float16 (which ONNX Runtime leaves out where it can), a relative
    2^-11 each; their products are summed in fp32 (K terms, Higham 4.2); the sum is rounded to
    float16 once before and once after the bias, and the bias itself, too.
    """
    stored = np.asarray(site.weight.read(source))
    rows = stored.T if site.channels_first else stored
    rows = rows.astype(np.float16).astype(np.float32) if kind == "fp16" else rows.astype(np.float32)
    x = (x.T if site.transpose_input else x).astype(np.float16)
    x_hat = oracle.dequantized(kind, x, amax).astype(np.float64)
    w_hat = oracle.dequantized(kind, rows, float(np.abs(rows).max())).astype(np.float64)
    product = site.alpha * (x_hat @ w_hat.T)
    bias = site.read_bias(source).astype(np.float64)
    size = abs(site.alpha) * (np.abs(x_hat) @ np.abs(w_hat).T)
    unit = 2.0**-11
    bound = ((site.in_channels + 2) * 2.0**-24 + 2 * unit) * size + 3 * unit * (
        np.abs(product) + np.abs(bias)
    )
    return product + bias, bound + 2.0**-24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LINEAR_MODELS)
def test_linear(kind, name, tmp_path):
    model = LINEAR_MODELS[name]()
    prepared = prepare(model, tmp_path)
    feed = feed_of(model)
    amax = {group.input: 7.5 for group in prepared.groups}
    result = make_from(kind, prepared, tmp_path / "out", amax)
    for path in {result.path, result.runnable}:
        onnx.checker.check_model(str(path), full_check=True)
    assert_same_border(model, onnx.load(result.path))
    (actual,) = (run_bfloat16 if name == "bf16" else run)(result.runnable, feed)
    if kind != "fp16":
        assert set(result.quantized) == {site.node for site in prepared.sites}
    if len(prepared.sites) == 1 and site_is_all_of(model, prepared.sites[0]):
        exact, bound = expected(kind, prepared.sites[0], prepared.source, feed["x"], 7.5)
        if name == "bf16":
            bound = bound + 2.0**-8 * np.abs(exact)
        error = np.abs(actual.astype(np.float64) - exact)
        assert (error <= bound + 2.0**-11 * np.abs(exact)).all(), (error / bound).max()


def site_is_all_of(model, site):
    """Whether the linear is between the model's input and its output."""
    return site.input == "x" and site.output in {value.name for value in model.graph.output}


def assert_same_border(before, after):
    """Names, types and dimensions of inputs and outputs, in order."""
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


@pytest.mark.parametrize("kind", KINDS)
def test_the_measure_sees_a_wrong_operand(kind, tmp_path):
    # The bound is tight enough to notice one weight that is off by its smallest step.
    prepared = prepare(matmul(), tmp_path)
    (site,) = prepared.sites
    x = feed_of(matmul())["x"]
    exact, bound = expected(kind, site, prepared.source, x, 7.5)
    rows = np.asarray(site.weight.read(prepared.source)).T.copy()
    rows[0] = np.roll(rows[0], 1)

    class Changed:
        weights = type("Weights", (), {"read": staticmethod(lambda _name: rows.T)})

    wrong, _ = expected(kind, site, Changed, x, 7.5)
    assert (np.abs(wrong - exact) > bound).any()


def test_one_quantization_for_linears_on_one_tensor(tmp_path):
    for kind in QUANTIZED:
        nodes = onnx.load(make(kind, shared_input(), tmp_path / kind).path).graph.node
        quantizers = [node for node in nodes if "Quantize" in node.op_type]
        assert len([n for n in quantizers if "Dequantize" not in n.op_type]) == 1


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for kind in KINDS:
        (tmp_path / kind).mkdir()


@pytest.mark.parametrize(("kind", "width"), [("mxfp8", 48), ("nvfp4", 40)])
def test_width_that_no_block_fits_is_left_alone(kind, width, tmp_path):
    nodes = [onnx.helper.make_node("MatMul", ["x", "W"], ["y"], "linear")]
    model = model_of(nodes, {"W": weight(width, N)}, x=("batch", "sequence", width))
    result = make(kind, model, tmp_path)
    assert result.quantized == ()
    (left,) = result.left_alone
    assert (left.node, left.code) == ("linear", "block-length")
    assert f"K = {width}" in left.reason
    assert result.weight_bits == 16
    assert result.runnable == result.path  # all operators are standard
    run(result.runnable, {"x": np.ones((1, 2, width), np.float32)})
    assert make("fp8", model, tmp_path).left_alone == ()


def test_four_dimensions_are_left_alone(tmp_path):
    nodes = [onnx.helper.make_node("MatMul", ["x", "W"], ["y"], "linear")]
    model = model_of(nodes, {"W": weight(K, N)}, x=("a", "b", "c", K), y=("a", "b", "c", N))
    assert [e.code for e in make("nvfp4", model, tmp_path).left_alone] == ["input-rank"]
    assert make("fp8", model, tmp_path).quantized == ("linear",)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_refused(kind, value, tmp_path):
    bad = weight(K, N)
    bad[3, 5] = value
    nodes = [onnx.helper.make_node("MatMul", ["x", "W"], ["y"], "linear")]
    with pytest.raises(UnsupportedModelError) as caught:
        make(kind, model_of(nodes, {"W": bad}), tmp_path)
    assert caught.value.code == "weight-not-finite"
    assert "linear" in caught.value.where
    assert not list((tmp_path / kind).iterdir())


def test_statistics_of_another_model(tmp_path):
    with pytest.raises(UsageError) as caught:
        make("fp8", matmul(), tmp_path, {"other": 1.0})
    assert caught.value.code == "stats-mismatch"


def test_per_channel_weights(tmp_path):
    sizes = np.exp2(np.arange(N) % 16 - 8).astype(np.float32)
    nodes = [onnx.helper.make_node("MatMul", ["x", "W"], ["y"], "linear")]
    model = model_of(nodes, {"W": weight(K, N) * sizes})
    x = feed_of(model)["x"]
    exact = x.astype(np.float64) @ (weight(K, N) * sizes).astype(np.float64)
    errors = {}
    for per_channel in (False, True):
        result = make("fp8", model, tmp_path, 7.5, per_channel=per_channel)
        (y,) = run(result.path, {"x": x})
        errors[per_channel] = np.abs((y - exact) / sizes).mean()
        scales = [t for t in onnx.load(result.path).graph.initializer if "weight.scale" in t.name]
        assert [tuple(t.dims) for t in scales] == [(N,) if per_channel else ()]
    assert errors[True] < errors[False]
    trans_b = make("fp8", gemm(trans_b=True), tmp_path, 7.5, per_channel=True)
    (y,) = run(trans_b.path, feed_of(gemm(trans_b=True)))
    assert np.isfinite(y).all()


def test_constants_hold_what_their_types_say(tmp_path):
    rows = weight(K, N).T
    for kind, codes, scales in (
        ("mxfp8", oracle.mxfp8_codes(rows), oracle.mxfp8_exponents(rows) + 127),
        (
            "nvfp4",
            oracle.nvfp4_codes(rows, oracle.nvfp4_scale(np.abs(rows).max())),
            oracle.nvfp4_block_scales(rows, oracle.nvfp4_scale(np.abs(rows).max())),
        ),
    ):
        written = onnx.load(make(kind, matmul(), tmp_path).path)
        tensors = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
        stored = tensors["mmcompile.baseline.weight.linear"]
        assert stored.dtype == codes.dtype
        np.testing.assert_array_equal(stored.astype(np.float32), codes.astype(np.float32))
        found = tensors["mmcompile.baseline.scales.linear"]
        np.testing.assert_array_equal(found.astype(np.float32), scales.astype(np.float32))
