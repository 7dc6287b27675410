"""Models as this machine can run them: ONNX Runtime's CPU provider has no bfloat16."""

from __future__ import annotations

import dataclasses

from mmcompile.model.passes.upcast_half import upcast_half, uses_bfloat16
from mmcompile.model.source import SourceModel


def runnable(model: SourceModel, *, rounded: bool) -> SourceModel:
    """The model itself, or with its bfloat16 computed in float32.

    Args:
        model: an original or a compiled model.
        rounded: round to bfloat16 after every node, where what that costs is to be seen; in a
            comparison of two bfloat16 models it would be counted twice.
    """
    if not uses_bfloat16(model.proto):
        return model
    return dataclasses.replace(model, proto=upcast_half(model.proto, rounded=rounded))
