"""Gradients over samples: rows, directions, padding, shapes, what is reported as broken."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.calib.execution import Execution
from mmcompile.calib.gradient import Draw, collect_gradients, differentiate
from mmcompile.calib.instrument import WatchedTensor
from mmcompile.data.dataset import CalibrationData, InputSpec
from mmcompile.model.source import load_model
from tests.models import weight

VOCABULARY, K, N = 40, 64, 32
node = helper.make_node
E, W, V = weight(VOCABULARY, K), weight(K, K, seed=1), weight(K, N, seed=2)


def token_model(output_shape=("batch", "sequence", N), head=()):
    """Embedding → W → Relu → V, per token; beside it a layer on the mean over the sequence."""
    nodes = [
        node("Gather", ["E", "input_ids"], ["e"]),
        node("MatMul", ["e", "W"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "V"], ["logits"]),
        node("ReduceMean", ["r", "axis"], ["pooled"], keepdims=0),
        node("Gemm", ["pooled", "V"], ["pooler"]),
        *head,
    ]
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(1, shape))
        for name, shape in (("logits", output_shape), ("pooler", ("batch", N)))
    ]
    values = {"E": E, "W": W, "V": V, "axis": np.array([1]), "flip": np.array([1, 0])}
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "tokens", ids, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


SPECS = tuple(
    InputSpec(name, np.dtype(np.int64), ("batch", "sequence"))
    for name in ("input_ids", "attention_mask")
)
ACTIVATIONS = (WatchedTensor("e", K), WatchedTensor("r", K), WatchedTensor("pooled", K))
WANTED = ("h", "logits", "pooler")


def sample(mask, seed=0):
    real = np.array([[int(mark) for mark in mask]])
    ids = np.random.default_rng([seed, real.size]).integers(1, VOCABULARY, real.shape)
    return {"input_ids": ids * real, "attention_mask": real}


def collected(
    samples, folder, model=None, wanted=WANTED, activations=ACTIVATIONS, *, seed=0, **draw
):
    path = folder / "model.onnx"
    onnx.save(model or token_model(), path)
    source = load_model(path)
    assert source.weights.ref("W")
    graph = differentiate(source.proto, wanted, [watched.name for watched in activations])
    data = CalibrationData("test data", True, len(samples), lambda: iter(samples))
    execution = Execution(source, source.proto, SPECS, seed)
    return list(collect_gradients(execution, graph, activations, data, Draw(**draw)))


def consistent(found):
    """The gradient at h follows from those at the outputs: row i of all is the same token.

    Returns the number of rows.
    """
    (pooled,) = {value.shape[1] for name, value in found.gradients.items() if name == "pooler"}
    assert pooled == 1
    rows = found.activations["r"]
    for direct, through, mean in zip(
        *(found.gradients[name] for name in ("logits", "h", "pooler")), strict=True
    ):
        back = direct @ V.T + (mean @ V.T) / consistent.tokens
        np.testing.assert_allclose(through, back * (rows > 0), rtol=0, atol=2e-5)
    np.testing.assert_allclose(np.maximum(found.activations["e"] @ W, 0), rows, atol=1e-4)
    return len(rows)


@pytest.mark.parametrize(("limit", "expected"), [(32, 9), (4, 4)])
def test_rows_belong_together(tmp_path, limit, expected):
    consistent.tokens = 9
    (found,) = collected([sample("111111111000")], tmp_path, rows=limit, directions=3)
    assert found.gradients["logits"].shape == (3, expected, N)
    assert found.gradients["pooler"].shape == (3, 1, N)
    assert found.activations["pooled"].shape == (1, K)
    assert consistent(found) == expected
    assert len({value.tobytes() for value in found.gradients["logits"]}) == 3
    assert found.not_finite == ()


def test_masked_tokens_take_no_part(tmp_path):
    """A hole in the mask cannot be cut: its row is left out, and its output weighs nothing."""
    (found,) = collected([sample("1110111")], tmp_path, directions=2)
    consistent.tokens = 7
    assert consistent(found) == 6
    ids = sample("1110111")["input_ids"][0]
    np.testing.assert_array_equal(found.activations["e"], E[ids[[0, 1, 2, 4, 5, 6]]])


def test_directions_are_standard_normal_and_zero_on_padding(tmp_path):
    """All rows of `flat` leave the runtime, because they are not one per token."""
    flat = [node("Concat", ["logits", "logits"], ["wide"], axis=1)]
    model = token_model(head=flat)
    model.graph.output[0].name = "wide"
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(1, None))
    (found,) = collected([sample("10" + "1" * 98)], tmp_path, model, ["wide"], directions=40)
    values = found.gradients["wide"]
    assert values.shape == (40, 200, N)
    # 256000 numbers: the mean is within 5/√256000 = 0.01, the variance within 5·√(2/256000).
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.014
    (found,) = collected([sample("1011")], tmp_path, wanted=["logits"], rows=4)
    assert found.gradients["logits"].shape == (1, 3, N)


def test_padding_weighs_nothing(tmp_path):
    """A layer that mixes tokens would carry a padding token's direction to the others."""
    mix = [
        node("Transpose", ["logits"], ["turned"], perm=[0, 2, 1]),
        node("CumSum", ["turned", "last"], ["summed"]),
        node("Transpose", ["summed"], ["out"], perm=[0, 2, 1]),
    ]
    model = token_model(head=mix)
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1), "last"))
    model.graph.output[0].name = "out"
    (found,) = collected(
        [sample("1101")], tmp_path, model, ["logits", "out"], (), rows=9, directions=2
    )
    # The gradient of a cumulative sum is the sum from the end; token 2 is masked.
    direct = found.gradients["out"]
    expected = np.cumsum(direct[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(found.gradients["logits"], expected, rtol=1e-5, atol=1e-5)


def test_same_data_same_rows(tmp_path):
    samples = [sample("11111111", seed) for seed in range(3)]
    options = {"rows": 3, "directions": 2}
    forward = collected(samples, tmp_path, **options)
    backward = collected(samples[::-1], tmp_path, **options)
    assert [found.number for found in forward] == [0, 1, 2]
    for one, other in zip(forward, backward[::-1], strict=True):
        for name in WANTED:
            np.testing.assert_array_equal(one.gradients[name], other.gradients[name])
    (other,) = collected(samples[:1], tmp_path, seed=1, **options)
    assert not np.array_equal(other.gradients["h"], forward[0].gradients["h"])


@pytest.mark.parametrize("shape", [None, ("batch", "other", N), ("batch", None, N)])
def test_output_shapes_that_only_a_run_tells(tmp_path, shape):
    model = token_model(shape)
    consistent.tokens = 5
    found = collected([sample("11111"), sample("11111", 1)], tmp_path, model)
    assert [consistent(rows) for rows in found] == [5, 5]


def test_transposed_activation(tmp_path):
    turn = [
        node("Reshape", ["r", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["t"], perm=[1, 0]),
    ]
    model = token_model(head=turn)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, K]), "flat"))
    watched = (WatchedTensor("t", K, transposed=True), WatchedTensor("r", K))
    (found,) = collected([sample("1011")], tmp_path, model, activations=watched)
    np.testing.assert_array_equal(found.activations["t.transposed"], found.activations["r"])


def test_gradients_that_are_not_finite_are_named(tmp_path):
    """√ of a Relu's zeros has an infinite slope there."""
    model = token_model(None, head=[node("Sqrt", ["r"], ["out"])])
    model.graph.output[0].name = "out"
    (found,) = collected([sample("1111")], tmp_path, model, ["r", "out", "pooler"])
    assert found.not_finite == ("r",)
    assert set(found.gradients) == {"out", "pooler"}


def test_nothing_to_do(tmp_path):
    assert collected([sample("11")], tmp_path, wanted=["absent"]) == []
    assert collected([{**sample("11"), "attention_mask": np.zeros((1, 2), int)}], tmp_path) == []
