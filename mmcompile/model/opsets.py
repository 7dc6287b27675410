"""The standard operator domain, and its version in a model."""

from __future__ import annotations

import onnx

STANDARD = ("", "ai.onnx")
"""Both names of the domain."""


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard domain that a model imports."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in STANDARD)
