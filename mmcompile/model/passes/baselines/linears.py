"""Pass: give linears quantized operands, as TensorRT's explicit quantization reads them.

Input: a skeleton that computes in float16 (`half`). A linear's MatMul or Gemm stays where it is,
with its bias; its two operands come from DequantizeLinear instead:

1. fp8: x → QuantizeLinear → DequantizeLinear with one scale; the weight in FLOAT8E4M3FN, as
   [K, N] for a MatMul, with one scale (or one per output channel) → DequantizeLinear.
2. mxfp8: x → TRT_MXFP8DynamicQuantize → TRT_MXFP8DequantizeLinear; the weight as [N, K] in
   FLOAT8E4M3FN with UINT8 scales [N, K / 32] → TRT_MXFP8DequantizeLinear → Transpose.
3. nvfp4: x → TRT_FP4DynamicQuantize → DequantizeLinear of the scales → DequantizeLinear → Cast; the
   weight as [N, K] in FLOAT4E2M1 with FLOAT8E4M3FN scales [N, K / 16] and one float32 scale → the
   same two DequantizeLinear → Cast → Transpose.
4. Linears that read one tensor share its quantization. A Gemm's transA becomes a Transpose where
   blocks have to lie along the last axis.
5. Blocks need K to be a multiple of their length, and TensorRT takes tensors of two or three
   dimensions there; other linears are left in float16, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from mmcompile.errors import UsageError
from mmcompile.model.passes.baselines.kinds import FP8, Kind
from mmcompile.model.passes.baselines.operands import ZERO_POINT, Added, Operands
from mmcompile.model.passes.pending import Pending
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.plan import LeftAlone

MAX_BLOCK_RANK = 3


@dataclass(frozen=True)
class Quantized:
    """What became of the linears."""

    nodes: tuple[str, ...]
    left_alone: tuple[LeftAlone, ...]


@dataclass(frozen=True)
class HalfModel:
    """A skeleton that computes in float16, and what is known of it.

    Attributes:
        model: the skeleton, which is changed in place.
        source: where the weights lie.
        pending: receives new weights.
        ranks: number of dimensions of the groups' inputs, where known.
        half_types: the original's element types that are float16 now.
    """

    model: onnx.ModelProto
    source: SourceModel
    pending: Pending
    ranks: Mapping[str, int]
    half_types: frozenset[int]


def quantize_linears(
    half: HalfModel,
    groups: Sequence[SiteGroup],
    amax: Mapping[str, float],
    kind: Kind,
    *,
    per_channel: bool = False,
) -> Quantized:
    """Quantizes the linears of a skeleton, in place.

    Args:
        half: the skeleton.
        groups: the linears.
        amax: largest |x| that calibration saw, by tensor name.
        kind: fp8, mxfp8 or nvfp4.
        per_channel: one FP8 weight scale per output channel instead of one per weight.

    Raises:
        UsageError: calibration has not seen a group's input.
        UnsupportedModelError: a weight holds NaN or infinity.
    """
    model = half.model
    nodes = {node.name: node for node in model.graph.node}
    added = Added({}, [])
    done: list[str] = []
    left: list[LeftAlone] = []
    for group in groups:
        reason = _obstacle(group, kind, half.ranks.get(group.input), half.half_types)
        if reason:
            left.extend(LeftAlone(site.node, reason[0], reason[1]) for site in group.sites)
            continue
        operands = Operands(group, nodes, half.source, half.pending, added, per_channel)
        operands.quantize(kind, _seen(group, amax))
        done.extend(site.node for site in group.sites)
    if kind is FP8 and done:
        zero = helper.make_tensor(ZERO_POINT, TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
        added.initializers.append(zero)
    _insert(model.graph, added)
    return Quantized(tuple(done), tuple(left))


def _obstacle(
    group: SiteGroup, kind: Kind, rank: int | None, half_types: frozenset[int]
) -> tuple[str, str] | None:
    """Reason code and reason why a group cannot be quantized; None where it can."""
    if any(site.elem_type not in half_types for site in group.sites):
        return "element-type", "it is of another type than most of the model, and stays in it"
    if kind.block and group.in_channels % kind.block:
        reason = (
            f"its K = {group.in_channels} is no multiple of {kind.name}'s block of {kind.block}, "
            "which TensorRT asks for; it stays in float16"
        )
        return "block-length", reason
    if kind.block and rank is not None and rank > MAX_BLOCK_RANK:
        reason = (
            f"its input has {rank} dimensions; TensorRT quantizes blocks of two or three only; "
            "it stays in float16"
        )
        return "input-rank", reason
    return None


def _seen(group: SiteGroup, amax: Mapping[str, float]) -> float:
    try:
        return float(amax[group.input])
    except KeyError:
        raise UsageError(
            "stats-mismatch",
            f"tensor {group.input}",
            "the calibration statistics do not have it",
            "calibrate again with this model",
        ) from None


def _insert(graph: onnx.GraphProto, added: Added) -> None:
    def ordered() -> Iterator[onnx.NodeProto]:
        for node in graph.node:
            yield from added.nodes.get(node.name, ())
            yield node

    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered()]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(added.initializers)
