"""Runs compiled models in ONNX Runtime without the memory that decoding their weights would take.

ONNX Runtime folds the decoding of packed weights into constants when it loads a model, and keeps
every intermediate value until it is done: about 50 bytes per weight. Up to `DEPLOYABLE_WEIGHTS`
a model is run as it is, as users would. Larger ones get their weights unpacked by the native
module into a temporary file, which is mapped and not loaded, and widened layer by layer while the
model runs; all the rest of the function is what the model carries.

The file holds bfloat16, which every weight is exactly: elements have up to 4 significant bits and
NVFP4's scales 4 more, and powers of two have bfloat16's range (what lies below 2⁻¹³³ is lost).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto

from mmcompile import ops
from mmcompile.model.opsets import opset_of
from mmcompile.model.session import Purpose, open_session
from mmcompile.model.source import SourceModel
from mmcompile.output import disk_errors
from mmcompile.packed import dequantize_weight
from mmcompile.plan import GroupPlan
from mmcompile.verification.compiled import compiled_nodes, read_nodes

_PAGE = 4096
DEPLOYABLE_WEIGHTS = 24_000_000
"""Packed weights that a model may have to be run as it is: about 1.2 GB while it loads."""


def runs_unpacked(compiled: SourceModel) -> bool:
    """Whether `open_compiled` unpacks the model's weights itself."""
    dims = {tensor.name: tensor.dims for tensor in compiled.proto.graph.initializer}
    weights = 0
    for node in compiled_nodes(compiled):
        rows, channels = dims[node.node.input[4]][0], dims[node.node.input[1]][0]
        weights += rows * channels
    return weights > DEPLOYABLE_WEIGHTS


def open_compiled(compiled: SourceModel, skeleton: onnx.ModelProto) -> ort.InferenceSession:
    """A session on a compiled model.

    Args:
        compiled: the model on disk.
        skeleton: its graph, or a version of it with other outputs.

    Raises:
        EnvironmentProblem: the model's folder takes no temporary file.
    """
    if not runs_unpacked(compiled):
        deployed = skeleton is compiled.proto and compiled_nodes(compiled)
        purpose = Purpose.DEPLOYMENT if deployed else Purpose.FEW_RUNS
        return open_session(skeleton, compiled.folder, purpose)
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    declared = {tensor.name: tensor for tensor in model.graph.initializer}
    plans: list[GroupPlan] = []
    # The runtime maps the file when the session opens and needs no name for it afterwards. It has
    # to lie beside the model's own data, the only folder that external data may come from.
    with (
        disk_errors(compiled.folder),
        tempfile.NamedTemporaryFile(prefix=".mmcompile-unpacked-", dir=compiled.folder) as file,
    ):
        for node, plan, packed in read_nodes(compiled):
            weight = _bfloat16_bits(dequantize_weight(packed, plan))
            place = (Path(file.name).name, file.tell(), weight.nbytes)
            _declare_bfloat16(declared[node.node.input[2]], weight.shape, place)
            file.write(weight.data)
            file.seek(-file.tell() % _PAGE, os.SEEK_CUR)
            plans.append(plan)
        file.truncate()
        file.flush()
        _replace_function(model, plans)
        return open_session(model, compiled.folder, fold_constants=False)


def _bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of values[N, K] that bfloat16 holds exactly."""
    halves = values.view(np.dtype("<u2"))
    return np.ascontiguousarray(halves[:, 1::2])


def _declare_bfloat16(
    tensor: onnx.TensorProto, shape: tuple[int, ...], place: tuple[str, int, int]
) -> None:
    """Makes an initializer bfloat16[shape] at (file, offset, length)."""
    name = tensor.name
    tensor.Clear()
    tensor.name = name
    tensor.data_type = TensorProto.BFLOAT16
    tensor.dims.extend(shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in zip(("location", "offset", "length"), place, strict=True):
        tensor.external_data.add(key=key, value=str(value))


def _replace_function(model: onnx.ModelProto, plans: list[GroupPlan]) -> None:
    others = [function for function in model.functions if function.name != ops.OP_TYPE]
    half_blocks = ops.needs_half_blocks(plans)
    own = ops.function_proto(opset_of(model), half_blocks=half_blocks, unpacked=True)
    del model.functions[:]
    model.functions.extend([*others, own])
