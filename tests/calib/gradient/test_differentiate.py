"""The transformation as a whole: paths, missing gradients, functions, types, ONNX Runtime's ops."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.calib.gradient import differentiate
from mmcompile.calib.gradient.table import FLAT, RULES
from mmcompile.model.source import load_model
from mmcompile.ops import MAX_OPSET
from tests import running
from tests.models import LINEAR_MODELS, linear_model, weight

torch = pytest.importorskip("torch", reason="the oracle is torch's autograd")

node = helper.make_node
FLOAT = TensorProto.FLOAT
K = 8


def model_of(nodes, outputs=("out",), *, inputs=("x",), opset=20, dtype=FLOAT, rank=3, **values):
    """A model of float inputs [.., K] of dynamic size; outputs are declared without a shape."""
    sizes = ["batch", "rows", K][-rank:]
    kind = helper.make_tensor_type_proto(dtype, None)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, sizes) for name in inputs],
        [onnx.ValueInfoProto(name=name, type=kind) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run(graph, feed, seeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph.model.SerializeToString(), options)
    inputs = feed | {graph.seeds[name]: value for name, value in seeds.items()}
    values = session.run(list(graph.gradients.values()), inputs)
    return dict(zip(graph.gradients, values, strict=True))


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def autograd(function, *arrays, seed):
    """Gradients of Σ seed·function(arrays) by torch in float64."""
    tensors = [torch.tensor(np.float64(a), requires_grad=True) for a in arrays]
    (function(*tensors) * torch.tensor(np.float64(seed))).sum().backward()
    return [tensor.grad.numpy() for tensor in tensors]


def agrees(model, wanted, function, feed, seed, tolerance=1e-5):
    """Compares gradients of tensors that are copies of the inputs with torch's."""
    graph = differentiate(model, wanted)
    assert not graph.missing
    found = run(graph, feed, {"out": seed})
    for name, expected in zip(wanted, autograd(function, *feed.values(), seed=seed), strict=True):
        error = np.abs(found[name] - expected).max()
        assert error <= tolerance * np.abs(expected).max(), name


# x → a → (b, c) → out: a is used twice, c reaches the output on two ways.
DIAMOND = [
    node("Identity", ["x"], ["a"]),
    node("Tanh", ["a"], ["b"]),
    node("Mul", ["a", "b"], ["c"]),
    node("Add", ["c", "b"], ["d"]),
    node("Mul", ["d", "c"], ["out"]),
]


def test_several_paths():
    def function(x):
        c = x * torch.tanh(x)
        return (c + torch.tanh(x)) * c

    model = model_of(DIAMOND)
    agrees(model, ["a"], function, {"x": normal(2, 3, K)}, normal(2, 3, K, seed=1))


