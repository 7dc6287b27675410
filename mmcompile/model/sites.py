"""The linear layers of a graph: `LinearSite`, `SiteGroup` and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from mmcompile.model.source import SourceModel


@dataclass(frozen=True)
class ConstantSource:
    """A constant operand: an initializer, or a small graph of standard operators over some.

    Attributes:
        name: name of the tensor, for messages.
        leaves: the initializers that the value is computed from.
        expression: a model with `leaves` as inputs and the value as only output, or None where
            the value is the one leaf itself.
        elem_type: `onnx.TensorProto` type of the value.
        shape: shape of the value.
    """

    name: str
    leaves: tuple[str, ...]
    expression: onnx.ModelProto | None
    elem_type: int
    shape: tuple[int, ...]

    def read(self, source: SourceModel) -> npt.NDArray[np.generic]:
        """The value; a view of the memory-mapped file where it is a plain initializer."""
        if self.expression is None:
            return source.weights.read(self.leaves[0])
        from onnx.reference import ReferenceEvaluator

        feed = {leaf: source.weights.read(leaf) for leaf in self.leaves}
        (value,) = ReferenceEvaluator(self.expression).run(None, feed)
        return np.asarray(value)


@dataclass(frozen=True)
class LinearSite:
    """One quantizable linear layer: y = alpha · x · W + beta · bias.

    Attributes:
        node: name of its MatMul or Gemm node.
        bias_node: name of the Add node that applies its bias, or None.
        input: name of the activation tensor; its last axis has K channels.
        output: name of the tensor that the layer (bias included) produces.
        weight: the two-dimensional weight.
        channels_first: True where the weight is [K, N], False where it is [N, K].
        in_channels: K.
        out_channels: N.
        bias: constant that broadcasts to [N], or None.
        alpha: factor of the product.
        beta: factor of the bias.
        transpose_input: the input is [K, M] (Gemm's transA).
        elem_type: `onnx.TensorProto` type of input and output.
    """

    node: str
    bias_node: str | None
    input: str
    output: str
    weight: ConstantSource
    channels_first: bool
    in_channels: int
    out_channels: int
    bias: ConstantSource | None
    alpha: float
    beta: float
    transpose_input: bool
    elem_type: int

    def read_weight(self, source: SourceModel) -> npt.NDArray[np.generic]:
        """The weight, [K, N] or [N, K] as `channels_first` says, `alpha` applied."""
        weight = self.weight.read(source)
        if self.alpha != 1.0:
            weight = weight.astype(np.float32) * np.float32(self.alpha)
        return weight

    def read_bias(self, source: SourceModel) -> npt.NDArray[np.float32]:
        """The bias as float32[N], `beta` applied; zeros where the layer has none."""
        if self.bias is None:
            return np.zeros(self.out_channels, np.float32)
        bias = self.bias.read(source).astype(np.float32) * np.float32(self.beta)
        return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), self.out_channels))


@dataclass(frozen=True)
class SiteGroup:
    """Sites that read the same tensor: they share channel order, split and one quantization."""

    name: str
    sites: tuple[LinearSite, ...]

    @property
    def input(self) -> str:
        """Name of the activation tensor."""
        return self.sites[0].input

    @property
    def transpose_input(self) -> bool:
        """Whether the activation tensor is [K, M]."""
        return self.sites[0].transpose_input

    @property
    def in_channels(self) -> int:
        """K of every site."""
        return self.sites[0].in_channels

    @property
    def out_channels(self) -> int:
        """N of all sites together."""
        return sum(site.out_channels for site in self.sites)
