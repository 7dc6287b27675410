"""Adds nodes to a model's skeleton that compute calibration statistics inside the runtime.

For every watched tensor only O(K) numbers and a few token rows leave the runtime. Padding tokens
do not count: `TOKEN_MASK` says which of the sample's tokens are real, and rows of masked tokens
are removed before anything is measured. A tensor is taken to have one row per token where its
number of rows is the mask's; a tensor with another number of rows (a pooled vector, say) counts
in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.model.sites import SiteGroup

TOKEN_MASK = "mmcompile.token_mask"  # noqa: S105 (no password)
ROW_KEYS = "mmcompile.row_keys"
OUTPUTS = ("abs_sum", "abs_max", "square_sum", "tokens", "exceed", "rows", "row_keys")


@dataclass(frozen=True)
class WatchedTensor:
    """A tensor to measure: its name, K, and whether it is stored [K, rows] (Gemm's transA)."""

    name: str
    channels: int
    transposed: bool = False

    @property
    def key(self) -> str:
        """What its statistics are filed under; a tensor may be read both ways."""
        return f"{self.name}.transposed" if self.transposed else self.name


def watched_tensor(group: SiteGroup) -> WatchedTensor:
    """The tensor that a group's statistics are taken from."""
    return WatchedTensor(group.input, group.in_channels, group.transpose_input)


def output_name(key: str, statistic: str) -> str:
    """Name of the graph output that carries a statistic."""
    return f"mmcompile.{statistic}.{key}"


def instrument(
    skeleton: onnx.ModelProto,
    watched: Sequence[WatchedTensor],
    ratios: Sequence[float],
    rows_per_sample: int,
    statistics: Sequence[str] = OUTPUTS,
) -> onnx.ModelProto:
    """A copy of the model whose only outputs are statistics of the watched tensors.

    The copy has two more inputs: `TOKEN_MASK` bool[tokens of the sample] and `ROW_KEYS`
    float[keys], random numbers that choose the sampled rows. `statistics` are some of `OUTPUTS`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    graph = model.graph
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    builder = _Builder(graph, opset, ratios)
    builder.shared(rows_per_sample)
    for tensor in watched:
        builder.watch(tensor)
    graph.input.append(helper.make_tensor_value_info(TOKEN_MASK, TensorProto.BOOL, ["tokens"]))
    graph.input.append(helper.make_tensor_value_info(ROW_KEYS, TensorProto.FLOAT, ["keys"]))
    del graph.output[:]
    types = dict.fromkeys(OUTPUTS, TensorProto.FLOAT) | {
        "tokens": TensorProto.INT64,
        "exceed": TensorProto.INT64,
    }
    graph.output.extend(
        onnx.ValueInfoProto(
            name=output_name(tensor.key, statistic),
            type=helper.make_tensor_type_proto(types[statistic], None),
        )
        for tensor in watched
        for statistic in statistics
    )
    prune(graph)
    return model


def prune(graph: onnx.GraphProto) -> None:
    """Removes the nodes that no output needs, such as a language model's head."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_read_tensors(node))
            kept.append(node)
    kept.reverse()
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _read_tensors(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from _read_tensors(inner)


class _Builder:
    """Appends nodes to a graph under names of our own."""

    def __init__(self, graph: onnx.GraphProto, opset: int, ratios: Sequence[float]) -> None:
        self._graph = graph
        self._ratios = ratios
        self._axes_as_input = opset >= 18
        self._scope = "mmcompile"

    def shared(self, rows_per_sample: int) -> None:
        """Constants and values that all watched tensors use."""
        for name, value in {
            "zero": np.array(0, np.int64),
            "one": np.array(1, np.int64),
            "axis_rows": np.array([0], np.int64),
            "axis_channels": np.array([1], np.int64),
            "row_limit": np.array([rows_per_sample], np.int64),
            "no_counts": np.array([], np.int64),
        }.items():
            tensor = numpy_helper.from_array(value, f"mmcompile.{name}")
            self._graph.initializer.append(tensor)
        self._node("Size", [TOKEN_MASK], "mask_size")
        self._node("Size", [ROW_KEYS], "keys_size")

    def watch(self, tensor: WatchedTensor) -> None:
        """Nodes that compute the statistics of one tensor."""
        self._scope = f"mmcompile.watch.{tensor.key}"
        flat = self._float_rows(tensor)
        rows = self._without_padding(flat)
        magnitude = self._node("Abs", [rows], "magnitude")
        count = self._node("Shape", [rows], "count", end=1)
        self._out(tensor, "tokens", self._node("Identity", [count], "tokens"))
        self._out(tensor, "abs_sum", self._reduce("ReduceSum", magnitude, "axis_rows"))
        self._out(tensor, "abs_max", self._reduce("ReduceMax", magnitude, "axis_rows"))
        self._out(tensor, "square_sum", self._reduce("ReduceSumSquare", rows, "axis_rows"))
        self._out(tensor, "exceed", self._exceedances(magnitude))
        chosen, keys = self._sample(rows, count)
        self._out(tensor, "rows", chosen)
        self._out(tensor, "row_keys", keys)

    def _float_rows(self, tensor: WatchedTensor) -> str:
        value = self._node("Cast", [tensor.name], "float", to=TensorProto.FLOAT)
        if tensor.transposed:
            value = self._node("Transpose", [value], "upright", perm=[1, 0])
        shape = numpy_helper.from_array(
            np.array([-1, tensor.channels], np.int64), f"{self._scope}.shape"
        )
        self._graph.initializer.append(shape)
        return self._node("Reshape", [value, shape.name], "all_rows")

    def _without_padding(self, rows: str) -> str:
        """The rows whose token the mask names real; all rows where the mask does not fit."""
        shape = self._node("Shape", [rows], "row_shape", end=1)
        count = self._node("Squeeze", [shape], "row_count")
        index = self._node("Range", ["mmcompile.zero", count, "mmcompile.one"], "row_index")
        token = self._node("Mod", [index, "mmcompile.mask_size"], "row_token")
        real = self._node("Gather", [TOKEN_MASK, token], "row_is_real")
        fits = self._node("Equal", [count, "mmcompile.mask_size"], "mask_fits")
        misfit = self._node("Not", [fits], "mask_misfit")
        keep = self._node("Or", [real, misfit], "keep")
        return self._node("Compress", [rows, keep], "kept_rows", axis=0)

    def _exceedances(self, magnitude: str) -> str:
        """Per ratio, the number of elements above ratio · their token's maximum."""
        if not self._ratios:
            return "mmcompile.no_counts"
        peak = self._reduce("ReduceMax", magnitude, "axis_channels", keepdims=1)
        counts = []
        for number, ratio in enumerate(self._ratios):
            value = np.array(ratio, np.float32)
            constant = numpy_helper.from_array(value, f"{self._scope}.ratio{number}")
            self._graph.initializer.append(constant)
            limit = self._node("Mul", [peak, constant.name], f"limit{number}")
            above = self._node("Greater", [magnitude, limit], f"above{number}")
            ones = self._node("Cast", [above], f"ones{number}", to=TensorProto.FLOAT)
            per_row = self._reduce("ReduceSum", ones, "axis_channels", suffix=str(number))
            whole = self._node("Cast", [per_row], f"whole{number}", to=TensorProto.INT64)
            total = self._reduce("ReduceSum", whole, "axis_rows", keepdims=1, suffix=f"t{number}")
            counts.append(total)
        return self._node("Concat", counts, "exceed", axis=0)

    def _sample(self, rows: str, count: str) -> tuple[str, str]:
        """The rows with the largest keys, and the keys."""
        scalar = self._node("Squeeze", [count], "kept_count")
        index = self._node("Range", ["mmcompile.zero", scalar, "mmcompile.one"], "kept_index")
        slot = self._node("Mod", [index, "mmcompile.keys_size"], "key_slot")
        keys = self._node("Gather", [ROW_KEYS, slot], "all_keys")
        limit = self._node("Min", [count, "mmcompile.row_limit"], "limit")
        best, at = f"{self._scope}.best_keys", f"{self._scope}.best_rows"
        self._append("TopK", [keys, limit], [best, at])
        return self._node("Gather", [rows, at], "chosen_rows", axis=0), best

    def _reduce(
        self, op: str, value: str, axis: str, *, keepdims: int = 0, suffix: str = ""
    ) -> str:
        name = f"{op}.{axis}{suffix}"
        if self._axes_as_input or op == "ReduceSum":
            return self._node(op, [value, f"mmcompile.{axis}"], name, keepdims=keepdims)
        axes = [0] if axis == "axis_rows" else [1]
        return self._node(op, [value], name, axes=axes, keepdims=keepdims)

    def _out(self, tensor: WatchedTensor, statistic: str, value: str) -> None:
        self._append("Identity", [value], [output_name(tensor.key, statistic)])

    def _node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = f"{self._scope}.{name}"
        self._append(op, inputs, [output], **attributes)
        return output

    def _append(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self._graph.node.append(
            helper.make_node(op, inputs, outputs, name=f"make.{outputs[0]}", **attributes)
        )
