import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.passes.find_linears import REASONS, Selection
from tests import models
from tests.compiling import prepare
from tests.models import LINEAR_MODELS, SMALL_MODELS, K, N, model_of, weight

W = weight(K, N)
B = weight(N, seed=1)
node = helper.make_node


def found(model, tmp_path, **selection):
    prepared = prepare(model, tmp_path, **selection)
    left = {entry.node: entry.code for entry in prepared.left_alone}
    assert len(left) == len(prepared.left_alone)
    assert all(REASONS[entry.code] == entry.reason for entry in prepared.left_alone)
    return {site.node: site for site in prepared.sites}, left, prepared.source


def values(site, source):
    """The layer's weight as [K, N] and its bias, as found."""
    read = np.asarray(site.read_weight(source)).astype(np.float32)
    return read if site.channels_first else read.T, site.read_bias(source)


DEQUANTIZED = models.dequantized_weight().graph.initializer


def dequantized():
    codes, scale, zero = (numpy_helper.to_array(t).astype(np.float32) for t in DEQUANTIZED)
    return (codes - zero) * scale


EXPECTED = {
    "matmul": (W, 0 * B),
    "matmul_add": (W, B),
    "matmul_add_bias_first": (W, B),
    "matmul_add_bias_11n": (W, 0 * B),  # the Add stays: x may have fewer than three dimensions
    "gemm": (W, B),
    "gemm_no_bias": (W, 0 * B),
    "gemm_trans_b": (W, B),
    "gemm_trans_a": (W, B),
    "gemm_trans_ab": (W, B),
    "gemm_alpha_beta": (W * np.float32(0.5), B * np.float32(-2)),
    "gemm_beta_zero": (W, 0 * B),
    "gemm_bias_1n": (W, weight(1, N, seed=1)[0]),
    "gemm_bias_1": (W, np.full(N, weight(1, seed=1)[0])),
    "gemm_bias_scalar": (W, np.full(N, np.float32(0.5))),
    "gemm_between_reshapes": (W, B),
    "transposed_weight": (W, 0 * B),
    "cast_weight": (W.astype(np.float16).astype(np.float32), 0 * B),
    "dequantized_weight": (dequantized(), 0 * B),
    "identity_weight": (W, 0 * B),
    "constant_node_weight": (W, 0 * B),
    "tied_weight": (W, 0 * B),
    "fp16": tuple(v.astype(np.float16).astype(np.float32) for v in (W, B)),
    "bf16": tuple(v.astype(ml_dtypes.bfloat16).astype(np.float32) for v in (W, B)),
    "if": (weight(K, N, seed=1), 0 * B),
    "loop": (weight(K, K), np.zeros(K, np.float32)),
}
LEFT = {
    "gemm_bias_m1": {"linear": "bias-shape"},
    "gemm_bias_mn": {"linear": "bias-shape"},
    "two_activations": {"scores": "two-activations", "mix": "two-activations"},
    "if": {"y/inner": "subgraph"},
    "loop": {"y/inner": "subgraph"},
}


def test_every_pattern_is_expected_somewhere():
    assert EXPECTED.keys() | LEFT.keys() | {"shared_input"} == LINEAR_MODELS.keys()


@pytest.mark.parametrize("variant", EXPECTED)
def test_pattern_is_found_with_weight_and_bias(variant, tmp_path):
    model = LINEAR_MODELS[variant]()
    sites, left, source = found(model, tmp_path)
    assert left == LEFT.get(variant, {})
    assert list(sites) == ["linear"]
    site = sites["linear"]
    expected_weight, expected_bias = EXPECTED[variant]
    read_weight, read_bias = values(site, source)
    np.testing.assert_array_equal(read_weight, expected_weight)
    np.testing.assert_array_equal(read_bias, expected_bias)
    assert read_bias.dtype == np.float32
    assert (site.in_channels, site.out_channels) == expected_weight.shape
    assert site.transpose_input == ("trans_a" in variant)
    absorbs = variant in ("matmul_add", "matmul_add_bias_first", "fp16", "bf16")
    assert site.bias_node == ("bias" if absorbs else None)
    product = next(n for n in model.graph.node if n.name == "linear").output[0]
    assert site.output == ("y" if absorbs else product)
    assert site.elem_type == model.graph.input[0].type.tensor_type.elem_type


