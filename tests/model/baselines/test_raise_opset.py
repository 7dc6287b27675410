"""Which models may be read with a newer opset as they are."""

import onnx
import pytest
from onnx import helper

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.passes.baselines.raise_opset import raise_opset


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
