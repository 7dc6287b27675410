"""Figures that follow from a report, and how figures are written for people.

The terminal and the HTML page show the same totals, order and notation because both take them
from here.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from mmcompile.plan import LeftAlone, Segment
from mmcompile.report.model import (
    EXACT_DB,
    LayerError,
    LayerReport,
    ModelInfo,
    OutputReport,
    Report,
    RestInfo,
    VerificationReport,
    WeightRounding,
)

UNMEASURED = "–"
REST_ALONE = " (half precision alone)"
"""What is added to the name of an output where only the rest of the model was changed."""


@dataclass(frozen=True)
class Totals:
    """Figures over all rewritten layers.

    Attributes:
        linears: linear layers that were rewritten.
        candidates: linear layers found, those left alone included.
        weights: number of weights rewritten.
        bytes_before: size of their original weights.
        bytes_after: size of their packed weights.
        weight_bits: mean bits per weight, or None without layers.
        act_bits: mean bits per activation element (each tensor counted once), or None.
        split: share of the weights per pair of formats, most bits last.
        act_split: share of the input channels per pair of formats, each tensor counted once.
        worst: the layer with the lowest output SQNR, or None where none was measured.
    """

    linears: int
    candidates: int
    weights: int
    bytes_before: int
    bytes_after: int
    weight_bits: float | None
    act_bits: float | None
    split: tuple[Share, ...]
    act_split: tuple[Share, ...]
    worst: LayerReport | None


@dataclass(frozen=True)
class Share:
    """The part of something that is held in one pair of formats, 0 to 1."""

    act_format: str
    weight_format: str
    share: float

    @property
    def label(self) -> str:
        """The pair's name, as `format_pair` writes it."""
        return format_pair(self.act_format, self.weight_format)


@dataclass(frozen=True)
class ReasonGroup:
    """Candidates left alone under one code, by distinct reason."""

    code: str
    reasons: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def count(self) -> int:
        """Number of candidates."""
        return sum(len(nodes) for _, nodes in self.reasons)


@dataclass(frozen=True)
class LayerKind:
    """Layers whose names differ in numbers only, as the blocks of a transformer do."""

    name: str
    layers: tuple[LayerReport, ...]

    def totals(self) -> Totals:
        """Figures over the kind."""
        return layer_totals(self.layers, left_alone=0)


@dataclass(frozen=True)
class Verdict:
    """What verification came to.

    Attributes:
        text: the verdict in a word or two.
        state: `good`, `bad`, or `open` where nothing was demanded or nothing compared.
    """

    text: str
    state: Literal["good", "bad", "open"]


def verdict(verification: VerificationReport | None) -> Verdict:
    """The verdict; `passed` alone says little where nothing was demanded or compared."""
    if verification is None:
        return Verdict("not run", "open")
    if not verification.passed:
        return Verdict("failed", "bad")
    if not verification.outputs:
        return Verdict("outputs not compared", "open")
    if verification.threshold is None:
        return Verdict("compared, no threshold set", "open")
    return Verdict("passed", "good")


def layer_errors(
    layers: Iterable[LayerReport], verification: VerificationReport | None
) -> dict[str, LayerError]:
    """The error inside the compiled model by `LayerReport.name`: the worst of the layer's nodes."""
    found = {error.name: error for error in verification.layers} if verification else {}
    worst = {}
    for layer in layers:
        errors = [found[node] for node in layer.nodes if node in found]
        if errors:
            worst[layer.name] = min(errors, key=lambda x: _or_infinity(x.sqnr_db))
    return worst


def report_totals(report: Report) -> Totals:
    """Figures over all layers of a report."""
    return layer_totals(report.layers, sum(entry.is_linear for entry in report.left_alone))


def layer_totals(layers: Sequence[LayerReport], left_alone: int) -> Totals:
    """Figures over some layers.

    Args:
        layers: the layers.
        left_alone: number of linear layers that were not rewritten.
    """
    weights = sum(layer.weights for layer in layers)
    inputs = sum(layer.in_channels for layer in layers)
    linears = sum(len(layer.nodes) for layer in layers)
    measured = [layer for layer in layers if layer.output_sqnr_db is not None]
    return Totals(
        linears=linears,
        candidates=linears + left_alone,
        weights=weights,
        bytes_before=sum(layer.bytes_before for layer in layers),
        bytes_after=sum(layer.bytes_after for layer in layers),
        weight_bits=sum(x.weight_bits * x.weights for x in layers) / weights if weights else None,
        act_bits=sum(x.act_bits * x.in_channels for x in layers) / inputs if inputs else None,
        split=_shares(layers, [sum(layer.out_channels) for layer in layers]),
        act_split=_shares(layers, [1] * len(layers)),
        worst=worst_first(measured)[0] if measured else None,
    )


