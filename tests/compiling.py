"""A model through load, find, rewrite, pack and write, without the pipeline around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mmcompile.model.passes.find_linears import find_linears
from mmcompile.model.passes.group_sites import group_sites
from mmcompile.model.passes.name_nodes import name_nodes
from mmcompile.model.passes.rewrite_linears import packed_names, rewrite_linears
from mmcompile.model.selection import Selection
from mmcompile.model.sites import LinearSite, SiteGroup
from mmcompile.model.source import SourceModel, load_model
from mmcompile.model.writer import ModelWriter
from mmcompile.packed import PackedLinear
from mmcompile.plan import GroupPlan, LeftAlone, Segment, format_order
from mmcompile.weights.pack import pack_group

MIXED = (
    (32, "mxfp4", "mxfp4", 1.75, 1.75),
    (32, "nvfp4", "nvfp4", 2.0, 2.0),
    (32, "mxfp8", "mxfp6_e2m3", 1.75, 1.875),
    (32, "mxfp6_e3m2", "mxfp6_e3m2", 2.0, 2.0),
)
"""Segments of all formats, unequal ones and both scale rules among them, for K up to 128."""


@dataclass(frozen=True)
class Prepared:
    """A model, its groups of linears and the candidates that are none."""

    source: SourceModel
    groups: tuple[SiteGroup, ...]
    left_alone: tuple[LeftAlone, ...]

    @property
    def sites(self) -> tuple[LinearSite, ...]:
        return tuple(site for group in self.groups for site in group.sites)


@dataclass(frozen=True)
class Compiled:
    """A compiled model on disk, with the plans and the packed constants of its groups."""

    path: Path
    plans: tuple[GroupPlan, ...]
    packed: tuple[PackedLinear, ...]

    @property
    def proto(self) -> onnx.ModelProto:
        """The model with its weights."""
        return onnx.load(self.path)


def prepare(model: onnx.ModelProto | Path, folder: Path, **selection: object) -> Prepared:
    """Finds and groups the linears, heads included unless told otherwise."""
    path = model
    if isinstance(model, onnx.ModelProto):
        path = folder / "original.onnx"
        onnx.save(model, path)
    source = load_model(path)
    source = dataclasses.replace(source, proto=name_nodes(source.proto))
    linears = find_linears(source, Selection(**{"heads": True} | selection))
    return Prepared(source, group_sites(linears.sites), linears.left_alone)


def uniform(group: SiteGroup, name: str = "mxfp8") -> GroupPlan:
    """One format for all channels in their own order, padded to a multiple of 32."""
    padding = -group.in_channels % 32
    order = [*range(group.in_channels), *[-1] * padding]
    return planned(group, order, [(len(order), name, name, 2.0, 2.0)])


def mixed(group: SiteGroup) -> GroupPlan:
    """Segments of all formats over shuffled channels with padding among them."""
    order = [*range(group.in_channels), *[-1] * (-group.in_channels % 128)]
    order = np.random.default_rng(group.in_channels).permutation(order)
    parts = [(len(order) // 4, *part[1:]) for part in MIXED]
    return planned(group, order, parts, act_scale=2.0**-8, weight_scale=2.0**-10)


def planned(group, order, segments, act_scale=1.0, weight_scale=1.0) -> GroupPlan:
    return GroupPlan(
        name=group.name,
        input=group.input,
        nodes=tuple(site.node for site in group.sites),
        in_channels=group.in_channels,
        out_channels=tuple(site.out_channels for site in group.sites),
        order=format_order(order),
        segments=tuple(Segment(*part) for part in segments),
        act_tensor_scale=act_scale,
        weight_tensor_scale=weight_scale,
    )


def compiled(
    prepared: Prepared, folder: Path, plan: Callable[[SiteGroup], GroupPlan] = mixed
) -> Compiled:
    """Rewrites, packs and writes the model into a new folder."""
    source = prepared.source
    decided = [(group, plan(group)) for group in prepared.groups]
    rewritten = rewrite_linears(source.proto, decided)
    target = folder / "compiled"
    target.mkdir()
    packed = []
    with ModelWriter(target) as writer:
        for group, plan_of_group in decided:
            packed.append(pack_group(group, plan_of_group, source))
            arrays = (packed[-1].order, packed[-1].weight, packed[-1].scales, packed[-1].bias)
            for name, array in zip(packed_names(plan_of_group.name), arrays, strict=True):
                writer.add(name, array)
        for tensor in rewritten.graph.initializer:
            if reference := source.weights.ref(tensor.name):
                writer.copy(reference)
        path = writer.finish(rewritten)
    return Compiled(path, tuple(plan for _, plan in decided), tuple(packed))
