"""What a user asks of the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmcompile.errors import UsageError

AUTO = "auto"
"""In the place of a back end's name: the first that can build for the target."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class BuildOptions:
    """How the engine is built, where it can be.

    Attributes:
        backend: name of the back end that builds it; `AUTO` takes the first that can, if any.
        required: an engine has to come of it, whichever back end builds it.
        shapes: values of `--shapes`; empty for defaults from data and model.
        optimization_level: TensorRT's, 0 to 5; None is its default.
        workspace_bytes: limit on scratch memory; None is TensorRT's default.
        embed_plugin: put the plugin library into the engine.
        weight_streaming: build an engine whose weights need not all be on the GPU.
        triton: name of the model in a Triton repository to write; None writes none.
        allow_fallback: accept an engine whose layers have lost the precision that the model asks
            for.
    """

    backend: str = AUTO
    required: bool = False
    shapes: tuple[str, ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    embed_plugin: bool = False
    weight_streaming: bool = False
    triton: str | None = None
    allow_fallback: bool = False


def parse_bytes(text: str) -> int:
    """A size such as `4G`, `512M` or `1048576` (units of 1024, as in polygraphy and trtexec).

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        reason = f"'{text}' is no size"
        raise UsageError("size-syntax", "--workspace", reason, "write bytes, or 512M, or 4G")
    return int(float(found[1]) * _UNITS[found[2].upper()])