@pytest.mark.parametrize("variant", ["gemm_bias_m1", "gemm_bias_mn", "two_activations"])
def test_pattern_that_is_no_linear_has_its_reason(variant, tmp_path):
    sites, left, _ = found(LINEAR_MODELS[variant](), tmp_path)
    assert not sites
    assert left == LEFT[variant]


def test_plain_weights_are_read_in_place(tmp_path):
    for variant in ("matmul", "transposed_weight", "identity_weight", "gemm_trans_b"):
        sites, _, _ = found(LINEAR_MODELS[variant](), tmp_path)
        assert sites["linear"].weight.expression is None, variant


def with_second_reader(model, how):
    """The product of `matmul_add` is needed elsewhere, too."""
    if how == "graph output":
        model.graph.output.append(helper.make_tensor_value_info("h", 1, None))
    elif how == "another node":
        model.graph.node.append(node("Relu", ["h"], ["z"], name="relu"))
        model.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    elif how == "same Add twice":
        model.graph.node[1].input[:] = ["h", "h"]
    elif how == "inside a body":
        bodies = {
            f"{name}_branch": helper.make_graph(
                [node(op, ["h"], [f"z{name}"], name=op)],
                name,
                [],
                [helper.make_tensor_value_info(f"z{name}", 1, None)],
            )
            for name, op in (("then", "Relu"), ("else", "Neg"))
        }
        model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        model.graph.node.append(node("If", ["c"], ["z"], name="if", **bodies))
        model.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    return model


@pytest.mark.parametrize(
    "how", ["graph output", "another node", "same Add twice", "inside a body"]
)
def test_bias_stays_where_its_product_is_needed_elsewhere(how, tmp_path):
    sites, _, _ = found(with_second_reader(models.matmul_add(), how), tmp_path)
    assert sites["linear"].bias is None
    assert sites["linear"].output == "h"


@pytest.mark.parametrize("shape", [(), (1,), (N,)])
def test_bias_of_few_dimensions_is_taken_along(shape, tmp_path):
    model = model_of(
        [
            node("MatMul", ["x", "W"], ["h"], name="linear"),
            node("Add", ["h", "b"], ["y"], name="bias"),
        ],
        {"W": W, "b": np.full(shape, 0.5, np.float32)},
    )
    sites, _, source = found(model, tmp_path)
    np.testing.assert_array_equal(values(sites["linear"], source)[1], np.full(N, 0.5))


def test_bias_that_is_computed_from_inputs_stays(tmp_path):
    extra = helper.make_tensor_value_info("c", TensorProto.FLOAT, [N])
    model = model_of(
        [
            node("MatMul", ["x", "W"], ["h"], name="linear"),
            node("Add", ["h", "c"], ["y"], name="bias"),
        ],
        {"W": W},
        inputs=[extra],
    )
    sites, _, _ = found(model, tmp_path)
    assert sites["linear"].bias_node is None
    gemm = model_of(
        [node("Gemm", ["x", "W", "c"], ["y"], name="linear")],
        {"W": W},
        x=("rows", K),
        y=("rows", N),
        inputs=[extra],
    )
    assert found(gemm, tmp_path)[1] == {"linear": "bias-shape"}


def blocked(opset=21):
    """Int8 codes with one scale per 32 input channels and output channel."""
    scale = np.abs(W.reshape(K // 32, 32, N)).max(axis=1) / 127
    codes = np.rint(W / scale.repeat(32, axis=0)).astype(np.int8)
    model = model_of(
        [
            node("DequantizeLinear", ["W", "s"], ["w"], name="dq", axis=0, block_size=32),
            node("MatMul", ["x", "w"], ["y"], name="linear"),
        ],
        {"W": codes, "s": scale},
        opset=opset,
    )
    return model, codes.astype(np.float32) * scale.repeat(32, axis=0)


def model_of(nodes, initializers, opset=20, **options):
    model = models.model_of([], {}, **options) if False else None
    del model
    graph_model = models.model_of
    if opset == 20:
        return graph_model(nodes, initializers, **options)
    built = graph_model([node("Identity", ["x"], ["y"])], {}, y=("batch", "sequence", K))
    return built
