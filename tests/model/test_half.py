"""Half precision: what stays in float32, what becomes of masks, bodies and large numbers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.passes.infer_types import tensor_types
from tests.model.baselines.making import make, run_bfloat16
from tests.models import K, N, model_of, subgraph, weight
from tests.running import run


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], output, **attributes)


def producers(path):
    return {name: n for n in onnx.load(path).graph.node for name in n.output}


def in_float32(path):
    """Names of the tensors of a written model that are float32."""
    return {name for name, kind in tensor_types(onnx.load(path)).items() if kind == 1}


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
    assert full <= in_float32(result.path)
    assert "Cast" not in {made[name].op_type for name in full}
    assert {"normed", "y.float16"} <= made.keys() - in_float32(result.path)
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
    assert {"positions", "angles", "cosine"} <= in_float32(result.path)
    assert producers(result.path)["cosine.float16"].op_type == "Cast"
    assert "h" not in in_float32(result.path)
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
    nodes = [node("MatMul", ["x", "W"], "h"), node("Max", ["h", "c"], "y")]
    result = make("fp16", model_of(nodes, {"W": values, "c": np.float32(-1e9)}), tmp_path)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer}
    half = tensors["W"]
    assert half.dtype == np.float16
    assert half[0, :3].tolist() == [65504, -65504, np.inf]
    assert any("weight W: 2 values beyond" in note for note in result.notes)
    assert any("constant c: 1 values beyond" in note for note in result.notes)


STREAM_SCRIPT = """
import resource, sys
from pathlib import Path
import onnx
from mmcompile.model.passes.half import to_half
from mmcompile.model.passes.half_rules import Halving
from mmcompile.model.passes.half_types import FP16
from mmcompile.model.passes.pending import Pending, write_weights
from mmcompile.model.source import load_model
from mmcompile.model.writer import ModelWriter

folder = Path(sys.argv[1])
source = load_model(folder / "model.onnx")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model, pending = onnx.ModelProto(), Pending()
model.CopyFrom(source.proto)
to_half(model, source, Halving(FP16, 1), pending)
with ModelWriter(folder / "out") as writer:
    write_weights(writer, model, source, pending)
    writer.finish(model)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_a_table(tmp_path):
    """A table of 419 MB becomes 210 MB; four million numbers of it are in memory at a time."""
    rows = 100 * 2**20 // N
    sizes = ["batch", "sequence"]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, sizes)
    rest = {"table": np.zeros((1, N), np.float32)}
    nodes = [node("Gather", ["table", "ids"], "row"), node("Add", ["row", "x"], "y")]
    model = model_of(nodes, rest, x=[*sizes, N], y=[*sizes, N], inputs=[ids])
    (table,) = model.graph.initializer
    table.ClearField("raw_data")
    table.dims[0] = rows
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="table.data")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "table.data").open("wb") as file:
        file.truncate(4 * rows * N)
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", STREAM_SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == 2 * rows * N
    assert float(done.stdout) < 150  # MiB


@pytest.mark.parametrize("op_type", ["Mul", "Div"])
def test_products_with_constants_beyond_the_range_stay(op_type, tmp_path):
    nodes = [node("MatMul", ["x", "W"], "h"), node(op_type, ["h", "c"], "y")]
    made = make("fp16", model_of(nodes, {"W": weight(K, N), "c": np.float32(1e9)}), tmp_path)
    x = np.full((1, 2, K), 1e-3, np.float32)
    (y,), (exact,) = run(made.path, {"x": x}), run(tmp_path / "original.onnx", {"x": x})
    np.testing.assert_allclose(y, exact, atol=2.0**-8 * np.abs(exact).max())


@pytest.mark.parametrize("between", ["", "Expand", "counted"])
def test_divisors_are_kept_from_zero(between, tmp_path):
    """x / max(|x|, 10⁻⁹): float16 has no such number, and 0 / 0 is none either."""
    shape = np.array([1, 2, N])
    nodes = [
        node("MatMul", ["x", "W"], "h"),
        node("Abs", ["h"], "size"),
        node("Max", ["size", "least"], "divisor"),
        node("Expand", ["divisor", "shape"], "wide"),
        node("Div", ["h", "wide" if between == "Expand" else "divisor"], "y"),
    ]
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, [N])
    if between == "counted":
        nodes[1] = node("Cast", ["mask"], "size", to=TensorProto.FLOAT)
    values = {"W": weight(K, N), "least": np.float32(1e-9), "shape": shape}
    if between != "Expand":
        del nodes[3], values["shape"]
    inputs = [mask] if between == "counted" else []
    made = make("fp16", model_of(nodes, values, inputs=inputs), tmp_path)
    feed = {"x": np.zeros((1, 2, K), np.float32)} | ({"mask": np.zeros(N, int)} if inputs else {})
    (y,) = run(made.path, feed)
    np.testing.assert_array_equal(y, 0)
    assert producers(made.path)["y"].op_type == "Div"  # and no Cast of it


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
    assert caught.value.code == "half-bodies"


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
    assert caught.value.code == "half-types"
    assert "mystery" in caught.value.where
