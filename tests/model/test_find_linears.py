import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.model.passes.find_linears import REASONS
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


@pytest.mark.parametrize("how", ["graph output", "another node", "same Add twice", "inside a body"])
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


def test_bias_behind_a_transpose_of_one_axis(tmp_path):
    nodes = [
        node("Transpose", ["b"], ["c"], name="transpose"),
        node("Gemm", ["x", "W", "c"], ["y"], name="linear"),
    ]
    model = model_of(nodes, {"W": W, "b": B}, x=("rows", K), y=("rows", N))
    sites, _, source = found(model, tmp_path)
    np.testing.assert_array_equal(values(sites["linear"], source)[1], B)


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


def graph_of(nodes, initializers, opset=21, inputs=(), functions=()):
    """Like `models.model_of`, of any opset and with functions; y has no shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, ["batch", "sequence", K]), *inputs],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    domains = {function.domain for function in functions}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def behind(nodes, initializers, **options):
    """x times what the nodes make of the initializers, `w`."""
    nodes = [*nodes, node("MatMul", ["x", "w"], ["y"], name="linear")]
    return graph_of(nodes, initializers, **options)


def dequantize(codes, scale, **attributes):
    nodes = [node("DequantizeLinear", ["W", "s"], ["w"], name="dq", **attributes)]
    return behind(nodes, {"W": codes, "s": scale})


def int8(scale):
    return np.clip(np.rint(W / scale), -128, 127).astype(np.int8)


def per_tensor():
    scale = np.float32(np.abs(W).max() / 127)
    return dequantize(int8(scale), scale), int8(scale) * scale


def per_input_channel():
    scale = np.abs(W).max(axis=1, keepdims=True) / np.float32(127)
    return dequantize(int8(scale), scale[:, 0], axis=0), int8(scale) * scale


def per_block(dtype=np.int8):
    scale = np.abs(W.reshape(K // 32, 32, N)).max(axis=1) / np.float32(7)
    steps = scale.repeat(32, axis=0)
    codes = np.rint(W / steps).astype(dtype)
    model = dequantize(codes, scale, axis=0, block_size=32)
    return model, codes.astype(np.float32) * steps


def reshaped():
    nodes = [node("Reshape", ["W", "shape"], ["w"])]
    return behind(nodes, {"W": W.reshape(-1), "shape": np.array([K, N])}), W


def transposed_cast():
    nodes = [
        node("Cast", ["W"], ["c"], to=TensorProto.FLOAT),
        node("Transpose", ["c"], ["w"], perm=[1, 0]),
    ]
    stored = W.T.astype(ml_dtypes.bfloat16)
    return behind(nodes, {"W": stored}), stored.T.astype(np.float32)


def transposed_by_default():
    return behind([node("Transpose", ["W"], ["w"])], {"W": W.T.copy()}), W


def transposed_twice():
    nodes = [
        node("Transpose", ["W"], ["t"], perm=[1, 0]),
        node("Identity", ["t"], ["i"]),
        node("Transpose", ["i"], ["w"], perm=[1, 0]),
    ]
    return behind(nodes, {"W": W}), W


def squeezed():
    nodes = [node("Squeeze", ["W", "axis"], ["w"])]
    return behind(nodes, {"W": W[None], "axis": np.array([0])}), W


def scaled():
    nodes = [node("Mul", ["W", "s"], ["w"])]
    scale = np.exp(weight(N, seed=3))
    return behind(nodes, {"W": W, "s": scale}), W * scale


@pytest.mark.parametrize(
    "make",
    [
        per_tensor,
        per_input_channel,
        per_block,
        lambda: per_block(ml_dtypes.int4),
        reshaped,
        transposed_cast,
        transposed_by_default,
        transposed_twice,
        squeezed,
        scaled,
    ],
)
def test_weight_behind_constant_operators(make, tmp_path):
    model, expected = make()
    sites, left, source = found(model, tmp_path)
    assert not left
    read, _ = values(sites["linear"], source)
    np.testing.assert_array_equal(read, expected)


def test_weight_of_computed_shape_is_unknown(tmp_path):
    nodes = [
        node("Cast", ["sizes"], ["shape"], to=TensorProto.INT64),
        node("Reshape", ["W", "shape"], ["w"]),
    ]
    sizes = np.array([K, N], np.float32)
    _, left, _ = found(behind(nodes, {"W": W.reshape(-1), "sizes": sizes}), tmp_path)
    assert left == {"linear": "weight-unknown"}


@pytest.mark.parametrize(
    ("shape", "dtype", "code"),
    [
        ((2, K, N), np.float32, "weight-rank"),
        ((K,), np.float32, "weight-rank"),
        ((K, N), np.float64, "weight-type"),
        ((K, N), np.int32, "weight-type"),
        ((31, 16), np.float32, "too-small"),
        ((32, 15), np.float32, "too-small"),
        ((32, 16), np.float32, None),
    ],
)
def test_weights_that_are_not_taken(shape, dtype, code, tmp_path):
    model = graph_of([node("MatMul", ["x", "W"], ["y"], name="linear")], {})
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, dtype), "W"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model.graph.input[0].type.tensor_type.elem_type = kind
    model.graph.output[0].type.tensor_type.elem_type = kind
    sites, left, _ = found(model, tmp_path)
    assert left == ({"linear": code} if code else {})
    assert list(sites) == ([] if code else ["linear"])


def test_constant_operands_elsewhere(tmp_path):
    nodes = [
        node("MatMul", ["L", "x"], ["a"], name="left"),
        node("MatMul", ["L", "W"], ["b"], name="both"),
        node("Add", ["a", "b"], ["y"]),
    ]
    model = graph_of(nodes, {"L": np.ones((64, 96), np.float32), "W": np.ones((96, 96), "f")})
    _, left, _ = found(model, tmp_path)
    assert left == {"left": "constant-left", "both": "two-constants"}


@pytest.mark.parametrize("ir_version", [3, 10])
@pytest.mark.parametrize("variant", ["matmul_add", "transposed_weight"])
def test_weight_that_a_caller_may_set_is_no_constant(variant, ir_version, tmp_path):
    model = LINEAR_MODELS[variant]()
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    sites, left, _ = found(model, tmp_path)
    assert not sites
    assert left == {"linear": "weight-is-input"}


def test_attention_stays_two_activations_where_other_weights_are_inputs(tmp_path):
    nodes = [
        node("Add", ["x", "W"], ["h"]),
        node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["h", "t"], ["y"], name="scores"),
    ]
    extra = helper.make_tensor_value_info("W", 1, [K])
    _, left, _ = found(graph_of(nodes, {"W": W[:, 0].copy()}, inputs=[extra]), tmp_path)
    assert left == {"scores": "two-activations"}


def with_relu(model):
    """The model's output is a Relu of what it was, so that no linear is a head."""
    for inner in model.graph.node:
        inner.output[:] = ["before" if name == "y" else name for name in inner.output]
    model.graph.node.append(node("Relu", ["before"], ["y"], name="relu"))
    return model


