"""The original with its rest in half precision: which numbers round, and which do not."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from mmcompile.calib.magnitudes import largest_magnitudes
from mmcompile.model.passes.half_rules import Halving
from mmcompile.model.passes.half_types import BF16, FP16
from mmcompile.model.passes.rest_only import rest_only
from mmcompile.model.session import open_session
from tests.compiling import prepare
from tests.models import K, N, model_of, weight


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], output, **attributes)


def linear_between():
    """A factor, a linear with its bias, and a sum with a gathered row."""
    nodes = [
        node("Mul", ["x", "c"], "scaled"),
        node("MatMul", ["scaled", "W"], "product"),
        node("Add", ["product", "b"], "h"),
        node("Gather", ["table", "ids"], "row"),
        node("Add", ["h", "row"], "y"),
    ]
    values = {"c": np.float32(1.1), "W": weight(K, N), "b": weight(N, seed=1)}
    values["table"] = weight(40, N, seed=2)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [])
    return model_of(nodes, values, inputs=[ids]), values


@pytest.mark.parametrize("half", [FP16, BF16])
def test_linears_are_exact_and_all_else_rounds(half, tmp_path):
    model, values = linear_between()
    prepared = prepare(model, tmp_path)
    alone = rest_only(prepared.source, prepared.sites, Halving(half, TensorProto.FLOAT))
    x = weight(2, 3, K, seed=3)
    feed = {"x": x, "ids": np.array(7)}
    (y,) = open_session(alone.in_float32(rounded=True), tmp_path).run(None, feed)

    def after(value):
        dtype = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[half.name]
        return np.asarray(value, np.float32).astype(dtype).astype(np.float32)

    scaled = after(after(x) * after(values["c"]))
    exact = scaled.astype(np.float64) @ values["W"].astype(np.float64) + values["b"]
    h = after(exact)
    expected = after(h + after(values["table"][7]))
    # ONNX Runtime's float32 sums may round h to its neighbour; hardly ever, and by one step.
    near = np.abs(y - expected) <= 2 * 2.0 ** (-10 if half is FP16 else -7) * np.abs(h).max()
    assert near.all()
    assert (y == expected).mean() > 0.99
    (plain,) = open_session(alone.in_float32(rounded=False), tmp_path).run(None, feed)
    (original,) = open_session(prepared.source.proto, tmp_path).run(None, feed)
    np.testing.assert_allclose(plain, original, rtol=1e-5, atol=1e-5)
    assert np.abs(plain - y).max() > 0


def test_weights_stay_where_they_are(tmp_path):
    model, _ = linear_between()
    prepared = prepare(model, tmp_path)
    skeleton = rest_only(
        prepared.source, prepared.sites, Halving(FP16, TensorProto.FLOAT)
    ).in_float32(rounded=True)
    (matmul,) = (n for n in skeleton.graph.node if n.op_type == "MatMul")
    (gather,) = (n for n in skeleton.graph.node if n.op_type == "Gather")
    assert (matmul.input[1], gather.input[0]) == ("W", "table")
    before = {t.name: t for t in prepared.source.proto.graph.initializer}
    for tensor in skeleton.graph.initializer:
        if tensor.name in ("W", "table"):
            assert tensor == before[tensor.name]


def test_magnitudes_are_of_the_numbers_that_half_precision_will_hold(tmp_path):
    """A mask counts as it will be clipped, an infinity and an empty tensor not at all."""
    lowest = np.float32(np.finfo(np.float32).min)
    nodes = [
        node("MatMul", ["x", "W"], "scores"),
        node("Cast", ["mask"], "real", to=TensorProto.FLOAT),
        node("Mul", ["real", "lowest"], "bias"),
        node("Add", ["scores", "bias"], "masked"),
        node("Softmax", ["masked"], "soft", axis=-1),
        node("Mul", ["soft", "large"], "grown"),
        node("Add", ["grown", "extra"], "y"),
    ]
    values = {"W": weight(K, N), "lowest": lowest, "large": np.float32(1e6)}
    inputs = [
        helper.make_tensor_value_info("mask", TensorProto.INT64, [N]),
        helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["batch", "sequence", N]),
    ]
    prepared = prepare(model_of(nodes, values, inputs=inputs), tmp_path)
    alone = rest_only(prepared.source, prepared.sites, Halving(FP16, TensorProto.FLOAT))
    names = alone.halved.tensors
    assert {"scores", "bias", "masked", "soft", "grown", "x", "extra", "y"} <= names.keys()
    assert alone.halved.islands["constant"] == 1  # the product with 10⁶
    mask = np.zeros(N, np.int64)
    mask[::2] = 1
    feeds = [
        {"x": weight(1, 2, K), "mask": mask, "extra": np.full((1, 2, N), -np.inf, np.float32)},
        {
            "x": np.zeros((0, 2, K), np.float32),
            "mask": mask,
            "extra": np.zeros((0, 2, N), np.float32),
        },
    ]
    skeleton = alone.in_float32(rounded=False)
    found = largest_magnitudes(skeleton, tmp_path, list(names.values()), feeds)
    found = {name: found[version] for name, version in names.items()}
    assert found["bias"] == FP16.mask
    assert FP16.mask <= found["masked"] < FP16.mask + 100
    assert 0 < found["soft"] <= 1
    np.testing.assert_allclose(found["grown"], found["soft"] * 1e6, rtol=1e-6)
    assert found["extra"] == found["y"] == 0
    assert found["x"] == np.abs(weight(1, 2, K)).max()
