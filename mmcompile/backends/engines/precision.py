"""States what precision an engine runs, product by product, and finds what was lost.

TensorRT takes an FP8 or NVFP4 graph and may build wide products of it, without a word and with exit
code 0. So every engine is read again after it was built:

    found = realized(engine, inspection, expected)
    check_precision(expected, found, path, allow_fallback=False)

The inspector's word counts first. What it does not tell is looked up in the text that TensorRT-RTX
writes into its engines, which needs no GPU and is not documented.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mmcompile.backends.engines.expectations import Expected
from mmcompile.backends.engines.inspector import parse_layers, read_inspection
from mmcompile.backends.engines.plan_text import EngineBytes, PlanText, read_plan_text
from mmcompile.backends.engines.plugin_fields import read_segments
from mmcompile.backends.engines.products import PLUGIN, UNKNOWN, Product, Realized
from mmcompile.errors import VerificationError

INSPECTOR, TEXT, NOTHING = "engine inspector", "plan text", "nothing"
TEXT_NOTE = (
    "read from text that TensorRT-RTX writes into its engines; NVIDIA does not document it, and "
    "the kernels are chosen only when the engine is loaded"
)
INSPECTOR_NOTE = "told by TensorRT's engine inspector"
CUT_NOTE = "the engine holds more text than is read"
NOTHING_NOTE = "neither an inspector nor text in the engine tells the precision of its layers"
_NAMED = 5
"""Layers that an error names."""


class Lost(msgspec.Struct, frozen=True):
    """A product that has not the precision it has to have.

    Attributes:
        node: the ONNX node.
        expected: its precision by the graph.
        realized: that of the engine, in words.
    """

    node: str
    expected: str
    realized: str


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
    written = (*text.products, *_plugins(engine, text))
    products = _joined(told, written)
    known = {node for product in products for node in product.nodes}
    products += [
        text.generated.get(node, Product(node, (node,), "generated"))
        for node in nodes
        if node not in known
    ]
    sources = [INSPECTOR] if parse_layers(inspection) else []
    notes = [INSPECTOR_NOTE] if sources else []
    if text.programs and set(products) - set(told):
        sources.append(TEXT)
        notes.append(TEXT_NOTE if text.complete else f"{TEXT_NOTE}; {CUT_NOTE}")
    source = " and ".join(sources) or NOTHING
    return Realized(source, "; ".join(notes) or NOTHING_NOTE, tuple(dict.fromkeys(products)))


def lost(expected: Iterable[Expected], found: Realized) -> tuple[Lost, ...]:
    """The products that have another precision than they have to have.

    One of several optimization profiles is enough. What cannot be told is not lost; see
    `unverified`.
    """
    index = _Index(found)
    return tuple(entry for entry in map(index.loss, expected) if entry is not None)


def unverified(expected: Iterable[Expected], found: Realized) -> tuple[str, ...]:
    """The nodes of which cannot be told whether they have the precision they have to have."""
    index = _Index(found)
    return tuple(entry.node for entry in expected if index.is_open(entry))


def check_precision(
    expected: Sequence[Expected], found: Realized, where: object, *, allow_fallback: bool
) -> tuple[Lost, ...]:
    """Refuses an engine that has lost precision.

    Args:
        expected: what the graph asks for.
        found: what the engine runs.
        where: the engine, for the error.
        allow_fallback: only say what was lost.

    Returns:
        What was lost and is allowed.

    Raises:
        VerificationError: something was lost; names the layers.
    """
    missing = lost(expected, found)
    if not missing or allow_fallback:
        return missing
    raise VerificationError(
        "precision-lost",
        where,
        f"{len(missing)} of {len(expected)} layers lost their precision: {lost_text(missing)}",
        "keep these layers as they are in the graph, take another baseline or TensorRT, or accept "
        "it with --allow-fallback",
    )


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
    """Products by ONNX node."""

    def __init__(self, found: Realized) -> None:
        self._by_node: dict[str, list[Product]] = {}
        for product in found.products:
            for node in product.nodes:
                self._by_node.setdefault(node, []).append(product)

    def is_open(self, entry: Expected) -> bool:
        """Whether nothing is known against it, but not all is known for it either."""
        products = self._by_node.get(entry.node, [])
        if self.loss(entry) is not None:
            return False
        return not products or not all(_is_kept(entry, product) for product in products)

    def loss(self, entry: Expected) -> Lost | None:
        """The first product of the node that is known to be another than expected."""
        for product in self._by_node.get(entry.node, []):
            if product.precision != UNKNOWN and not _is_kept(entry, product):
                return Lost(entry.node, entry.precision or PLUGIN, product.description)
        return None


def _is_kept(entry: Expected, product: Product) -> bool:
    if entry.plugin:
        told = product.precision if product.precision != PLUGIN else entry.precision
        return product.kind == "plugin" and told == entry.precision
    return product.precision == entry.precision


def _joined(told: Sequence[Product], written: Sequence[Product]) -> list[Product]:
    """The inspector's products, those that it does not know by the engine's text instead."""
    by_node: dict[str, list[Product]] = {}
    for product in written:
        for node in product.nodes[:1]:
            by_node.setdefault(node, []).append(product)
    if not told:
        return list(dict.fromkeys(written))
    joined: dict[Product, None] = {}
    for product in told:
        is_open = product.precision in (UNKNOWN, PLUGIN)
        instead = [p for n in product.nodes for p in by_node.get(n, ())] if is_open else []
        joined.update(dict.fromkeys(instead or [product]))
    return list(joined)


def _plugins(engine: EngineBytes, text: PlanText) -> list[Product]:
    """The plugin layers, with the formats of their segments where the engine tells them."""
    segments = read_segments(engine, text.plugins.keys())
    return [
        msgspec.structs.replace(product, precision=segments.get(key, product.precision))
        for key, product in text.plugins.items()
    ]
