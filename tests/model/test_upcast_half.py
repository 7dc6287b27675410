import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.model.passes.upcast_half import upcast_half, uses_bfloat16
from mmcompile.model.session import open_session
from mmcompile.model.source import load_model
from tests import models
from tests.models import K, N, weight
from tests.running import run

BF16, F32 = TensorProto.BFLOAT16, TensorProto.FLOAT
node = helper.make_node


def brain(value):
    return value.astype(ml_dtypes.bfloat16)


W, B = brain(weight(K, N)), brain(weight(N, seed=1))


def info(name, shape=None, elem_type=BF16):
    return helper.make_tensor_value_info(name, elem_type, shape)


def rich_model():
    """bfloat16 everywhere it can be: constants, casts, a body with a weight, a local function."""
    bodies = {
        f"{name}_branch": helper.make_graph(
            [node("Add", ["h", f"s{name}"], [f"o{name}"], name=name)],
            name,
            [],
            [info(f"o{name}")],
            [numpy_helper.from_array(brain(np.full(N, value, np.float32)), f"s{name}")],
            value_info=[info(f"o{name}")],
        )
        for name, value in (("then", 3.0), ("else", -5.0))
    }
    function = helper.make_function(
        "local",
        "Scale",
        ["a"],
        ["d"],
        [
            node("Constant", [], ["two"], value=numpy_helper.from_array(brain(np.float32([2])))),
            node("Cast", ["a"], ["b"], to=BF16),
            node("Mul", ["b", "two"], ["d"]),
        ],
        [helper.make_opsetid("", 20)],
    )
    half = numpy_helper.from_array(brain(np.float32([0.5])), "half")
    nodes = [
        node("Cast", ["x"], ["c"], name="in", to=BF16),
        node("MatMul", ["c", "W"], ["m"], name="linear"),
        node("Add", ["m", "b"], ["h"], name="bias"),
        node("If", ["on"], ["i"], name="if", **bodies),
        node("Constant", [], ["half"], name="constant", value=half),
        node("Mul", ["i", "half"], ["j"], name="halve"),
        node("Scale", ["j"], ["k"], name="call", domain="local"),
        node("EyeLike", ["square"], ["eye"], name="eye", dtype=BF16),
        node("MatMul", ["k", "eye"], ["l"], name="turn"),
        node("LayerNormalization", ["l", "g"], ["n"], name="norm", stash_type=1),
        node("Cast", ["n"], ["y"], name="out", to=F32),
    ]
    graph = helper.make_graph(
        nodes,
        "rich",
        [info("x", ["m", K], F32), info("on", [], TensorProto.BOOL)],
        [info("y", ["m", N], F32), info("h", ["m", N])],
        [
            numpy_helper.from_array(W, "W"),
            numpy_helper.from_array(B, "b"),
            numpy_helper.from_array(brain(np.ones(N, np.float32)), "g"),
            numpy_helper.from_array(np.ones((N, N), np.float32), "square"),
        ],
        value_info=[info("m", ["m", N])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)


def test_upcast_model_computes_in_float():
    upcast = upcast_half(rich_model())
    onnx.checker.check_model(upcast, full_check=True)
    x = weight(5, K, seed=3)
    for on, shift in ((True, 3.0), (False, -5.0)):
        y, h = run(upcast, {"x": x, "on": np.array(on)})
        exact = x.astype(np.float64) @ W.astype(np.float64) + B.astype(np.float64)
        # An fp32 sum of 96 products and a bias: 98 · 2⁻²⁴ of magnitudes below 16.
        np.testing.assert_allclose(h, exact, atol=1e-4)
        assert np.abs(h - brain(h).astype(np.float32)).max() > 1e-3  # nothing rounds to bfloat16
        z = (exact + shift) * 0.5 * 2
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, z, atol=1e-3)


def test_nothing_of_bfloat16_is_left_but_the_weights():
    upcast = upcast_half(rich_model())
    weights = {tensor.name: tensor for tensor in upcast.graph.initializer}
    assert weights.keys() == {"W.bfloat16", "b.bfloat16", "g.bfloat16", "square"}
    np.testing.assert_array_equal(numpy_helper.to_array(weights["W.bfloat16"]), W)
    bare = upcast_half(rich_model())
    for graph in (bare.graph, *(a.g for n in bare.graph.node for a in n.attribute)):
        del graph.initializer[:]
    text = onnx.printer.to_text(bare)
    assert "bfloat16[" not in text
    assert str(BF16) not in {
        str(a.i) for n in bare.graph.node for a in n.attribute if a.name in ("to", "dtype")
    }
    assert [value.type.tensor_type.elem_type for value in upcast.graph.output] == [F32, F32]
    assert [value.name for value in upcast.graph.value_info] == ["m"]


def test_original_stays_as_it_was():
    model = rich_model()
    before = model.SerializeToString(deterministic=True)
    upcast_half(model)
    assert model.SerializeToString(deterministic=True) == before


def test_nodes_and_tensors_keep_their_names():
    model = models.typed("bf16")
    upcast = upcast_half(model)
    assert [n.name for n in upcast.graph.node] == ["upcast.W", "upcast.b", "linear", "bias"]
    assert [list(n.input) for n in upcast.graph.node[2:]] == [["x", "W"], ["h", "b"]]
    assert upcast.graph.input[0].type.tensor_type.elem_type == F32
    assert [d.dim_param for d in upcast.graph.input[0].type.tensor_type.shape.dim][:2] == [
        "batch",
        "sequence",
    ]