def head_behind(*nodes, **initializers):
    chain = [node("MatMul", ["x", "W"], ["h0"], name="linear")]
    for index, (op, constants, attributes) in enumerate(nodes):
        inputs, outputs = [f"h{index}", *constants], [f"h{index + 1}"]
        chain.append(node(op, inputs, outputs, name=f"{op}{index}", **attributes))
    chain[-1].output[0] = "y"
    return graph_of(chain, {"W": W, **initializers})


HEADS = {
    "itself": models.matmul,
    "bias": models.matmul_add,
    "bias of rank 3": lambda: models.matmul_add(bias_shape=(1, 1, N)),
    "Cast": lambda: head_behind(("Cast", [], {"to": 1})),
    "Reshape": lambda: head_behind(
        ("Reshape", ["shape"], {}), ("Identity", [], {}), shape=np.array([-1, N])
    ),
    "scaled logits": lambda: head_behind(
        ("Mul", ["s"], {}), ("Cast", [], {"to": 1}), s=np.float32([0.1])
    ),
    "shared with another node": lambda: with_second_reader(models.matmul_add(), "graph output"),
}


@pytest.mark.parametrize("how", HEADS)
def test_head_is_kept_unless_asked_for(how, tmp_path):
    model = HEADS[how]()
    sites, left, _ = found(model, tmp_path, heads=False)
    assert not sites
    assert left == {"linear": "output-head"}
    assert list(found(model, tmp_path, heads=True)[0]) == ["linear"]


@pytest.mark.parametrize("how", [h for h in HEADS if h != "shared with another node"])
def test_hidden_layer_is_no_head(how, tmp_path):
    sites, left, _ = found(with_relu(HEADS[how]()), tmp_path, heads=False)
    assert list(sites) == ["linear"]
    assert not left


def test_residual_sum_of_two_linears_is_no_head(tmp_path):
    nodes = [
        node("MatMul", ["x", "W"], ["a"], name="a"),
        node("MatMul", ["x", "W"], ["b"], name="b"),
        node("Add", ["a", "b"], ["y"]),
    ]
    sites, _, _ = found(graph_of(nodes, {"W": W}), tmp_path, heads=False)
    assert list(sites) == ["a", "b"]


