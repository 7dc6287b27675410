"""States what precision an engine runs, layer by layer, and finds what was lost.

TensorRT takes an FP8 or NVFP4 graph and may build wide products of it, without a word and with exit
code 0. So every engine is read again after it was built:

    found = realized(engine, inspection, expected)
    check_precision(compare(expected, found), path, allow_fallback=False)

The inspector's word counts first. What it does not tell is looked up in the text that TensorRT-RTX
writes into its engines, which needs no GPU and is not documented.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from mmcompile.backends.engines.inspector import parse_layers, read_inspection
from mmcompile.backends.engines.layer_precision import (
    PLUGIN,
    UNKNOWN,
    Expected,
    LayerPrecision,
    Lost,
    PrecisionCheck,
    Realized,
)
from mmcompile.backends.engines.plan_text import EngineBytes, PlanText, read_plan_text
from mmcompile.backends.engines.plugin_fields import read_segments
from mmcompile.errors import VerificationError

INSPECTOR, TEXT, NOTHING = "engine inspector", "plan text", "nothing"
TEXT_NOTE = (
    "TensorRT-RTX writes it into its engines, and NVIDIA does not document it; the kernels "
    "themselves are chosen when the engine is loaded"
)
INSPECTOR_NOTE = "told by TensorRT's engine inspector"
CUT_NOTE = "the engine holds more text than is read"
NOTHING_NOTE = "neither an inspector nor text in the engine tells the precision of its layers"
_NAMED = 5
"""Layers that an error names."""


def realized(
    engine: EngineBytes, inspection: str | bytes = "", expected: Iterable[Expected] = ()
) -> Realized:
    """The precision of every product of an engine.

    Args:
        engine: the serialized engine, mapped where it is large; empty if there is only the
            inspector's word.
        inspection: the inspector's JSON; empty where there is none.
        expected: the products that the graph has; those that no layer tells stand in the result
            as unknown.
    """
    nodes = dict.fromkeys(entry.node for entry in expected)
    told = read_inspection(inspection, nodes) if inspection else ()
    text = read_plan_text(engine)
    written = (*text.layers, *_plugins(engine, text))
    layers = _joined(told, written)
    known = {node for layer in layers for node in layer.nodes}
    layers += [
        text.generated.get(node, LayerPrecision(node, (node,), "absent"))
        for node in nodes
        if node not in known
    ]
    sources = [INSPECTOR] if parse_layers(inspection) else []
    notes = [INSPECTOR_NOTE] if sources else []
    by_text = {*written, *text.generated.values()} - set(told)
    if not by_text.isdisjoint(layers):
        sources.append(TEXT)
        notes.append(TEXT_NOTE if text.complete else f"{TEXT_NOTE}; {CUT_NOTE}")
    source = " and ".join(sources) or NOTHING
    return Realized(source, "; ".join(notes) or NOTHING_NOTE, tuple(dict.fromkeys(layers)))


def realized_file(
    path: Path, inspection: str | bytes = "", expected: Iterable[Expected] = ()
) -> Realized:
    """`realized` of an engine's file, which is mapped, not read into memory.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return realized(b"", inspection, expected)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return realized(mapped, inspection, expected)


def lost(expected: Sequence[Expected], found: Realized) -> tuple[Lost, ...]:
    """The products that have another precision than they have to have.

    One of several optimization profiles is enough. What cannot be told is not lost; see
    `unverified`.
    """
    index = _Index(expected, found)
    return tuple(entry for entry in map(index.loss, expected) if entry is not None)


def unverified(expected: Sequence[Expected], found: Realized) -> tuple[str, ...]:
    """The nodes of which cannot be told whether they have the precision they have to have."""
    index = _Index(expected, found)
    return tuple(entry.node for entry in expected if index.is_open(entry))


def compare(expected: Sequence[Expected], found: Realized) -> PrecisionCheck:
    """What an engine runs, beside what its graph asks for."""
    return PrecisionCheck(
        realized=found,
        asked=len(expected),
        lost=lost(expected, found),
        unverified=unverified(expected, found),
    )


def check_precision(check: PrecisionCheck, where: object, *, allow_fallback: bool) -> None:
    """Refuses an engine that has lost precision.

    Args:
        check: what it runs, beside what its graph asks for.
        where: the engine, for the error.
        allow_fallback: accept it all the same.

    Raises:
        VerificationError: something was lost; names the layers.
    """
    if not check.lost or allow_fallback:
        return
    raise VerificationError(
        "precision-lost",
        where,
        f"{len(check.lost)} of {check.asked} layers lost their precision: {lost_text(check.lost)}",
        "keep these layers as they are in the graph, build with another back end, or accept it "
        "with --allow-fallback",
    )


