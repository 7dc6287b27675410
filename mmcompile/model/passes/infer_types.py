"""Types and shapes of the tensors of a skeleton, by onnx's inference; weights are not read."""

from __future__ import annotations

import onnx

from mmcompile.errors import UnsupportedModelError


def infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inferred types and shapes; model-local functions are looked into.

    Raises:
        UnsupportedModelError: the types contradict each other.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedModelError(
            "type-inference",
            "model",
            f"its types cannot be inferred: {str(error).splitlines()[0][:200]}",
            "export the model again, and check it with onnx.checker",
        ) from error


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor of the main graph that inference knows.

    What is no tensor (a sequence, an optional) has the type UNDEFINED.

    Raises:
        UnsupportedModelError: the types contradict each other.
    """
    graph = infer_types(model).graph
    types = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    types.update((s.values.name, int(s.values.data_type)) for s in graph.sparse_initializer)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.HasField("type"):
            types[value.name] = value.type.tensor_type.elem_type
    return types