def worst_first(layers: Iterable[LayerReport]) -> list[LayerReport]:
    """Layers by ascending output SQNR; those without one last, in their given order."""
    return sorted(layers, key=lambda x: _or_infinity(x.output_sqnr_db))


def layer_shares(layer: LayerReport) -> tuple[Share, ...]:
    """The split of one layer as shares of its padded channels, in segment order."""
    padded = max(1, layer.padded_channels)
    return tuple(
        Share(segment.act_format, segment.weight_format, segment.channels / padded)
        for segment in layer.segments
    )


def layer_kinds(layers: Iterable[LayerReport], labels: dict[str, str]) -> list[LayerKind]:
    """Layers grouped by label with its numbers taken out, in order of appearance."""
    kinds: dict[str, list[LayerReport]] = {}
    for layer in layers:
        kinds.setdefault(re.sub(r"\d+", "*", labels[layer.name]), []).append(layer)
    return [LayerKind(name, tuple(members)) for name, members in kinds.items()]


def reason_groups(left_alone: Iterable[LeftAlone]) -> list[ReasonGroup]:
    """Candidates left alone by code and reason, the largest group first."""
    groups: dict[str, dict[str, list[str]]] = {}
    for entry in left_alone:
        groups.setdefault(entry.code, {}).setdefault(entry.reason, []).append(entry.node)
    result = [
        ReasonGroup(code, tuple((reason, tuple(nodes)) for reason, nodes in reasons.items()))
        for code, reasons in groups.items()
    ]
    return sorted(result, key=lambda group: -group.count)


def nearest_reasons(layers: Iterable[LayerReport]) -> dict[str, tuple[str, ...]]:
    """Why error feedback was not kept: nodes by reason, the most frequent first."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        for one in layer.rounding:
            if one.reason:
                found.setdefault(one.reason, []).append(one.node)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return {reason: tuple(nodes) for reason, nodes in ordered}


def layer_labels(layers: Iterable[LayerReport]) -> dict[str, str]:
    """Short printable names: each layer's without the path parts that all layers share."""
    return short_labels([layer.name for layer in layers])


def short_labels(names: Sequence[str]) -> dict[str, str]:
    """Names without the path parts that all of them share, printable."""
    paths = [[part for part in name.split("/") if part] or [name] for name in names]
    shortest = min(map(len, paths), default=1)
    limit = shortest - 1 if len(set(names)) > 1 else 0
    head = _common(paths, limit)
    tail = _common([path[::-1] for path in paths], limit - head)
    return {
        name: plain_text("/".join(path[head : len(path) - tail]))
        for name, path in zip(names, paths, strict=True)
    }


def worst_output(outputs: Iterable[OutputReport]) -> OutputReport | None:
    """The output with the lowest minimum cosine, or None where none was measured."""
    measured = [x for x in outputs if x.cosine_min is not None]
    return min(measured, key=lambda x: x.cosine_min or 0.0, default=None)


def format_pair(act_format: str, weight_format: str) -> str:
    """Formats of a segment as text: one name, or `A … / W …` where the two sides differ."""
    if act_format == weight_format:
        return act_format
    return f"A {act_format} / W {weight_format}"


def split_text(segments: Iterable[Segment]) -> str:
    """A split as text, e.g. `256×mxfp4 + 128×(A mxfp8 / W mxfp4)`."""
    parts = []
    for segment in segments:
        pair = format_pair(segment.act_format, segment.weight_format)
        parts.append(f"{segment.channels}×{f'({pair})' if ' ' in pair else pair}")
    return " + ".join(parts)


def shape_text(layer: LayerReport) -> str:
    """A group's shape as text, e.g. `4096 → 4096+1024+1024`."""
    return f"{layer.in_channels} → {'+'.join(map(str, layer.out_channels))}"


def weights_text(report: Report) -> str:
    """How the weights were rounded, in a line; empty where an older report does not say."""
    policy = report.policy
    roundings = [one for layer in report.layers for one in layer.rounding]
    if not policy.weights:
        return ""
    text = "GPTQ" if policy.weights == "gptq" else "to nearest"
    if roundings:
        kept = sum(not one.reason for one in roundings)
        text += f" in {count_text(kept)} of {count_text(len(roundings))} layers"
    return f"{text} ({policy.weights_reason})" if policy.weights_reason else text


def size_change(model: ModelInfo) -> tuple[str, str]:
    """How the size changed against FP16, e.g. `("1.36×", "smaller than FP16")`.

    Older reports do not say what FP16 would have; the original takes its place in them.
    """
    if model.bytes_fp16 is None:
        return change_text(model.bytes_before, model.bytes_after)
    factor, word = change_text(model.bytes_fp16, model.bytes_after)
    return factor, f"{word} than FP16" if word else ""


