"""The float16 pass: what stays in float32, what becomes of masks, bodies and large numbers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.passes.baselines.raise_opset import raise_opset
from tests.model.baselines.making import make, run_bfloat16
from tests.models import K, N, model_of, subgraph, weight
from tests.running import run


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], output, **attributes)


def producers(path):
    return {name: n for n in onnx.load(path).graph.node for name in n.output}


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "fp16").mkdir()
    return tmp_path


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_root_mean_square_norm_keeps_its_squares_in_float32(square, tmp_path):
    nodes = [
        node(square, ["x", "two" if square == "Pow" else "x"], "square"),
        node("ReduceMean", ["square", "axis"], "mean"),
        node("Add", ["mean", "epsilon"], "sum"),
        node("Sqrt", ["sum"], "root"),
        node("Reciprocal", ["root"], "factor"),
        node("Mul", ["x", "factor"], "normed"),
        node("MatMul", ["normed", "W"], "y"),
    ]
    values = {"W": weight(K, N), "epsilon": np.float32(1e-12), "axis": np.array([-1])}
    values |= {"two": np.float32(2)} if square == "Pow" else {}
    model = model_of(nodes, values)
    result = make("fp16", model, tmp_path)
    made = producers(result.path)
    full = {"square", "mean", "sum", "root", "factor"}
    assert full <= made.keys()  # in float32 under their own names
    assert "Cast" not in {made[name].op_type for name in full}
    assert {"normed.float16", "y.float16"} <= made.keys()
    x = np.full((1, 2, K), 3000, np.float32)  # its square is beyond float16
    (y,), (exact,) = run(result.path, {"x": x}), run(tmp_path / "original.onnx", {"x": x})
    np.testing.assert_allclose(y, exact, atol=2.0**-9 * np.abs(exact).max())


def test_positions_stay_in_float32(tmp_path):
    nodes = [
        node("Cast", ["ids"], "positions", to=TensorProto.FLOAT),
        node("Unsqueeze", ["positions", "last"], "column"),
        node("Mul", ["column", "frequencies"], "angles"),
        node("Cos", ["angles"], "cosine"),
        node("MatMul", ["x", "W"], "h"),
        node("Mul", ["h", "cosine"], "y"),
    ]
    frequencies = np.geomspace(1, 0.01, N).astype(np.float32)
    values = {"W": weight(K, N), "frequencies": frequencies, "last": np.array([-1])}
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    result = make("fp16", model_of(nodes, values, inputs=[ids]), tmp_path)
    made = producers(result.path)
    assert {"positions", "angles", "cosine", "cosine.float16"} <= made.keys()
    feed = {"x": np.ones((1, 3, K), np.float32), "ids": np.array([[5, 4097, 131071]])}
    (y,), (exact,) = run(result.path, feed), run(tmp_path / "original.onnx", feed)
    np.testing.assert_allclose(y, exact, atol=2.0**-9 * np.abs(exact).max())


def masked(where):
    """Scores plus a mask of −3.4e38, or Where(mask, scores, −3.4e38), then Softmax."""
    lowest = np.float32(np.finfo(np.float32).min)
    nodes = [node("MatMul", ["x", "W"], "scores")]
    if where:
        nodes += [
            node("Cast", ["mask"], "seen", to=TensorProto.BOOL),
            node("Where", ["seen", "scores", "lowest"], "masked"),
        ]
    else:
        nodes += [
            node("Cast", ["mask"], "real", to=TensorProto.FLOAT),
            node("Sub", ["one", "real"], "hidden"),
            node("Mul", ["hidden", "lowest"], "bias"),
            node("Add", ["scores", "bias"], "masked"),
        ]
    nodes.append(node("Softmax", ["masked"], "y", axis=-1))
    values = {"W": weight(K, N), "lowest": lowest, "one": np.float32(1)}
    values = {k: v for k, v in values.items() if k != "one" or not where}
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, [N])
    return model_of(nodes, values, inputs=[mask])


@pytest.mark.parametrize("where", [False, True])
def test_masks_do_not_become_infinite(where, tmp_path):
    result = make("fp16", masked(where), tmp_path)
    feed = {"x": np.ones((1, 1, K), np.float32), "mask": np.zeros(N, np.int64)}
    (y,) = run(result.path, feed)  # every score is masked: with −∞ this would be NaN
    np.testing.assert_allclose(y.sum(), 1, rtol=1e-2)
    if not where:  # ONNX Runtime adds in float32 here, so that the numbers do not show it
        made = producers(result.path)
        (clipped,) = made["bias.float16"].input
        assert made[clipped].op_type == "Clip"
        assert "clip.real.float16" not in {n.name for n in made.values()}
    feed["mask"][:5] = 1
    (y,), (exact,) = run(result.path, feed), run(tmp_path / "original.onnx", feed)
    np.testing.assert_allclose(y, exact, atol=2e-3)
    assert not y[..., 5:].any()


def test_large_weights_are_clipped_and_reported(tmp_path):
    values = weight(K, N)
    values[0, :3] = 1e6, -7e4, np.inf
    nodes = [node("MatMul", ["x", "W"], "h"), node("Mul", ["h", "c"], "y")]
    result = make("fp16", model_of(nodes, {"W": values, "c": np.float32(1e9)}), tmp_path)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer}
    half = tensors["W.float16"]
    assert half.dtype == np.float16
    assert half[0, :3].tolist() == [65504, -65504, np.inf]
    assert any("weight W: 2 values beyond" in note for note in result.notes)
    assert any("constant c: 1 values beyond" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_bodies_stay_in_float32(kind, tmp_path):
    model = subgraph(kind)
    result = make("fp16", model, tmp_path)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, K)).astype(np.float32)}
    if kind == "If":
        feed["condition"] = np.array(False)
    (y,), (exact,) = run(result.path, feed), run(tmp_path / "original.onnx", feed)
    np.testing.assert_allclose(y, exact, atol=2.0**-8 * np.abs(exact).max())


def test_bfloat16_norm(tmp_path):
    nodes = [
        node("Cast", ["x"], "wide", to=TensorProto.FLOAT),
        node("Mul", ["wide", "wide"], "square"),
        node("ReduceMean", ["square", "axis"], "mean"),
        node("Sqrt", ["mean"], "root"),
        node("Div", ["wide", "root"], "normed"),
        node("Cast", ["normed"], "narrow", to=TensorProto.BFLOAT16),
        node("MatMul", ["narrow", "W"], "h"),
        node("ReduceSum", ["h", "axis"], "total"),
        node("Add", ["h", "total"], "y"),
    ]
    import ml_dtypes

    values = {"W": weight(K, N).astype(ml_dtypes.bfloat16), "axis": np.array([-1])}
    result = make("fp16", model_of(nodes, values, dtype=TensorProto.BFLOAT16), tmp_path)
    x = (np.random.default_rng(0).standard_normal((2, 3, K)) * 300).astype(ml_dtypes.bfloat16)
    (y,) = run_bfloat16(result.path, {"x": x})
    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True))
    exact = normed @ values["W"].astype(np.float64)
    exact = exact + exact.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(y, exact, atol=2.0**-6 * np.abs(exact).max())


def test_bfloat16_with_bodies_is_refused(tmp_path):
    import ml_dtypes

    shape = ["batch", "sequence", N]
    branches = {
        name: helper.make_graph(
            [node(op, ["h"], name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape)],
        )
        for name, op in (("then_branch", "Neg"), ("else_branch", "Abs"))
    }
    nodes = [node("MatMul", ["x", "W"], "h"), node("If", ["go"], "y", **branches)]
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    values = {"W": weight(K, N).astype(ml_dtypes.bfloat16)}
    model = model_of(nodes, values, dtype=TensorProto.BFLOAT16, inputs=[go])
    with pytest.raises(UnsupportedModelError) as caught:
        make("fp16", model, tmp_path)
    assert caught.value.code == "baseline-bodies"


def test_unknown_operator_is_refused(tmp_path):
    nodes = [
        node("MatMul", ["x", "W"], "h"),
        helper.make_node("Mystery", ["h"], ["m"], "mystery", domain="somewhere"),
        node("Abs", ["m"], "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, ["batch", K])],
        [helper.make_tensor_value_info("y", 1, ["batch", N])],
        [numpy_helper.from_array(weight(K, N), "W")],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("somewhere", 1)]
    with pytest.raises(UnsupportedModelError) as caught:
        make("fp16", helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path)
    assert caught.value.code == "baseline-types"
    assert "mystery" in caught.value.where


@pytest.mark.parametrize(
    ("nodes", "old", "new", "reason"),
    [
        ([("ReduceMean", ["x"], {"axes": [-1]})], 17, 21, "axes"),
        ([("GroupNormalization", ["x", "s", "b"], {"num_groups": 2})], 20, 21, "per channel"),
        (
            [("Softmax", ["x"], {}), ("Transpose", ["x"], {}), ("Cast", ["x"], {"to": 1})],
            15,
            23,
            "",
        ),
        ([("Gelu", ["x"], {}), ("LayerNormalization", ["x", "s"], {})], 20, 25, ""),
    ],
)
def test_opset(nodes, old, new, reason):
    graph = helper.make_graph(
        [helper.make_node(op, i, [f"{op}.y"], op, **a) for op, i, a in nodes],
        "graph",
        [helper.make_tensor_value_info(name, 1, [2, 4]) for name in "xsb"],
        [helper.make_tensor_value_info(f"{nodes[-1][0]}.y", 1, ["a", "b"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", old)])
    if not reason:
        assert raise_opset(model, new)
        assert model.opset_import[0].version == new
        assert not raise_opset(model, new)
        onnx.checker.check_model(model)
        return
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        raise_opset(model, new)
    assert caught.value.code == "baseline-opset"
    assert model.opset_import[0].version == old
