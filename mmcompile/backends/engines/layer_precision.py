"""What an engine computes its products with, and what it should: the types that say so."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

UNKNOWN = "unknown"
"""Where a reader cannot tell; never a guess."""
PLUGIN = "plugin"
"""Precision of a plugin layer whose formats the engine does not tell."""
Kind = Literal["gemm", "convolution", "attention", "plugin", "generated", "absent"]
_BLOCK_SCALED = {("FP4", "FP8"): "NVFP4", ("FP4", "E8M0"): "MXFP4", ("FP8", "E8M0"): "MXFP8"}
"""Type of the elements and of the block scales, and what the pair is called."""


class LayerPrecision(msgspec.Struct, frozen=True):
    """The precision of a product: of a MatMul, a Gemm, a convolution, or a plugin's node.

    Attributes:
        name: the engine's name of it.
        nodes: the ONNX nodes that it computes, its own first, then those folded into it.
        kind: `gemm`, `convolution`, `plugin`; `attention` is two products and a softmax in one
            kernel; `generated` is a kernel that TensorRT wrote for several nodes, which may
            multiply without tensor cores; `absent` a node that no layer names.
        x: type of the first operand as the product reads it, e.g. `FP8`.
        weight: type of the second.
        output: type of the result.
        accumulation: type of the sums; plans do not tell it, names of kernels do.
        precision: of the product: `NVFP4`, `MXFP8`, `FP8`, `INT8`, `FP16`, `BF16`, `FP32` or the
            like where both operands have it; `A × B` where they differ; of a plugin's layer the
            formats of its segments, `plugin` where they are not told.
        x_from: narrower type that the first operand is dequantized from right before, or empty.
        weight_from: the same of the second.
    """

    name: str
    nodes: tuple[str, ...]
    kind: Kind
    x: str = UNKNOWN
    weight: str = UNKNOWN
    output: str = UNKNOWN
    accumulation: str = UNKNOWN
    precision: str = UNKNOWN
    x_from: str = ""
    weight_from: str = ""

    @property
    def description(self) -> str:
        """The precision in words, e.g. `FP16, dequantized from FP8`."""
        if self.x_from == self.weight_from != "":
            return f"{self.precision}, dequantized from {self.x_from}"
        sides = ((self.x_from, "x"), (self.weight_from, "weight"))
        said = (f"{what} dequantized from {narrow}" for narrow, what in sides if narrow)
        return ", ".join((self.precision, *said))


class Realized(msgspec.Struct, frozen=True):
    """The precision of every layer of an engine that multiplies, as far as it can be told.

    Attributes:
        source: where it was read: `engine inspector`, `plan text` (undocumented), both, or
            `nothing`.
        note: what a reader has to know of the source.
        layers: each once, in the engine's order; what several optimization profiles compute
            alike is one.
    """

    source: str
    note: str
    layers: tuple[LayerPrecision, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of layers by description, the most frequent first; plugin layers together."""
        found = Counter(
            PLUGIN if product.kind == "plugin" else product.description for product in self.layers
        )
        return dict(found.most_common())


class Expected(msgspec.Struct, frozen=True):
    """A product that has to have a precision.

    Attributes:
        node: the ONNX node.
        precision: as `LayerPrecision.precision` has it.
        plugin: whether it is a plugin's layer; the precision is then that of its segments.
    """

    node: str
    precision: str
    plugin: bool = False


class Lost(msgspec.Struct, frozen=True):
    """A product that has not the precision it has to have.

    Attributes:
        node: the ONNX node.
        expected: its precision by the graph.
        realized: that of the engine, in words.
    """

    node: str
    expected: str
    realized: str


class PrecisionCheck(msgspec.Struct, frozen=True):
    """What an engine runs, beside what its graph asks for.

    Attributes:
        realized: what it runs.
        asked: number of layers of which the graph asks for a precision.
        lost: those that have another.
        unverified: those of which it cannot be told.
    """

    realized: Realized
    asked: int = 0
    lost: tuple[Lost, ...] = ()
    unverified: tuple[str, ...] = ()


def product_precision(x: str, weight: str, scales: str = "") -> str:
    """What a product is called.

    Args:
        x: type of the first operand.
        weight: type of the second.
        scales: type of their block scales; empty where they have none.
    """
    if UNKNOWN in (x, weight, scales):
        return UNKNOWN
    if x != weight:
        return f"{x} × {weight}"
    return _BLOCK_SCALED.get((x, scales), UNKNOWN) if scales else x
