"""Expands nodes without a gradient rule into simpler ones that have rules.

Model-local functions are replaced by their bodies, and operators that the ONNX standard defines
as functions (Attention, RotaryEmbedding, Mish, …) by their definitions. Names of tensors outside
of the bodies stay.
"""

from __future__ import annotations

import onnx
import onnx.inliner

from mmcompile.calib.gradient.table import STANDARD_DOMAINS, is_flat, rule_of


def expand(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions expanded; the same object where there is nothing to expand."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opset = next(o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS)
    names = {node.op_type for node in model.graph.node if _is_definable(node, opset)}
    if not names:
        return model
    wanted = [(domain, name) for domain in STANDARD_DOMAINS for name in sorted(names)]
    try:
        typed = _with_types(model)
        return onnx.inliner.inline_selected_functions(typed, wanted, inline_schema_functions=True)
    except (RuntimeError, ValueError, TypeError):
        # Types that the definition needs are not known, or onnx is older than this ability. The
        # nodes stay, and what lies behind them is reported as missing.
        return model


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with types and shapes stated, since definitions may depend on an input's rank."""
    typed = onnx.shape_inference.infer_shapes(model)
    typed.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in typed.graph.initializer
    )
    return typed


def _is_definable(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node has no rule but a definition in the standard."""
    if node.domain not in STANDARD_DOMAINS or rule_of(node) or is_flat(node):
        return False
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    # The type stubs of onnx lack these properties.
    return any(getattr(schema, f"has_{kind}function") for kind in ("", "context_dependent_"))
