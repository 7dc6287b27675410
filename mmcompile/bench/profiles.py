"""Joins the times of an engine's layers, as TensorRT names them, with ONNX nodes and types."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmcompile.backends.engines.inspector import layer_nodes, layer_types
from mmcompile.bench.results import ProfiledLayer


def join_profile(
    layers: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, float]],
    nodes: Iterable[str],
    linears: Iterable[str],
) -> tuple[ProfiledLayer, ...]:
    """The time of every layer with the nodes that it computes.

    Args:
        layers: of the inspector; may be empty.
        runs: seconds by layer name, one entry per profiled run, in the engine's order.
        nodes: names of all ONNX nodes.
        linears: names of those that are linear layers.

    Returns:
        Layers in the order of the first run; what the inspector does not know has its name only.
    """
    if not runs:
        return ()
    known = {str(layer.get("Name", "")): layer for layer in layers}
    every, wanted = set(nodes), set(linears)
    names = list(dict.fromkeys(name for run in runs for name in run))
    seconds = {n: statistics.median([run[n] for run in runs if n in run]) for n in names}
    total = sum(seconds.values())
    found = []
    for name in names:
        layer = known.get(name, {})
        computed = layer_nodes(name, layer, every)
        found.append(
            ProfiledLayer(
                name=name,
                seconds=seconds[name],
                share=seconds[name] / total if total else 0.0,
                nodes=computed,
                linears=tuple(node for node in computed if node in wanted),
                precision=layer_types(layer),
                kind=str(layer.get("PluginType") or layer.get("LayerType") or ""),
            )
        )
    return tuple(found)


def linear_seconds(layers: Iterable[ProfiledLayer]) -> float:
    """Time of the layers that compute a linear, alone or fused with others."""
    return sum(layer.seconds for layer in layers if layer.linears)
