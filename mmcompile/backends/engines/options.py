"""What a user asks of the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmcompile.errors import UsageError
from mmcompile.options import option

AUTO = "auto"
"""In the place of a back end's name: the first that can build for the target."""
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class BuildOptions:
    """How the engine is built, where it can be.

    Attributes:
        backend: name of the back end that builds it; `AUTO` takes the first that can, if any.
        required: an engine has to come of it, whichever back end builds it.
        shapes: shapes of inputs; empty for defaults from data and model.
        optimization_level: the builder's, 0 to 5; None is its default.
        workspace: limit on scratch memory, such as `4G`; None is the builder's default.
        embed_plugin: put the plugin library into the engine.
        weight_streaming: build an engine whose weights need not all be on the GPU.
        triton: name of the model in a Triton repository to write; None writes none.
        allow_fallback: accept an engine whose layers have lost the precision that the model asks
            for.
    """

    backend: str = AUTO
    required: bool = False
    shapes: tuple[str, ...] = option(
        (),
        "Shapes of an input, as in input_ids:[1x1,1x512,8x2048]; an input named again starts "
        "the next profile.",
        metavar="NAME:[MIN,OPT,MAX]",
    )
    optimization_level: int | None = option(
        None, "The builder's optimization level, 0 to 5.", metavar="N", span=(0, 5)
    )
    workspace: str | None = option(
        None, "Limit on the builder's scratch memory, e.g. 4G.", metavar="SIZE"
    )
    embed_plugin: bool = option(
        False, "Put the plugin into the engine; by TensorRT it is version-compatible then."
    )
    weight_streaming: bool = option(
        False, "Build an engine whose weights need not all be on the GPU."
    )
    triton: str | None = option(
        None, "Also write a Triton model repository for this name.", metavar="NAME"
    )
    allow_fallback: bool = option(
        False,
        "Accept an engine whose layers have lost the precision that the model asks for; else that "
        "is an error.",
    )

    @property
    def workspace_bytes(self) -> int | None:
        """The limit on scratch memory in bytes.

        Raises:
            UsageError: `workspace` is no size.
        """
        return None if self.workspace is None else parse_bytes(self.workspace)


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
