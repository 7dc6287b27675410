"""Quantized operands of the linears that read one tensor: the nodes and constants of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmcompile.model.passes.baselines.functions import (
    FP4_QUANTIZE,
    MXFP8_DEQUANTIZE,
    MXFP8_QUANTIZE,
    TRT,
)
from mmcompile.model.passes.baselines.kinds import FP8, MXFP8, NVFP4, Kind
from mmcompile.model.passes.baselines.weights import (
    Bytes,
    SiteWeight,
    fp8_scale,
    nvfp4_global_scale,
)
from mmcompile.model.passes.pending import AnyArray, Pending, declare, small
from mmcompile.model.sites import LinearSite, SiteGroup
from mmcompile.model.source import SourceModel

PREFIX = "mmcompile.baseline."
"""What the names of added nodes and tensors begin with."""
ZERO_POINT = f"{PREFIX}zero_point"
"""The FP8 zero, which tells QuantizeLinear its type."""
_E4M3, _E2M1, _HALF = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1, TensorProto.FLOAT16


@dataclass
class Added:
    """Nodes to be put in front of a node, and new initializers."""

    nodes: dict[str, list[onnx.NodeProto]]
    initializers: list[onnx.TensorProto]


class Operands:
    """The quantized operands of one group's linears."""

    def __init__(
        self,
        group: SiteGroup,
        nodes: Mapping[str, onnx.NodeProto],
        source: SourceModel,
        pending: Pending,
        added: Added,
        per_channel: bool,
    ) -> None:
        self._group = group
        self._nodes = [nodes[site.node] for site in group.sites]
        self._source = source
        self._pending = pending
        self._added = added
        self._per_channel = per_channel
        places = {name: place for place, name in enumerate(nodes)}
        first = min((site.node for site in group.sites), key=places.__getitem__)
        self._before = added.nodes.setdefault(first, [])

    def quantize(self, kind: Kind, seen: float) -> None:
        """Adds the operands and lets the linears read them."""
        x = self._nodes[0].input[0]
        if kind.block and self._group.transpose_input:
            x = self._node("Transpose", [x], "x.transposed", perm=[1, 0])
        inputs = {
            FP8.name: self._fp8_input,
            MXFP8.name: self._mxfp8_input,
            NVFP4.name: self._nvfp4_input,
        }
        weights = {
            FP8.name: self._fp8_weight,
            MXFP8.name: self._mxfp8_weight,
            NVFP4.name: self._nvfp4_weight,
        }
        quantized = inputs[kind.name](x, seen)
        for site, node in zip(self._group.sites, self._nodes, strict=True):
            weight = SiteWeight(site, self._source)
            _ = weight.amax  # refuses NaN before anything is written
            node.input[0] = quantized
            if kind.block:
                _set_attribute(node, "transA", 0)
            node.input[1] = weights[kind.name](site, node, weight)

    def _fp8_input(self, x: str, seen: float) -> str:
        scale = self._small("x.scale", fp8_scale(seen))
        codes = self._node("QuantizeLinear", [x, scale, ZERO_POINT], "x.fp8")
        return self._node("DequantizeLinear", [codes, scale, ZERO_POINT], "x.dequantized")

    def _fp8_weight(self, site: LinearSite, node: onnx.NodeProto, weight: SiteWeight) -> str:
        channels_first = not _attribute(node, "transB")
        zero = ZERO_POINT
        if self._per_channel:
            half = fp8_scale(weight.channel_amax())
            zeros = np.zeros(site.out_channels, np.uint8).tobytes()
            zero = self._name(site, "zero_points")
            shape = [site.out_channels]
            self._added.initializers.append(helper.make_tensor(zero, _E4M3, shape, zeros, raw=True))
        else:
            half = fp8_scale(weight.amax)
        scale = self._small("weight.scale", half, site)
        count, channels = site.out_channels, site.in_channels
        shape_ = (channels, count) if channels_first else (count, channels)
        codes = self._declare(site, "weight", _E4M3, shape_)
        full = half.astype(np.float32)
        self._pending.made[codes] = lambda: [weight.fp8(full, channels_first=channels_first)]
        axis: dict[str, Any] = {"axis": int(channels_first)} if self._per_channel else {}
        inputs = [codes, scale, zero]
        return self._node("DequantizeLinear", inputs, "weight.dequantized", site, **axis)

    def _mxfp8_input(self, x: str, _seen_amax: float) -> str:
        sizes: dict[str, Any] = {"axis": -1, "block_size": 32}
        codes, scales = self._nodes_of(
            MXFP8_QUANTIZE, [x], ("x.mxfp8", "x.scales"), output_dtype=_E4M3, **sizes
        )
        names = ("x.dequantized",)
        inputs = [codes, scales]
        (y,) = self._nodes_of(MXFP8_DEQUANTIZE, inputs, names, output_dtype=_HALF, **sizes)
        return y

    def _mxfp8_weight(self, site: LinearSite, node: onnx.NodeProto, weight: SiteWeight) -> str:
        count, channels = site.out_channels, site.in_channels
        codes = self._declare(site, "weight", _E4M3, (count, channels))
        scales = self._declare(site, "scales", TensorProto.UINT8, (count, channels // 32))
        self._pair(codes, scales, weight.mxfp8)
        (rows,) = self._nodes_of(
            MXFP8_DEQUANTIZE,
            [codes, scales],
            ("weight.dequantized",),
            site,
            output_dtype=_HALF,
            axis=-1,
            block_size=32,
        )
        return self._as_operand(site, node, rows)

    def _nvfp4_input(self, x: str, seen: float) -> str:
        tensor_scale = self._small("x.tensor_scale", np.asarray(nvfp4_global_scale(seen)))
        names = ("x.nvfp4", "x.scales")
        sizes: dict[str, Any] = {"axis": -1, "block_size": 16, "scale_type": _E4M3}
        codes, scales = self._nodes_of(FP4_QUANTIZE, [x, tensor_scale], names, **sizes)
        return self._twice_dequantized("x", codes, scales, tensor_scale, None)

    def _nvfp4_weight(self, site: LinearSite, node: onnx.NodeProto, weight: SiteWeight) -> str:
        count, channels = site.out_channels, site.in_channels
        scale = nvfp4_global_scale(weight.amax)
        tensor_scale = self._small("weight.tensor_scale", np.asarray(scale), site)
        codes = self._declare(site, "weight", _E2M1, (count, channels))
        scales = self._declare(site, "scales", _E4M3, (count, channels // 16))
        self._pair(codes, scales, lambda: weight.nvfp4(scale))
        rows = self._twice_dequantized("weight", codes, scales, tensor_scale, site)
        return self._as_operand(site, node, rows)

    def _twice_dequantized(
        self, what: str, codes: str, scales: str, tensor_scale: str, site: LinearSite | None
    ) -> str:
        """Double dequantization: the scales first, then the codes, in float32; then float16."""
        inner = self._node("DequantizeLinear", [scales, tensor_scale], f"{what}.block_scales", site)
        wide = self._node(
            "DequantizeLinear", [codes, inner], f"{what}.float", site, axis=-1, block_size=16
        )
        return self._node("Cast", [wide], f"{what}.dequantized", site, to=_HALF)

    def _as_operand(self, site: LinearSite, node: onnx.NodeProto, rows: str) -> str:
        """[N, K] as the second operand: by transB where there is one, else transposed."""
        if node.op_type == "Gemm":
            _set_attribute(node, "transB", 1)
            return rows
        return self._node("Transpose", [rows], "weight.transposed", site, perm=[1, 0])

    def _pair(self, first: str, second: str, make: Callable[[], tuple[Bytes, Bytes]]) -> None:
        """Two constants of one computation; the second is asked for after the first."""
        kept: list[AnyArray] = []

        def codes() -> list[AnyArray]:
            one, other = make()
            kept.append(other)
            return [one]

        self._pending.made[first] = codes
        self._pending.made[second] = lambda: [kept.pop()]

    def _name(self, site: LinearSite | None, what: str) -> str:
        return f"{PREFIX}{what}.{site.node if site else self._group.name}"

    def _declare(self, site: LinearSite, what: str, elem_type: int, shape: tuple[int, ...]) -> str:
        name = self._name(site, what)
        self._added.initializers.append(declare(name, elem_type, shape))
        return name

    def _small(self, what: str, value: AnyArray, site: LinearSite | None = None) -> str:
        name = self._name(site, what)
        self._added.initializers.append(small(name, value))
        return name

    def _node(
        self,
        op_type: str,
        inputs: list[str],
        what: str,
        site: LinearSite | None = None,
        **attributes: Any,
    ) -> str:
        name = self._name(site, what)
        self._before.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def _nodes_of(
        self,
        op_type: str,
        inputs: list[str],
        outputs: tuple[str, ...],
        site: LinearSite | None = None,
        **attributes: Any,
    ) -> list[str]:
        """A node of TensorRT's domain."""
        names = [self._name(site, what) for what in outputs]
        node = helper.make_node(op_type, inputs, names, names[0], domain=TRT, **attributes)
        self._before.append(node)
        return names


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    """Sets an attribute that a Gemm has; a MatMul has none."""
    if node.op_type != "Gemm":
        return
    kept = [a for a in node.attribute if a.name != name]
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend([*copies, helper.make_attribute(name, value)])