def test_weights_on_disk_are_not_read(tmp_path):
    onnx.save(models.typed("bf16"), tmp_path / "model.onnx")
    source = load_model(tmp_path / "model.onnx")
    upcast = upcast_half(source.proto)
    (stored,) = (t for t in upcast.graph.initializer if t.name == "W.bfloat16")
    assert stored.data_location == TensorProto.EXTERNAL
    assert not stored.raw_data
    x = weight(1, 3, K, seed=3)
    (y,) = open_session(upcast, source.folder).run(None, {"x": x})
    exact = x @ W.astype(np.float64) + B.astype(np.float64)
    np.testing.assert_allclose(y, exact, atol=1e-4)


def test_initializer_that_is_an_input_too_becomes_a_constant():
    model = models.typed("bf16")
    model.graph.input.append(info("W", [K, N]))
    upcast = upcast_half(model)
    onnx.checker.check_model(upcast, full_check=True)
    assert [value.name for value in upcast.graph.input] == ["x"]


@pytest.mark.parametrize("name", ["output_dtype", "stash_type", "dtype", "to", "softmax_precision"])
def test_every_attribute_that_holds_a_type_is_changed(name):
    model = models.matmul()
    model.graph.node[0].attribute.append(helper.make_attribute(name, BF16))
    assert uses_bfloat16(model)
    upcast = upcast_half(model)
    assert upcast.graph.node[0].attribute[0].i == F32
    assert not uses_bfloat16(upcast)


def test_other_numbers_of_that_value_stay():
    model = models.matmul()
    model.graph.node[0].attribute.append(helper.make_attribute("axis", int(BF16)))
    assert not uses_bfloat16(model)
    assert upcast_half(model).graph.node[0].attribute[0].i == BF16


def with_bfloat16(where):
    model = models.matmul_add()
    if where == "initializer":
        model.graph.initializer.append(numpy_helper.from_array(W, "V"))
        model.graph.node.append(node("Transpose", ["V"], ["z"]))
    elif where == "input":
        model.graph.input.append(info("z", ["n"]))
    elif where == "Cast":
        model.graph.node.append(node("Cast", ["h"], ["z"], to=BF16))
    elif where == "body":
        model = models.subgraph()
        body = model.graph.node[1].attribute[0].g
        body.node.append(node("Cast", ["then_y"], ["z"], to=BF16))
    elif where == "initializer of a body":
        model = models.subgraph()
        body = model.graph.node[1].attribute[1].g
        body.initializer.append(numpy_helper.from_array(B, "z"))
        body.node.append(node("Neg", ["z"], ["minus_z"]))
    return model


def test_weights_that_are_only_stored_in_bfloat16_do_not_count():
    model = models.matmul()
    model.graph.initializer.append(numpy_helper.from_array(W, "V"))
    model.graph.node.append(node("Cast", ["V"], ["wide"], to=F32))
    assert not uses_bfloat16(model)


@pytest.mark.parametrize("where", ["initializer", "input", "Cast", "body", "initializer of a body"])
def test_bfloat16_is_noticed_wherever_it_is(where):
    assert uses_bfloat16(with_bfloat16(where))
    assert uses_bfloat16(models.typed("bf16"))


@pytest.mark.parametrize("variant", ["matmul_add", "fp16", "if", "cast_weight"])
def test_other_models_are_not_taken_for_bfloat16(variant):
    assert not uses_bfloat16(models.LINEAR_MODELS[variant]())


@pytest.mark.parametrize("brief", ["FLOAT16", "BFLOAT16"])
def test_every_node_rounds_where_that_is_asked_for(brief):
    elem_type = TensorProto.DataType.Value(brief)
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    nodes = [
        node("Cast", ["x"], ["a"], to=elem_type),
        node("Transpose", ["a"], ["b"], perm=[1, 0]),
        node("Mul", ["b", "c"], ["d"]),
        node("Add", ["d", "d"], ["e"]),
        node("Cast", ["e"], ["y"], to=F32),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [info("x", [3, 5], F32)],
        [info("y", [5, 3], F32)],
        [numpy_helper.from_array(np.float32([[1.2345]]).astype(dtype), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = weight(3, 5)
    c = np.float32(1.2345).astype(dtype).astype(np.float32)

    def after(value):
        return value.astype(dtype).astype(np.float32)

    plain = x.T * c * 2
    product = after(after(x.T) * c)
    (y,) = run(upcast_half(model, elem_type, rounded=True), {"x": x})
    np.testing.assert_array_equal(y, after(product + product))
    (y,) = run(upcast_half(model, elem_type), {"x": x})
    np.testing.assert_array_equal(y, plain)
    exact = frozenset(("a", "d"))
    (y,) = run(upcast_half(model, elem_type, rounded=True, exact=exact), {"x": x})
    np.testing.assert_array_equal(y, after(plain))
    assert np.abs(after(plain) - plain).max() > 0


def test_exact_weights_are_read_as_they_are():
    nodes = [
        node("Cast", ["W"], ["narrow"], to=BF16),
        node("Cast", ["x"], ["a"], to=BF16),
        node("MatMul", ["a", "narrow"], ["m"]),
        node("Cast", ["m"], ["y"], to=F32),
    ]
    values = [numpy_helper.from_array(weight(K, N), "W")]
    graph = helper.make_graph(
        nodes, "read", [info("x", ["m", K], F32)], [info("y", ["m", N], F32)], values
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    names = [n.name for n in upcast_half(model, rounded=True).graph.node]
    assert "round.narrow" in names
    read = upcast_half(model, rounded=True, exact=frozenset(("narrow", "m")))
    assert [list(n.input) for n in read.graph.node if n.op_type == "MatMul"] == [["a", "W"]]
    x = brain(weight(2, K, seed=1)).astype(np.float32)
    np.testing.assert_allclose(run(read, {"x": x})[0], x @ weight(K, N), atol=1e-4)