@pytest.mark.parametrize(
    ("selection", "taken", "codes"),
    [
        ({}, "qkv", {}),
        ({"include": ("q", "k")}, "qk", {"v": "not-included"}),
        ({"include": ("W[qv]",)}, "qv", {"k": "not-included"}),
        ({"exclude": ("k",)}, "qv", {"k": "excluded"}),
        ({"exclude": ("Wk", "v")}, "q", {"k": "excluded", "v": "excluded"}),
        ({"include": ("q",), "exclude": ("*q",)}, "", {"q": "excluded"}),
        ({"include": ("Q",)}, "", dict.fromkeys("qkv", "not-included")),
    ],
)
def test_patterns_choose_by_node_and_weight_name(selection, taken, codes, tmp_path):
    sites, left, _ = found(models.shared_input(), tmp_path, **selection)
    assert "".join(sites) == taken
    assert codes.items() <= left.items()
    assert len(sites) + len(left) == 3


def test_pattern_matches_the_initializer_behind_operators(tmp_path):
    model = models.cast_weight()
    assert found(model, tmp_path, exclude=("W",))[1] == {"linear": "excluded"}
    assert found(model, tmp_path, exclude=("w",))[1] == {"linear": "excluded"}


def test_candidates_in_bodies_and_functions_have_reasons(tmp_path):
    body = helper.make_graph(
        [node("MatMul", ["a", "b"], ["c"], name="deep")],
        "body",
        [],
        [helper.make_tensor_value_info("c", 1, None)],
    )
    function = helper.make_function(
        "local",
        "Block",
        ["a", "b", "on"],
        ["d"],
        [
            node("Gemm", ["a", "b"], ["g"], name="dense"),
            node("MatMul", ["g", "b"], ["m"]),
            node("If", ["on"], ["d"], name="if", then_branch=body, else_branch=body),
        ],
        [helper.make_opsetid("", 21)],
    )
    nested = helper.make_graph(
        [node("If", ["on"], ["e"], name="inner_if", then_branch=body, else_branch=body)],
        "nested",
        [],
        [helper.make_tensor_value_info("e", 1, None)],
    )
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Identity", ["W"], ["b"]),
        node("If", ["on"], ["z"], name="if", then_branch=nested, else_branch=nested),
        node("Block", ["a", "b", "on"], ["y"], name="call", domain="local"),
    ]
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    model = graph_of(nodes, {"W": np.ones((K, K), "f")}, inputs=[on], functions=[function])
    prepared = prepare(model, tmp_path)
    assert not prepared.sites
    assert [(entry.node, entry.code) for entry in prepared.left_alone] == [
        ("if/inner_if/deep", "subgraph"),
        ("if/inner_if/deep", "subgraph"),
        ("if/inner_if/deep", "subgraph"),
        ("if/inner_if/deep", "subgraph"),
        ("Block/dense", "function"),
        ("Block/MatMul", "function"),
        ("Block/if/deep", "function"),
        ("Block/if/deep", "function"),
    ]


def test_layers_of_other_quantizers_are_named(tmp_path):
    nodes = [
        node("Cast", ["x"], ["q"], to=TensorProto.INT8),
        node("MatMulInteger", ["q", "W"], ["i"], name="foreign"),
        node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    _, left, _ = found(graph_of(nodes, {"W": np.ones((K, N), np.int8)}), tmp_path)
    assert left == {"foreign": "already-quantized"}


def test_operator_of_another_domain_is_no_candidate(tmp_path):
    model = graph_of([node("MatMul", ["x", "W"], ["y"], name="odd", domain="odd")], {"W": W})
    model.opset_import.add(domain="odd", version=1)
    assert found(model, tmp_path)[:2] == ({}, {})


def test_weight_shared_by_gather_and_head(tmp_path):
    sites, _, source = found(models.tied_weight(), tmp_path)
    site = sites["linear"]
    assert site.weight.leaves == ("W",)
    assert not site.channels_first
    assert site.read_weight(source).base is not None  # a view of the mapped file, not a copy


COUNTS = {"llama": (14, 1, 4), "qwen2": (14, 1, 4), "qwen3": (14, 1, 4), "bert": (12, 0, 4)}
COUNTS["gpt2"] = (8, 1, 4)
"""Linears, heads and products of attention of the small models: two layers each."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_product_of_a_real_model_is_accounted_for_once(name, exported, tmp_path):
    prepared = prepare(exported(name), tmp_path, heads=False)
    products = [n.name for n in prepared.source.proto.graph.node if n.op_type in ("MatMul", "Gemm")]
    taken = [site.node for site in prepared.sites]
    left = [entry.node for entry in prepared.left_alone]
    assert sorted(products) == sorted(taken + left)
    assert [site.node for site in prepare(exported(name), tmp_path).sites] == taken + [
        entry.node for entry in prepared.left_alone if entry.code == "output-head"
    ]
    codes = [entry.code for entry in prepared.left_alone]
    linears, heads, attention = COUNTS[name]
    assert len(taken) == linears
    assert codes.count("output-head") == heads
    assert codes.count("two-activations") == len(codes) - heads == attention
