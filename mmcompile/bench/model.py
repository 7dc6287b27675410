"""What `mmcompile bench` does with a model: finds its linears and models or times its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmcompile.bench.limits import Layer, example_segments
from mmcompile.bench.modelled import ModelledBench, model_limits
from mmcompile.bench.points import Point
from mmcompile.model.selection import Selection
from mmcompile.pipeline.prepare import Prepared, match_plan, prepare
from mmcompile.plan import Segment, load_plan
from mmcompile.targets.target import Gpu

EXAMPLE = "an example split, 3/4 MXFP4, 1/8 MXFP6 and 1/8 MXFP8 of every layer; --plan gives yours"


def modelled_bench(
    model: Path,
    gpu: Gpu,
    points: Sequence[Point],
    plan: Path | None = None,
    selection: Selection | None = None,
) -> ModelledBench:
    """The modelled limits of a model's linears; needs neither GPU nor data.

    Args:
        model: the ONNX model.
        gpu: where it would run.
        points: sizes.
        plan: a plan.json of this model; None takes an example split.
        selection: which linears are rewritten; all others stay in FP16.

    Raises:
        MMCompileError: the model or the plan cannot be used.
    """
    layers = linear_layers(model, plan, selection or Selection())
    split = EXAMPLE if plan is None else f"the split of {plan}"
    return model_limits(str(model), layers, gpu, points, split)


def linear_layers(model: Path, plan: Path | None, selection: Selection) -> list[Layer]:
    """All linears of a model in the order of the graph, with the split of those it rewrites."""
    prepared = prepare(model, selection)
    splits = _splits(prepared, plan)
    layers = []
    for group in prepared.groups:
        nodes = tuple(site.node for site in group.sites)
        layers.append(
            Layer(group.name, nodes, group.in_channels, group.out_channels, splits.get(nodes, ()))
        )
    rewritten = {node for layer in layers for node in layer.nodes}
    # What is left alone by choice is a linear all the same, and costs time in every variant.
    for group in prepare(model, Selection(heads=True)).groups:
        kept = [site for site in group.sites if site.node not in rewritten]
        if kept:
            nodes = tuple(site.node for site in kept)
            rows = sum(site.out_channels for site in kept)
            layers.append(Layer(group.name, nodes, group.in_channels, rows, ()))
    return layers


def _splits(prepared: Prepared, plan: Path | None) -> Mapping[tuple[str, ...], tuple[Segment, ...]]:
    if plan is not None:
        pairs, _ = match_plan(load_plan(plan), prepared, plan)
        return {decision.nodes: decision.segments for _, decision in pairs}
    return {
        tuple(site.node for site in group.sites): example_segments(group.in_channels)
        for group in prepared.groups
    }
