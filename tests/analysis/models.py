"""A small model of tokens: embedding → linear → Relu → linear → y."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.models import weight

VOCABULARY, WIDTH, HIDDEN, OUT = 64, 96, 64, 48


def token_model():
    """Reads `input_ids` and `attention_mask` int64[batch, sequence], gives y[…, 48]."""
    values = {
        "E": weight(WIDTH, VOCABULARY, seed=3).T.copy(),
        "W1": weight(WIDTH, HIDDEN),
        "W2": weight(HIDDEN, OUT, seed=2),
        "last": np.array([-1]),
    }
    nodes = [
        helper.make_node("Gather", ["E", "input_ids"], ["x"], name="embed"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="widen"),
        helper.make_node("Mul", ["x", "wide"], ["masked"], name="apply"),
        helper.make_node("MatMul", ["masked", "W1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "W2"], ["z"], name="second"),
        helper.make_node("Relu", ["z"], ["y"], name="final"),
    ]
    sizes = ("batch", "sequence")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, sizes)
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (*sizes, OUT))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def token_samples(count=10, *, low=5, length=12, seed=0):
    """Feeds of `token_model`: ids from `low` on."""
    generator = np.random.default_rng(seed)
    return [
        {
            "input_ids": generator.integers(low, VOCABULARY, (1, length)),
            "attention_mask": np.ones((1, length), np.int64),
        }
        for _ in range(count)
    ]