def test_every_tensor_on_the_way():
    x, seed = normal(2, 3, K), normal(2, 3, K, seed=1)
    graph = differentiate(model_of(DIAMOND), ["out", "d", "c", "b"])
    found = run(graph, {"x": x}, {"out": seed})
    a = np.float64(x)
    b, c = np.tanh(a), a * np.tanh(a)
    expected = {
        "out": seed,
        "d": seed * c,
        "c": seed * (2 * c + b),
        "b": seed * (c + a * (2 * c + b)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_several_outputs_and_sizes():
    model = model_of([node("Identity", ["x"], ["a"]), node("Neg", ["a"], ["out"])], ["a", "out"])
    graph = differentiate(model, ["a"])
    for shape in ((1, 1, K), (3, 5, K), (2, 0, K)):
        seeds = {"a": normal(*shape, seed=1), "out": normal(*shape, seed=2)}
        found = run(graph, {"x": normal(*shape)}, seeds)
        np.testing.assert_array_equal(found["a"], seeds["a"] - seeds["out"])


def test_only_what_is_asked_for_is_differentiated():
    """An operator without a rule before the requested tensor does no harm."""
    nodes = [node("TopK", ["x", "k"], ["t", "i"]), node("Identity", ["t"], ["a"])]
    nodes += [node("Exp", ["a"], ["out"])]
    graph = differentiate(model_of(nodes, k=np.array([3])), ["a"])
    assert not graph.missing
    assert not any("seed.i" in name for name in graph.seeds.values())


def test_kept_tensors_are_computed_though_no_gradient_needs_them():
    nodes = [node("Identity", ["x"], ["a"]), node("Exp", ["x"], ["side"])]
    nodes += [node("Neg", ["a"], ["out"])]
    model = model_of(nodes)
    assert all(n.op_type != "Exp" for n in differentiate(model, ["a"]).model.graph.node)
    graph = differentiate(model, ["a"], keep=["side", "x"])
    x = normal(2, 3, K)
    feeds = {"x": x, graph.seeds["out"]: x}
    side, same = running.run(graph.model, feeds, list(graph.kept.values()))
    np.testing.assert_allclose(side, np.exp(x), rtol=1e-6)
    np.testing.assert_array_equal(same, x)


def test_pure():
    model = model_of(DIAMOND)
    before = model.SerializeToString()
    first, second = differentiate(model, ["a"]), differentiate(model, ["a"])
    assert model.SerializeToString() == before
    assert first == second
    onnx.checker.check_model(first.model)


# a → b → TopK → out, a → c → out, d behind both.
BLOCKED = [
    node("Identity", ["x"], ["a"]),
    node("Identity", ["a"], ["b"]),
    node("TopK", ["b", "k"], ["top", "where"], name="pick"),
    node("ReduceSum", ["a", "last"], ["c"]),
    node("Identity", ["c"], ["e"]),
    node("Add", ["top", "e"], ["d"]),
    node("Exp", ["d"], ["out"]),
]
BLOCK = {"k": np.array([1]), "last": np.array([-1])}


def test_operator_without_a_rule():
    graph = differentiate(model_of(BLOCKED, **BLOCK), ["a", "b", "c", "d", "top"])
    assert graph.missing == dict.fromkeys("ab", "node 'pick' (TopK) has no gradient rule")
    assert list(graph.gradients) == ["c", "d", "top"]
    x, seed = normal(2, 3, K), normal(2, 3, 1, seed=1)
    expected = seed * np.exp(x.max(-1, keepdims=True) + x.sum(-1, keepdims=True))
    for value in run(graph, {"x": x}, {"out": seed}).values():
        np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "outputs", "wanted", "reason"),
    [
        (DIAMOND, ("out",), "nowhere", "no such tensor"),
        ([node("ArgMax", ["x"], ["out"])], (), "x", "no floating-point output"),
        ([node("Round", ["x"], ["r"]), node("Exp", ["r"], ["out"])], ("out",), "x", "no diff"),
        ([node("Shape", ["x"], ["s"]), node("Exp", ["x"], ["out"])], ("out",), "s", "it holds no"),
        ([node("Pad", ["x", "p"], ["out"], mode="edge")], ("out",), "x", "pads with copies"),
        ([node("Pow", ["p", "x"], ["out"])], ("out",), "x", "exponent"),
        ([node("Det", ["x"], ["out"], name="d")], ("out",), "x", "node 'd' (Det) has no gradient"),
        ([node("Own", ["x"], ["out"], domain="com.microsoft")], ("out",), "x", "(Own) has no"),
    ],
)
def test_missing(nodes, outputs, wanted, reason):
    pads = np.ones(6, np.int64) if nodes[0].op_type == "Pad" else np.float32(2)
    model = model_of(nodes, outputs, p=pads)
    if not outputs:
        model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.INT64, None))
    graph = differentiate(model, [wanted])
    assert not graph.gradients
    assert reason in graph.missing[wanted]


@pytest.mark.parametrize("variant", LINEAR_MODELS)
def test_never_an_exception(variant):
    """All hand-made graphs, control flow among them; a tensor has a gradient or a reason."""
    model = linear_model(variant)
    names = [name for n in model.graph.node for name in n.output]
    graph = differentiate(model, names)
    assert set(graph.gradients) | set(graph.missing) == set(names)
    if variant in {"if", "loop"}:
        (reason,) = set(graph.missing.values())
        assert reason == f"node 'y' ({variant.title()}) has no gradient rule"
        assert "y" in graph.gradients
    elif graph.gradients:
        onnx.checker.check_model(graph.model)


def test_model_local_functions():
    body = [node("Exp", ["p"], ["e"]), node("Mul", ["e", "p"], ["q"])]
    model = model_of([node("Identity", ["x"], ["a"]), node("Inner", ["a"], ["out"], domain="mine")])
    imports = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("mine", "Inner", ["p"], ["q"], body, imports))
    model.opset_import.add(domain="mine", version=1)
    seed = normal(2, 3, K, seed=1)
    agrees(model, ["a"], lambda x: x.exp() * x, {"x": normal(2, 3, K)}, seed)


