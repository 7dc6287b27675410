"""Which linears of a model are taken."""

from __future__ import annotations

from dataclasses import dataclass

from mmcompile.options import option


@dataclass(frozen=True)
class Selection:
    """Which linears to take.

    Attributes:
        include: shell patterns on node and weight names; empty takes all.
        exclude: shell patterns on node and weight names; wins over `include`.
        heads: also take layers that produce a graph output.
    """

    include: tuple[str, ...] = option(
        (),
        "Take only linears whose node or weight name matches; may be repeated.",
        metavar="PATTERN",
    )
    exclude: tuple[str, ...] = option(
        (),
        "Leave linears alone whose node or weight name matches; may be repeated.",
        metavar="PATTERN",
    )
    heads: bool = option(False, "Also take layers that give an output.", flag="--quantize-heads")
