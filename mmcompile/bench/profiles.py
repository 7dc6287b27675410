"""Joins an engine's layers, as TensorRT names them, with ONNX nodes and precisions.

TensorRT says what a layer is made of in its inspector's `Metadata`, as `[ONNX Layer: name]` for
every node (profiling verbosity `detailed`). Where that is missing, the layer's own name is read: it
is a node's, several joined by ` + `, or a `{ForeignNode[first...last]}` of a whole region, which
names only its ends.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from mmcompile.bench.results import ProfiledLayer

_METADATA = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
_TYPES = re.compile(
    r"\b(FP4|E2M1|FP8|E4M3|E8M0|BF16|FP16|Half|FP32|Float|INT8|INT32|INT64|Bool)\b", re.IGNORECASE
)
_SHORT = {"half": "FP16", "float": "FP32", "e2m1": "FP4", "e4m3": "FP8"}


def parse_layers(inspection: str) -> list[dict[str, Any]]:
    """The layers of the engine inspector's JSON; older releases give only their names."""
    try:
        document = msgspec.json.decode(inspection, type=dict[str, Any])
    except msgspec.DecodeError:
        return []
    layers = document.get("Layers", [])
    if not isinstance(layers, list):
        return []
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


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
                precision=_precision(layer),
                kind=str(layer.get("PluginType") or layer.get("LayerType") or ""),
            )
        )
    return tuple(found)


def layer_nodes(name: str, layer: Mapping[str, Any], nodes: set[str]) -> tuple[str, ...]:
    """The ONNX nodes of a layer, in the order in which TensorRT names them."""
    told = _METADATA.findall(str(layer.get("Metadata", "")))
    if told:
        return tuple(dict.fromkeys(told))
    if name in nodes:
        return (name,)
    parts = re.split(r" \+ |\.\.\.|[{}\[\]()]|__myl\w*", name)
    stripped = (re.sub(r"^(ForeignNode|PWN|Reformatting CopyNode.*)$", "", part) for part in parts)
    return tuple(dict.fromkeys(part.strip() for part in stripped if part.strip() in nodes))


def linear_seconds(layers: Iterable[ProfiledLayer]) -> float:
    """Time of the layers that compute a linear, alone or fused with others."""
    return sum(layer.seconds for layer in layers if layer.linears)


def _precision(layer: Mapping[str, Any]) -> str:
    """Types of inputs and outputs, such as `FP8, FP16 → FP16`."""
    sides = [_types(layer.get(side, ())) for side in ("Inputs", "Outputs")]
    return " → ".join(sides) if all(sides) else "".join(sides)


def _types(tensors: object) -> str:
    found: list[str] = []
    for tensor in tensors if isinstance(tensors, list) else []:
        text = str(tensor.get("Format/Datatype", tensor.get("Format", ""))) if tensor else ""
        found += [_SHORT.get(name.lower(), name.upper()) for name in _TYPES.findall(text)[-1:]]
    return ", ".join(dict.fromkeys(found))
