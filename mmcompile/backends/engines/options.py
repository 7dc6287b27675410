"""What a user asks of the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmcompile.errors import UsageError
from mmcompile.options import option

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class BuildOptions:
    """How the engine is built, where it can be.

    Attributes:
        engine: False writes the bundle only; True demands an engine; None builds one where
            TensorRT and the GPU are present.
        shapes: shapes of inputs; empty for defaults from data and model.
        optimization_level: TensorRT's, 0 to 5; None is its default.
        workspace: limit on scratch memory, such as `4G`; None is TensorRT's default.
        embed_plugin: put the plugin library into a version-compatible engine.
        triton: name of the model in a Triton repository to write; None writes none.
    """

    engine: bool | None = None
    shapes: tuple[str, ...] = option(
        (),
        "Shapes of an input, as in input_ids:[1x1,1x512,8x2048]; an input named again starts "
        "the next profile.",
        metavar="NAME:[MIN,OPT,MAX]",
    )
    optimization_level: int | None = option(
        None, "TensorRT's builder optimization level, 0 to 5.", metavar="N", span=(0, 5)
    )
    workspace: str | None = option(
        None, "Limit on TensorRT's scratch memory, e.g. 4G.", metavar="SIZE"
    )
    embed_plugin: bool = option(False, "Put the plugin into the engine, version-compatible.")
    triton: str | None = option(
        None, "Also write a Triton model repository for this name.", metavar="NAME"
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