def test_attention_is_expanded():
    nodes = [node("Identity", [name], [name.upper()]) for name in "qkv"]
    attention = {"q_num_heads": 2, "kv_num_heads": 1, "is_causal": 1}
    nodes += [node("Attention", ["Q", "K", "V"], ["out"], **attention)]
    model = model_of(nodes, inputs=("q", "k", "v"), opset=23)
    for value in model.graph.input[1:]:
        value.type.tensor_type.shape.dim[2].dim_value = K // 2

    def function(q, k, v):
        q, k, v = (t.unflatten(-1, (-1, K // 2)).transpose(1, 2) for t in (q, k, v))
        result = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=True
        )
        return result.transpose(1, 2).flatten(2)

    feed = {"q": normal(2, 3, K), "k": normal(2, 3, K // 2, seed=1), "v": normal(2, 3, K // 2)}
    agrees(model, list("QKV"), function, feed, normal(2, 3, K, seed=2), 1e-4)


def test_rotary_embedding_is_expanded():
    angles = np.random.default_rng(0).uniform(0, 6, (2, 3, K // 2)).astype(np.float32)
    values = {"cos": np.cos(angles), "sin": np.sin(angles)}
    nodes = [node("Identity", ["x"], ["a"])]
    nodes += [node("RotaryEmbedding", ["a", "cos", "sin"], ["out"], num_heads=1)]

    def function(x):
        cos, sin = (torch.tensor(np.float64(v)) for v in values.values())
        one, two = x.chunk(2, -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    model = model_of(nodes, opset=23, **values)
    agrees(model, ["a"], function, {"x": normal(2, 3, K)}, normal(2, 3, K, seed=2))


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Gelu", torch.nn.functional.gelu),
        ("FastGelu", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        ("QuickGelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_activations_of_onnx_runtime(op, function):
    nodes = [node("Identity", ["x"], ["a"]), node(op, ["a"], ["out"], domain="com.microsoft")]
    feed = {"x": normal(2, 3, K)}
    agrees(model_of(nodes), ["a"], function, feed, normal(2, 3, K, seed=1))


def test_simplified_layer_norm():
    scale = np.exp(weight(K))
    nodes = [node("Identity", ["x"], ["a"])]
    nodes += [node("SimplifiedLayerNormalization", ["a", "s"], ["out"], epsilon=0.1, axis=-1)]

    def function(x):
        return torch.nn.functional.rms_norm(x, (K,), torch.tensor(np.float64(scale)), 0.1)

    feed = {"x": normal(2, 3, K)}
    agrees(model_of(nodes, s=scale), ["a"], function, feed, normal(2, 3, K, seed=1))


@pytest.mark.parametrize("simple", [False, True])
def test_skip_layer_norm(simple):
    """Both outputs are used: the normalized sum and the sum."""
    scale, shift = np.exp(weight(K)), weight(K, seed=1)
    op = "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization"
    parts = ["s", "b"] if simple else ["s", "t", "b"]
    nodes = [node("Identity", [name], [name.upper()]) for name in "xy"]
    nodes += [
        node(op, ["X", "Y", *parts], ["n", "", "", "sum"], domain="com.microsoft", epsilon=0.1),
        node("Mul", ["n", "sum"], ["out"]),
    ]
    tensors = {"s": scale, "t": shift, "b": weight(K, seed=2)}
    values = {name: tensors[name] for name in parts}
    s, t, b = (torch.tensor(np.float64(value)) for value in tensors.values())

    def function(x, y):
        total = x + y + b
        if simple:
            return torch.nn.functional.rms_norm(total, (K,), s, 0.1) * total
        return torch.nn.functional.layer_norm(total, (K,), s, t, 0.1) * total

    model = model_of(nodes, inputs=("x", "y"), **values)
    feed = {"x": normal(2, 3, K), "y": normal(2, 3, K, seed=3)}
    agrees(model, ["X", "Y"], function, feed, normal(2, 3, K, seed=1), 1e-4)


def test_half_precision_gradients_do_not_underflow():
    """Gradients of 1e-9 are below the smallest float16, 6e-8; the backward is in float32."""
    w = weight(K, 5).astype(np.float16)
    nodes = [node("Identity", ["x"], ["a"]), node("MatMul", ["a", "w"], ["out"])]
    model = model_of(nodes, dtype=TensorProto.FLOAT16, w=w)
    x = normal(2, 3, K, dtype=np.float16)
    seed = normal(2, 3, 5, seed=1) * np.float32(1e-9)
    graph = differentiate(model, ["a"])
    (value,) = run(graph, {"x": x}, {"out": seed}).values()
    assert value.dtype == np.float32
    # Sums of 5 products, each rounded to 2^-24.
    np.testing.assert_allclose(value, seed @ np.float64(w.T), rtol=0, atol=1e-15)


def test_rows_masked_throughout():
    """A softmax of a row of -inf is NaN; the model replaces it, and so does the backward."""
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Add", ["a", "mask"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("IsNaN", ["p"], ["bad"]),
        node("Where", ["bad", "zero", "p"], ["out"]),
    ]
    mask = np.zeros((3, K), np.float32)
    mask[1] = -np.inf
    model = model_of(nodes, mask=mask, zero=np.float32(0))
    x, seed = normal(2, 3, K), normal(2, 3, K, seed=1)
    (value,) = run(differentiate(model, ["a"]), {"x": x}, {"out": seed}).values()
    (expected,) = autograd(lambda t: torch.softmax(t, -1), x, seed=seed)
    expected[:, 1] = 0
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_products_of_unknown_rank():
    nodes = [
        node("Identity", ["x"], ["a"]),
        node("Identity", ["y"], ["b"]),
        node("Reshape", ["b", "shape"], ["c"]),
        node("MatMul", ["a", "c"], ["out"]),
    ]
    model = model_of(nodes, inputs=("x", "y"))
    model.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, ["r"]))
    feed = {"x": normal(2, 3, K), "y": normal(2, 3, K, seed=1)}
    graph = differentiate(model, ["a", "b"])
    assert not graph.missing
    shape, seed = np.array([2, K, 3]), normal(2, 3, 3, seed=2)
    found = run(graph, {**feed, "shape": shape}, {"out": seed})
    expected = autograd(lambda x, y: x @ y.reshape(2, K, 3), *feed.values(), seed=seed)
    for value, oracle in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, oracle, atol=1e-5)


def test_weights_are_not_copied():
    """The backward adds no constant larger than a shape."""
    big = weight(K, 4096)
    nodes = [node("Identity", ["x"], ["a"]), node("MatMul", ["a", "w"], ["out"])]
    graph = differentiate(model_of(nodes, w=big), ["a"])
    sizes = {t.name: math.prod(t.dims) for t in graph.model.graph.initializer}
    assert sizes.pop("w") == big.size
    assert max(sizes.values()) <= 3
    assert not any(n.op_type == "Transpose" and "w" in n.input for n in graph.model.graph.node)


def test_half_precision_weights_are_not_unpacked_at_load(tmp_path):
    """ONNX Runtime folds a Cast of a constant: all weights would lie in memory in float32."""
    w = weight(K, 200).astype(np.float16)
    nodes = [node("Identity", ["x"], ["a"]), node("MatMul", ["a", "w"], ["out"])]
    onnx.save(model_of(nodes, dtype=TensorProto.FLOAT16, w=w), tmp_path / "model.onnx")
    source = load_model(tmp_path / "model.onnx")
    assert source.weights.ref("w")
    graph = differentiate(source.proto, ["a"])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(tmp_path))
    ort.InferenceSession(graph.model.SerializeToString(), options)
    optimized = onnx.load(options.optimized_model_filepath)
    sizes = {t.name: math.prod(t.dims) for t in optimized.graph.initializer if t.data_type == FLOAT}
    assert all(size < w.size for size in sizes.values())


def test_table_names_operators_that_exist():
    microsoft = {name for domain, name in RULES if domain == "com.microsoft"}
    standard = {name for domain, name in RULES if not domain} - {"SimplifiedLayerNormalization"}
    assert microsoft == {
        "FastGelu",
        "Gelu",
        "QuickGelu",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
    for name in standard | FLAT:
        onnx.defs.get_schema(name, MAX_OPSET, "")
    assert not standard & FLAT