def precision_lines(check: PrecisionCheck) -> tuple[str, ...]:
    """In a few lines: the layers by precision, what was lost, what could not be told."""
    found = check.realized
    lines = [f"precision: {counts_text(found)} ({found.source}: {found.note})"]
    if check.lost:
        lines.append(f"precision lost: {lost_text(check.lost)}")
    if check.unverified:
        more = ", …" if len(check.unverified) > 1 else ""
        lines.append(
            f"precision not verified: {len(check.unverified)} of {check.asked} layers, "
            f"{check.unverified[0]}{more}"
        )
    return tuple(lines)


def counts_text(found: Realized) -> str:
    """Layers by precision in a line, e.g. `36 FP8; 6 FP16`."""
    named = {PLUGIN: "MicroMix"}
    counts = (f"{count} {named.get(name, name)}" for name, count in found.counts.items())
    return "; ".join(counts) or "no layer that multiplies"


def lost_text(missing: Sequence[Lost]) -> str:
    """The first of the lost layers in words, those that changed alike together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in missing:
        groups.setdefault((entry.expected, entry.realized), []).append(entry.node)
    said = []
    for (before, after), nodes in groups.items():
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        said.append(f"{', '.join(nodes[:_NAMED])}{more} ({before} became {after})")
    return "; ".join(said)


class _Index:
    """An engine's layers by ONNX node."""

    def __init__(self, expected: Sequence[Expected], found: Realized) -> None:
        self._by_node: dict[str, list[LayerPrecision]] = {}
        for layer in found.layers:
            for node in layer.nodes:
                self._by_node.setdefault(node, []).append(layer)
        held = {node for layer in found.layers if layer.kind == "plugin" for node in layer.nodes}
        asked = {entry.node for entry in expected if entry.plugin}
        # An engine may name a plugin's layer otherwise, so only their number proves anything, and
        # only by the text, in which plugins' layers were seen.
        self._lacks_plugins = TEXT in found.source and len(held) < len(asked)

    def is_open(self, entry: Expected) -> bool:
        """Whether nothing is known against it, but not all is known for it either."""
        layers = self._by_node.get(entry.node, [])
        if self.loss(entry) is not None:
            return False
        return not layers or not all(_is_kept(entry, layer) for layer in layers)

    def loss(self, entry: Expected) -> Lost | None:
        """The first layer of the node that is known to be another than expected."""
        expected = entry.precision or PLUGIN
        layers = self._by_node.get(entry.node, [])
        for layer in layers:
            if layer.precision != UNKNOWN and not _is_kept(entry, layer):
                return Lost(entry.node, expected, layer.description)
        if entry.plugin and self._lacks_plugins and all(x.kind != "plugin" for x in layers):
            return Lost(entry.node, expected, "no layer of the plugin")
        return None


def _is_kept(entry: Expected, layer: LayerPrecision) -> bool:
    if entry.plugin:
        told = layer.precision if layer.precision != PLUGIN else entry.precision
        return layer.kind == "plugin" and told == entry.precision
    return layer.precision == entry.precision


def _joined(
    told: Sequence[LayerPrecision], written: Sequence[LayerPrecision]
) -> list[LayerPrecision]:
    """The inspector's layers, and those of the engine's text that it does not know."""
    by_node: dict[str, list[LayerPrecision]] = {}
    for layer in written:
        for node in layer.nodes[:1]:
            by_node.setdefault(node, []).append(layer)
    joined: dict[LayerPrecision, None] = {}
    known: set[str] = set()
    for layer in told:
        is_open = layer.precision in (UNKNOWN, PLUGIN)
        instead = [found for n in layer.nodes for found in by_node.get(n, ())] if is_open else []
        joined.update(dict.fromkeys(instead or [layer]))
        known.update(layer.nodes)
    joined.update(dict.fromkeys(x for x in written if known.isdisjoint(x.nodes)))
    return list(joined)


def _plugins(engine: EngineBytes, text: PlanText) -> list[LayerPrecision]:
    """The plugin layers, with the formats of their segments where the engine tells them."""
    segments = read_segments(engine, text.plugins.keys())
    return [
        msgspec.structs.replace(layer, precision=segments.get(key, layer.precision))
        for key, layer in text.plugins.items()
    ]
