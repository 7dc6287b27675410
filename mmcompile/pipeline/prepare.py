"""First stage: read the model, name its nodes, find and group its linears."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import onnx

from mmcompile.data.dataset import InputSpec
from mmcompile.errors import UnsupportedModelError, UsageError
from mmcompile.model.opsets import opset_of
from mmcompile.model.passes.find_linears import find_linears
from mmcompile.model.passes.group_sites import group_sites
from mmcompile.model.passes.name_nodes import name_nodes
from mmcompile.model.passes.upcast_half import upcast_half, uses_bfloat16
from mmcompile.model.selection import Selection
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel, load_model
from mmcompile.pipeline.files import check_name
from mmcompile.plan import GroupPlan, LeftAlone, QuantPlan


@dataclass(frozen=True)
class Prepared:
    """A model with its linears.

    Attributes:
        source: the model, every node named.
        groups: its linears, grouped by the tensor they read.
        left_alone: the candidates that are none, with reasons.
        runnable: the skeleton to run in ONNX Runtime; float32 where the model is bfloat16.
    """

    source: SourceModel
    groups: tuple[SiteGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    runnable: onnx.ModelProto

    @property
    def is_bfloat16(self) -> bool:
        """Whether the model itself cannot run on ONNX Runtime's CPU provider."""
        return self.runnable is not self.source.proto

    @property
    def runnable_source(self) -> SourceModel:
        """The model as this machine can run it."""
        return dataclasses.replace(self.source, proto=self.runnable)

    @property
    def opset(self) -> int:
        """Version of the default ONNX domain."""
        return opset_of(self.source.proto)


def prepare(path: Path, selection: Selection) -> Prepared:
    """Reads a model and finds its linears.

    Raises:
        UsageError: there is no such file, its path is no text, or a pattern of the selection
            matches nothing.
        UnsupportedModelError: the model cannot be read, or mmcompile wrote it.
    """
    check_name(path)
    source = load_model(path)
    source = dataclasses.replace(source, proto=name_nodes(source.proto))
    if any(node.op_type == "MicroMixLinear" for node in source.proto.graph.node):
        raise UnsupportedModelError(
            "already-compiled",
            path,
            "the model holds MicroMixLinear nodes: mmcompile has compiled it before",
            "compile the original model",
        )
    for option, patterns in (("--include", selection.include), ("--exclude", selection.exclude)):
        for pattern in patterns:
            _check_pattern(source, option, pattern)
    linears = find_linears(source, selection)
    runnable = source.proto
    if uses_bfloat16(runnable):
        runnable = upcast_half(runnable)
    return Prepared(source, group_sites(linears.sites), linears.left_alone, runnable)


def _check_pattern(source: SourceModel, option: str, pattern: str) -> None:
    """Refuses a pattern without effect: a typing error would quantize what was to be kept.

    Raises:
        UsageError: no linear layer matches it.
    """
    linears = find_linears(source, Selection(exclude=(pattern,)))
    if any(e.code == "excluded" or fnmatchcase(e.node, pattern) for e in linears.left_alone):
        return
    names = [site.node for site in linears.sites]
    remedy = "use shell patterns on the names that `mmcompile inspect -v` lists"
    if names:
        remedy += f", such as '{names[0]}'"
    reason = f"no linear layer's node or weight matches '{pattern}'"
    raise UsageError("pattern-without-match", option, reason, remedy)


def input_specs(proto: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs that a caller of the model has to give."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    specs = []
    for value in proto.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            raise UnsupportedModelError(
                "input-untyped",
                f"input {value.name}",
                "it has no tensor type or no shape, so that no data can be made for it",
                "export the model with typed inputs",
            )
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
            for d in tensor.shape.dim
        )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        specs.append(InputSpec(value.name, dtype, shape))
    return tuple(specs)


def match_plan(
    plan: QuantPlan, prepared: Prepared, where: Path
) -> tuple[tuple[tuple[SiteGroup, GroupPlan], ...], tuple[LeftAlone, ...]]:
    """Pairs a plan's groups with the model's.

    Returns:
        The pairs in graph order, and the linears that the plan does not mention.

    Raises:
        UsageError: the plan speaks of another model.
    """
    planned = {group.nodes: group for group in plan.groups}
    pairs: list[tuple[SiteGroup, GroupPlan]] = []
    unplanned: list[LeftAlone] = []
    for sites in prepared.groups:
        nodes = tuple(site.node for site in sites.sites)
        decision = planned.pop(nodes, None)
        if decision is None:
            reason = "is not in the plan that was given"
            unplanned.extend(LeftAlone(node, "not-planned", reason) for node in nodes)
            continue
        rows = tuple(site.out_channels for site in sites.sites)
        if (decision.in_channels, decision.out_channels) != (sites.in_channels, rows):
            raise UsageError(
                "plan-mismatch",
                f"{where}, group {decision.name}",
                f"it plans K = {decision.in_channels}, N = {decision.out_channels}; "
                f"the model has K = {sites.in_channels}, N = {rows}",
                "use the plan of this model",
            )
        pairs.append((sites, decision))
    if planned:
        first = next(iter(planned.values()))
        raise UsageError(
            "plan-mismatch",
            f"{where}, group {first.name}",
            f"the model has no linears {_names(first.nodes)} that read one tensor",
            "use the plan of this model, with the same --include and --exclude",
        )
    return tuple(pairs), tuple(unplanned)


def _names(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:4]) + (", …" if len(nodes) > 4 else "")
