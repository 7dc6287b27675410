"""Translation of a PyTorch module into an ONNX graph whose nodes carry module paths."""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING, Any

from mmcompile.errors import UnsupportedModelError
from mmcompile.exporting.source import ModelSource, one_line, quiet, require

if TYPE_CHECKING:
    import torch

MAX_IR_VERSION = 12
"""Newest ONNX IR that all runtimes in reach are known to read."""


def translate(source: ModelSource, opset: int) -> torch.onnx.ONNXProgram:
    """Runs PyTorch's exporter, names nodes after modules and drops the exporter's metadata.

    Raises:
        UnsupportedModelError: PyTorch cannot export the model.
        EnvironmentProblem: PyTorch or onnxscript is missing.
    """
    require("torch")
    require("onnxscript")
    import torch

    with quiet():
        try:
            program = torch.onnx.export(
                source.module,
                kwargs=source.inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=source.dynamic_shapes,
                output_names=source.outputs,
            )
        except Exception as error:
            reason = f"PyTorch's exporter fails: {one_line(_root(error))}"
            remedy = "change the model so that torch.export accepts it, or export it by other means"
            raise UnsupportedModelError("export-failed", source.where, reason, remedy) from error
    assert program is not None, "the exporter returns a program unless it is TorchScript's"
    _name_after_modules(program.model, source.scope)
    program.model.ir_version = min(program.model.ir_version, MAX_IR_VERSION)
    return program


def _name_after_modules(model: Any, scope: str) -> None:
    """Names nodes `module.path/OpType`, cuts `scope.` from all names, and drops metadata.

    The exporter's metadata holds stack traces with paths of the machine that it ran on.

    Args:
        model: the exporter's `onnx_ir.Model`, changed in place.
        scope: first part of module paths that is not the user's, or "".
    """
    prefix = f"{scope}." if scope else ""
    used: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        path = _module_path(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        path = f"{path}.".removeprefix(prefix).rstrip(".")
        name = f"{path}/{node.op_type}" if path else node.op_type
        node.name = f"{name}_{used[name]}" if used[name] else name
        used[name] += 1
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in list(model.graph.initializers.values()):
        value.name = value.name.removeprefix(prefix)
    for value in (*model.graph.initializers.values(), *model.graph.inputs):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _module_path(scopes: str) -> str:
    """The path of the module that a node came from.

    Args:
        scopes: the exporter's record of scopes: a list as text, from the outermost module (the
            empty path) to the traced operation.
    """
    path = ast.literal_eval(scopes)[-2:-1]
    # Nodes that read the sizes of inputs stand under a placeholder.
    return "" if not path or path[0].startswith("_empty_nn_module_stack") else str(path[0])


def _root(error: BaseException) -> BaseException:
    """The first cause of an error: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
