"""Pass: raise the version of the standard domain, where no operator of the model minds.

1. A version that is high enough stays.
2. Otherwise every operator of the model must mean the same in the new version. onnx's own schemas
   are the table: the new schema must accept what the old one did (inputs, outputs, attributes and
   their defaults, types), and the operator must not be in `CHANGED`, whose meaning moved under an
   unchanged signature.
3. Nodes stay byte for byte; the number in the opset import is all that changes.

Nothing is rewritten, as `onnx.version_converter` would do: it wants weights in memory.
"""

from __future__ import annotations

import onnx
from onnx import defs

from mmcompile.errors import UnsupportedModelError
from mmcompile.model.opsets import STANDARD, opset_of
from mmcompile.model.walk import all_graphs

CHANGED = {
    "AveragePool": (19, "the window that ceil_mode adds counts differently"),
    "GridSample": (20, "its modes have other names"),
    "GroupNormalization": (21, "scale and bias are per channel, no longer per group"),
    "Resize": (18, "antialiasing and aspect-ratio policies came in"),
}
"""Operators whose meaning changed though their signature may not show it: since when, and how
(onnx, docs/Changelog.md)."""
_ANY = (defs.OpSchema.AttrType.GRAPH, defs.OpSchema.AttrType.GRAPHS)


def raise_opset(model: onnx.ModelProto, version: int) -> bool:
    """Raises the opset of a model to a version, in place.

    Returns:
        Whether the version was changed.

    Raises:
        UnsupportedModelError: an operator of the model is another one in the new version.
    """
    old = opset_of(model)
    if old >= version:
        return False
    for graph in all_graphs(model):
        for node in graph.node:
            reason = _obstacle(node, old, version)
            if reason:
                raise UnsupportedModelError(
                    "baseline-opset",
                    f"node {node.name or node.output[0]} ({node.op_type})",
                    f"this baseline needs opset {version}, the model has {old}, and {reason}",
                    f"export the model with opset {version} or newer",
                )
    for entry in model.opset_import:
        if entry.domain in STANDARD:
            entry.version = version
    return True


def _obstacle(node: onnx.NodeProto, old: int, new: int) -> str | None:
    """Why a node cannot be read with another version; None where it can."""
    if node.domain not in STANDARD:
        return None
    since, what = CHANGED.get(node.op_type, (0, ""))
    if old < since <= new:
        return f"in opset {since} {what}"
    try:
        before, after = (defs.get_schema(node.op_type, version, "") for version in (old, new))
    except defs.SchemaError:
        return "onnx knows no such operator in both"
    if before.since_version == after.since_version:
        return None
    if after.deprecated:
        return "the operator is gone from it"
    return _narrower(node, before, after)


def _narrower(node: onnx.NodeProto, before: defs.OpSchema, after: defs.OpSchema) -> str | None:
    """What the later schema no longer accepts of what the node has; None where it takes all."""
    used = {attribute.name for attribute in node.attribute}
    for name, attribute in before.attributes.items():
        later = after.attributes.get(name)
        if later is None:
            if name in used or attribute.required:
                return f"its attribute '{name}' is gone from opset {after.since_version}"
            continue
        same = (
            later.default_value.SerializeToString() == attribute.default_value.SerializeToString()
        )
        if later.type != attribute.type or (later.type not in _ANY and not same):
            return f"its attribute '{name}' changed in opset {after.since_version}"
    for name, attribute in after.attributes.items():
        if attribute.required and name not in used:
            return f"its attribute '{name}' is required from opset {after.since_version}"
    pairs = (
        ("input", before.inputs, after.inputs, len(node.input)),
        ("output", before.outputs, after.outputs, len(node.output)),
    )
    for what, olds, news, count in pairs:
        if len(news) < len(olds) or count < (after.min_input if what == "input" else 0):
            return f"its {what}s changed in opset {after.since_version}"
        for one, other in zip(olds, news, strict=False):
            if not set(one.types) <= set(other.types):
                return f"its {what} '{one.name}' takes fewer types in opset {after.since_version}"
    return None