def original_sizes_text(model: ModelInfo) -> str:
    """What the original takes, as it is and in FP16."""
    text = bytes_text(model.bytes_before)
    if model.bytes_fp16 is None or model.bytes_fp16 == model.bytes_before:
        return text
    return f"{text}, {bytes_text(model.bytes_fp16)} in FP16"


def rest_text(rest: RestInfo) -> str:
    """What all but the rewritten layers compute in, in a line."""
    text = f"{rest.dtype} ({rest.reason})"
    if not rest.nodes:
        return text
    kept = sum(island.nodes for island in rest.islands)
    return f"{text}; {count_text(kept)} of {count_text(rest.nodes)} nodes stay in float32"


def rounding_text(rounding: WeightRounding) -> str:
    """How a weight was rounded and what came of it."""
    if rounding.reason:
        return f"to nearest: {rounding.reason}"
    if rounding.gain_db is None:
        return "GPTQ"
    if rounding.gain_db >= EXACT_DB:
        return "GPTQ, exact on inputs held back"
    return f"GPTQ, error {_signed(-rounding.gain_db)} dB on inputs held back"


def gains_text(layer: LayerReport) -> str:
    """By how much error feedback changed each weight's error, in dB, as a table cell."""
    gains = [None if one.reason else one.gain_db for one in layer.rounding]
    cells = [UNMEASURED if gain is None else _signed(-gain) for gain in gains]
    return " / ".join(cells) if cells else UNMEASURED


def output_figures(output: OutputReport, *, logits: bool) -> list[str]:
    """An output's cosines, SQNR and largest error as table cells; with `logits` KL and top-1."""
    figures = [
        cosine_text(output.cosine_mean),
        cosine_text(output.cosine_min),
        decibel_text(output.sqnr_db),
        figure_text(output.max_abs_error),
    ]
    if logits:
        figures.append(figure_text(output.kl_divergence_nats))
        figures.append(percent_text(output.top1_agreement))
    return figures


def plain_text(text: str) -> str:
    """Text with control characters spelled out, so that no name can steer a terminal or a page."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def file_name(path: str) -> str:
    """The last part of a path."""
    return PurePath(path).name or path


def bytes_text(count: float | None) -> str:
    """A size in decimal units (1 MB = 10⁶ bytes)."""
    if count is None:
        return UNMEASURED
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * size:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{count:.0f} B"


def change_text(before: int, after: int) -> tuple[str, str]:
    """How a size changed, as a factor and a word, e.g. `("4.85×", "smaller")`."""
    if not before or not after:
        return UNMEASURED, ""
    if after > before:
        return f"{after / before:.2f}×", "larger"
    return f"{before / after:.2f}×", "smaller"


def count_text(count: int | None) -> str:
    """A count with thousands separators."""
    return UNMEASURED if count is None else f"{count:,}"


def decibel_text(value: float | None) -> str:
    """A decibel figure with its unit."""
    if value is None:
        return UNMEASURED
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def bits_text(value: float | None) -> str:
    """Bits per element, without the unit."""
    return UNMEASURED if value is None else f"{value:.2f}"


def cosine_text(value: float | None) -> str:
    """A cosine to five places, rounded away from 1 so that only 1 shows as 1."""
    return UNMEASURED if value is None else f"{math.floor(value * 1e5 + 1e-6) / 1e5:.5f}"


def figure_text(value: float | None) -> str:
    """A figure of any size, to three significant digits."""
    return UNMEASURED if value is None else f"{value:.3g}"


def percent_text(share: float | None) -> str:
    """A share as a percentage."""
    return UNMEASURED if share is None else f"{100 * share:.1f} %"


def seconds_text(seconds: float | None) -> str:
    """A time span."""
    if seconds is None:
        return UNMEASURED
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s"


def _signed(value: float) -> str:
    """A change to one place, with a true minus sign."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value


def _shares(layers: Sequence[LayerReport], per_channel: Sequence[int]) -> tuple[Share, ...]:
    """Shares per pair of formats, where a channel of each layer counts `per_channel`."""
    counts: dict[tuple[str, str], int] = {}
    bits: dict[tuple[str, str], int] = {}
    for layer, factor in zip(layers, per_channel, strict=True):
        for segment in layer.segments:
            pair = (segment.act_format, segment.weight_format)
            counts[pair] = counts.get(pair, 0) + segment.channels * factor
            bits[pair] = segment.activation.element.bits + segment.weight.element.bits
    total = sum(counts.values()) or 1
    pairs = sorted(counts, key=lambda pair: (bits[pair], pair))
    return tuple(Share(act, weight, counts[act, weight] / total) for act, weight in pairs)


def _common(paths: list[list[str]], limit: int) -> int:
    """Number of leading parts, at most `limit`, that all paths share."""
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return min(limit, sum(1 for _ in alike))
