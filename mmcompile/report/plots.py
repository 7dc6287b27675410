"""The report's plots: matplotlib figures made into SVG that takes its colours from the page.

Figures are drawn in placeholder colours that become CSS variables, and in the page's font, so one
drawing serves the light and the dark scheme. No name from a model reaches matplotlib (it would
read `$` as mathematics); names appear only in the tooltips that are added here, escaped.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from mmcompile.formats import BLOCK_FORMATS
from mmcompile.report.model import EXACT_DB, LayerReport, VerificationReport
from mmcompile.report.summary import (
    Share,
    decibel_text,
    format_pair,
    layer_errors,
    layer_shares,
    split_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, BAD = "#e00001", "#e00002", "#e00003", "#e00004", "#e00005"
FORMAT_COLORS = {name: f"#e0001{number}" for number, name in enumerate(BLOCK_FORMATS)}
TEXT_COLORS = {name: color.replace("#e000", "#e001") for name, color in FORMAT_COLORS.items()}
CSS_COLORS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    BAD: "var(--bad)",
    **{color: f"var(--{name})" for name, color in FORMAT_COLORS.items()},
    **{
        color: f"color-mix(in srgb, var(--{name}) 70%, var(--ink))"
        for name, color in TEXT_COLORS.items()
    },
}
"""What each placeholder colour becomes; style.css defines the variables."""

FONT_SIZE = 11
"""Size for the layout; style.css sets the page's."""
WIDE = 1080
DEPTH_HEIGHT = 210
PROFILE_SIZE = (520, 190)
PROFILE_MARGINS = (46, 16, 22, 24)
"""Left, right, bottom, top."""
PROFILE_POINTS = 256
"""Most steps of a drawn profile: about two pixels each."""
PROFILE_DECADES = 6
"""Most decades of magnitude that a profile shows; smaller values lie on its floor."""
FEWEST_SLOTS = 16
"""Layers that the overview has room for at least, so that a bar is never a wide block."""

NOTHING = Markup("")

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plots:
    """The plots of one report as inline SVG.

    Attributes:
        overview: output SQNR and split of every layer.
        depth: error along the network, or None where verification compared no layers.
        profiles: channel magnitudes of the layers asked for; None where there are none.
    """

    overview: Markup
    depth: Markup | None
    profiles: tuple[Markup | None, ...]


def draw_plots(
    layers: Sequence[LayerReport],
    labels: dict[str, str],
    detailed: Sequence[LayerReport],
    verification: VerificationReport | None,
) -> Plots:
    """Draws everything that a page shows.

    Args:
        layers: all layers, in graph order; at least one.
        labels: short names of the layers, for tooltips.
        detailed: the layers whose channel profile is drawn.
        verification: the comparison with the original model, or None.
    """
    with _style():
        axes = _profile_axes()  # one for all: making them is half of a plot's time
        depth = verification is not None and len(verification.layers) > 1
        return Plots(
            overview=_overview(layers, labels),
            depth=_depth(layers, verification) if verification is not None and depth else None,
            profiles=tuple(
                _profile(axes, layer, f"profile{i}") for i, layer in enumerate(detailed)
            ),
        )


def _style() -> AbstractContextManager[None]:
    """How every plot of the project looks."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mmcompile",
        "path.simplify": True,
        "font.size": FONT_SIZE,
        "text.color": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.edgecolor": RULE,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "hatch.linewidth": 3.0,
    }
    return mpl.rc_context(settings)


def _overview(layers: Sequence[LayerReport], labels: dict[str, str]) -> Markup:
    """Two panels over the layer number: output SQNR above, stacked shares below."""
    measured = any(layer.output_sqnr_db is not None for layer in layers)
    height = 330 if measured else 158
    figure = _figure(WIDE, height)
    left, right, bottom = 44, 12, 24
    bars = _axes(figure, (left, bottom, WIDE - left - right, 112))
    slots = max(len(layers), FEWEST_SLOTS)
    _heading(figure, left, bottom + 112, "Share of the input channels")
    bars.set_ylim(0, 1)
    bars.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    _draw_stacks(bars, [layer_shares(layer) for layer in layers])
    top = bottom + 112
    if measured:
        errors = _axes(figure, (left, bottom + 160, WIDE - left - right, 126))
        top = bottom + 160 + 126
        _heading(figure, left, top, "Output SQNR in dB, higher is better")
        errors.set_xlim(0.5, slots + 0.5)
        errors.set_xticks([])
        _draw_sqnr(errors, [layer.output_sqnr_db for layer in layers], ACCENT, mark_worst=True)
    _number_layers(bars, len(layers), slots)
    label = f"Output SQNR and split of {len(layers)} layers; the table below has the figures."
    step = (WIDE - left - right) / slots
    targets = [
        Markup(
            '<a href="#row-{}" tabindex="-1"><rect class="hit" x="{:.1f}" y="{}" width="{:.1f}"'
            ' height="{}"><title>{}</title></rect></a>'
        ).format(
            number,
            left + (number - 1) * step,
            height - top,
            step,
            top - bottom,
            f"{number}  {labels[layer.name]}\n{split_text(layer.segments)}"
            f"\noutput SQNR {decibel_text(layer.output_sqnr_db)}",
        )
        for number, layer in enumerate(layers, start=1)
    ]
    return _embed(figure, "overview", label, Markup("").join(targets))


def _draw_stacks(axes: Axes, stacks: Sequence[Sequence[Share]]) -> None:
    """One compound path per pair of formats, bars from the first segment upwards."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rectangles: dict[tuple[str, str], list[Points]] = {}
    half = 0.41 if len(stacks) <= 80 else 0.46
    for number, stack in enumerate(stacks, start=1):
        base = 0.0
        for part in stack:
            x0, x1, y0, y1 = number - half, number + half, base, base + part.share
            corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
            rectangles.setdefault((part.act_format, part.weight_format), []).append(corners)
            base += part.share
    for (act, weight), polygons in rectangles.items():
        path = Path.make_compound_path_from_polys(np.stack(polygons))
        patch = PathPatch(path, linewidth=0, clip_on=False, facecolor=_color(act))
        if act != weight:
            patch.set_hatch("//")
            patch.set_edgecolor(_color(weight))
        axes.add_patch(patch)


def _draw_sqnr(
    axes: Axes, values: Sequence[float | None], color: str, mark_worst: bool = False
) -> None:
    """Points joined by a thin line over the layer number; an exact layer lies on the top edge."""
    figures = np.array(values, dtype=np.float64)
    inside = figures[np.abs(figures) < EXACT_DB]
    low, high = (inside.min(), inside.max()) if inside.size else (0.0, 1.0)
    ticks = _nice_ticks(low, high)
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="y")
    numbers = np.arange(1, figures.size + 1)
    shown = np.clip(figures, ticks[0], ticks[-1])
    size = 5.0 if figures.size <= 80 else 3.5
    axes.plot(numbers, shown, "-", color=color, linewidth=1, alpha=0.45, clip_on=False)
    axes.plot(numbers, shown, "o", color=color, markersize=size, mew=0, clip_on=False)
    if mark_worst and inside.size > 1:
        worst = int(np.nanargmin(figures))
        axes.plot([worst + 1], [shown[worst]], "o", color=BAD, markersize=size + 2, clip_on=False)
        near_end = worst > 0.8 * axes.get_xlim()[1]
        axes.annotate(
            f"layer {worst + 1}: {figures[worst]:.1f} dB",
            (worst + 1, shown[worst]),
            xytext=(-9 if near_end else 9, 0),
            textcoords="offset pixels",
            ha="right" if near_end else "left",
            va="center",
            color=BAD,
            fontweight="bold",
        )


def _depth(layers: Sequence[LayerReport], verification: VerificationReport) -> Markup:
    """Error inside the compiled model beside each layer's own error."""
    inside = layer_errors(layers, verification)
    own = [layer.output_sqnr_db for layer in layers]
    whole = [inside[x.name].sqnr_db if x.name in inside else None for x in layers]
    figure = _figure(WIDE, DEPTH_HEIGHT)
    left, right, bottom = 44, 12, 24
    axes = _axes(figure, (left, bottom, WIDE - left - right, DEPTH_HEIGHT - bottom - 24))
    _heading(figure, left, DEPTH_HEIGHT - 24, "SQNR of the layer's output in dB")
    slots = max(len(layers), FEWEST_SLOTS)
    _number_layers(axes, len(layers), slots)
    known = [x for x in (*own, *whole) if x is not None and abs(x) < EXACT_DB] or [0.0, 1.0]
    ticks = _nice_ticks(min(known), max(known))
    _draw_sqnr(axes, own, MUTED)
    _draw_sqnr(axes, whole, ACCENT)
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    bad = [i for i, layer in enumerate(layers) if verification.first_bad_layer in layer.nodes]
    for index in bad:
        axes.axvline(index + 1, color=BAD, linewidth=1.5, clip_on=False)
    label = "SQNR of each layer's output, alone and inside the compiled model, by layer number."
    return _embed(figure, "depth", label)


def _profile_axes() -> Axes:
    width, height = PROFILE_SIZE
    left, right, bottom, top = PROFILE_MARGINS
    axes = _axes(
        _figure(width, height), (left, bottom, width - left - right, height - bottom - top)
    )
    axes.grid(axis="y")
    return axes


def _profile(axes: Axes, layer: LayerReport, key: str) -> Markup | None:
    """Channel magnitudes of one layer in the chosen order, coloured by segment.

    Args:
        axes: the axes of `_profile_axes`, with or without an earlier profile.
        layer: the layer.
        key: prefix of the plot's ids.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    for artist in [*axes.lines, *axes.collections, *figure.texts]:
        artist.remove()
    factor = max(1, math.ceil(len(layer.channel_max) / PROFILE_POINTS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step without any figure
        largest: Points = np.nanmax(_steps(layer.channel_max, factor), axis=1)
        mean: Points = np.nanmean(_steps(layer.channel_mean, factor), axis=1)
    positive = largest[np.isfinite(largest) & (largest > 0)]
    if positive.size == 0 or mean.size != largest.size:
        return None
    low, high = _log_range(np.concatenate([positive, mean[np.isfinite(mean) & (mean > 0)]]))
    channels = max(layer.padded_channels, 1)
    axes.set_xlim(0, channels)
    axes.set_ylim(low, high)
    decades = range(math.ceil(low), math.floor(high) + 1, math.ceil((high - low) / 5))
    axes.set_yticks(list(decades), [_power_text(exponent) for exponent in decades])
    step = layer.channel_step * factor
    starts = np.arange(largest.size) * step
    borders = [0, *np.cumsum([segment.channels for segment in layer.segments]).tolist()]
    max_log, mean_log = _log_within(largest, low, high), _log_within(mean, low, high)
    for segment, begin, end in zip(layer.segments, borders, borders[1:], strict=False):
        x, y = _stairs(starts, max_log, step, begin, end)
        color = _color(segment.act_format)
        axes.fill_between(x, low, y, facecolor=color, alpha=0.3, linewidth=0, clip_on=False)
        axes.plot(x, y, color=color, linewidth=1.4, clip_on=False)
    middle = np.minimum(starts + step / 2, channels)
    axes.plot(middle, mean_log, color=INK, linewidth=1, linestyle=(0, (2, 1.5)), clip_on=False)
    for border in borders[1:-1]:
        axes.axvline(border, ymax=1.03, color=MUTED, linewidth=0.9, clip_on=False)
    _name_segments(figure, layer, borders)
    ticks = _spaced(borders, channels / 9)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    label = f"Magnitude of {layer.in_channels} channels: {split_text(layer.segments)}."
    return _embed(figure, key, label)


def _name_segments(figure: Figure, layer: LayerReport, borders: list[int]) -> None:
    """Format names above the plot, each over its segment or pushed beside its neighbours."""
    left, right, _, top = PROFILE_MARGINS
    width, y = PROFILE_SIZE[0] - left - right, PROFILE_SIZE[1] - top
    names = [format_pair(s.act_format, s.weight_format) for s in layer.segments]
    lengths = np.array([0.7 * FONT_SIZE * len(name) + 6 for name in names])
    if lengths.sum() > width:
        return  # the legend's colours still tell the segments apart
    centers = left + width * (np.array(borders[:-1]) + np.array(borders[1:])) / (2 * borders[-1])
    begin = centers - lengths / 2
    floor = float(left)
    for i, length in enumerate(lengths):
        begin[i] = floor = max(begin[i], floor)
        floor += length
    ceiling = float(left + width)
    for i in reversed(range(len(lengths))):
        begin[i] = ceiling = min(begin[i], ceiling - lengths[i])
    for name, segment, x, length in zip(names, layer.segments, begin, lengths, strict=True):
        color = TEXT_COLORS.get(segment.act_format, MUTED)
        _text(figure, x + length / 2, y + 7, name, ha="center", color=color, fontweight="bold")


def _figure(width: int, height: int) -> Figure:
    """A figure measured in pixels of the SVG's own coordinates."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    return figure


def _axes(figure: Figure, box: tuple[int, int, int, int]) -> Axes:
    """Axes in a box (left, bottom, width, height in pixels) with nothing but a base line."""
    width, height = figure.get_size_inches() * 72
    left, bottom, inner_width, inner_height = box
    axes = figure.add_axes(
        (left / width, bottom / height, inner_width / width, inner_height / height)
    )
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, pad=4)
    axes.set_axisbelow(True)
    return axes


def _heading(figure: Figure, left: int, top: int, text: str) -> None:
    _text(figure, left, top + 9, text, color=INK, fontweight="bold")


def _text(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches() * 72
    figure.text(x / width, y / height, text, parse_math=False, **style)


def _number_layers(axes: Axes, count: int, slots: int) -> None:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, count) if count / step <= 32)
    ticks = [1, *range(step, count + 1, step)] if step > 1 else list(range(1, count + 1))
    axes.set_xlim(0.5, slots + 0.5)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])


def _color(format_name: str) -> str:
    return FORMAT_COLORS.get(format_name, MUTED)


def _nice_ticks(low: float, high: float) -> list[float]:
    """At most five round numbers, evenly spaced, that reach from `low` to `high`."""
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / 4))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first <= 4:
            break
    return [round(step * k, 6) for k in range(first, max(last, first + 1) + 1)]


def _log_range(values: Points) -> tuple[float, float]:
    """Common logarithms that hold the values and at least two decades' ticks."""
    low, high = math.log10(values.min()) - 0.1, math.log10(values.max()) + 0.1
    if math.floor(high) - math.ceil(low) < 1:
        low, high = float(math.floor(low)), float(math.ceil(high))
    return max(low, high - PROFILE_DECADES), high


def _log_within(values: Points, low: float, high: float) -> Points:
    """Common logarithms, zeros on the floor; NaN stays and leaves a gap."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms: Points = np.log10(values).clip(low, high)
    return logarithms


def _steps(values: Sequence[float | None], factor: int) -> Points:
    """float[steps, factor]: the entries of every step; NaN where one is missing."""
    figures = np.array(values, dtype=np.float64)
    padded = np.pad(figures, (0, -figures.size % factor), constant_values=np.nan)
    steps: Points = padded.reshape(-1, factor)
    return steps


def _stairs(
    starts: npt.NDArray[np.int64], values: Points, step: int, begin: int, end: int
) -> tuple[Points, Points]:
    """The outline of the steps of one segment: every step twice, cut at the segment's borders."""
    inside = (starts < end) & (starts + step > begin)
    edges = np.stack([starts[inside], starts[inside] + step], axis=1).clip(begin, end)
    return edges.ravel().astype(np.float64), np.repeat(values[inside], 2)


def _spaced(borders: Sequence[int], distance: float) -> list[int]:
    """The first and last border, and those between them that leave room for their numbers."""
    kept = [borders[0]]
    for border in borders[1:-1]:
        if border - kept[-1] >= distance and borders[-1] - border >= distance:
            kept.append(border)
    return [*kept, borders[-1]]


def _power_text(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{exponent}"


def _embed(figure: Figure, key: str, label: str, extra: Markup = NOTHING) -> Markup:
    """A figure as inline SVG: page colours and font, unique ids, no name spaces or prolog.

    Args:
        figure: the figure.
        key: prefix of the ids that stay.
        label: what the plot shows, for readers who do not see it.
        extra: SVG to put on top.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    width, height = figure.get_size_inches() * 72
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"font-(size|family): [^;\"]*;? ?", "", body)
    body = re.sub(r' d="([ML\d.\s-]+z?\s*)"', _short_path, body)
    # In tags only: the numbers beside ticks are text.
    body = re.sub(r"\d+\.\d{3,}(?=[^<>]*>)", lambda number: f"{float(number[0]):.1f}", body)
    used = set(re.findall(r"#([\w.]+)[\")]", body))
    body = re.sub(
        r' id="([^"]*)"', lambda id_: f' id="{key}-{id_[1]}"' if id_[1] in used else "", body
    )
    body = re.sub(r"(url\(|href=\")#", rf"\1#{key}-", body)
    body = re.sub(r"#e00\d\d\d", lambda color: CSS_COLORS[color[0]], body)
    body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><").replace("<g></g>", "")
    head = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(
        width, height, label
    )
    drawing = Markup(body)  # noqa: S704  (matplotlib escapes text, and none comes from a model)
    return head + drawing + extra + Markup("</svg>")


def _short_path(found: re.Match[str]) -> str:
    """A path of straight lines to a tenth of a pixel, with H and V for level and upright ones."""
    parts = []
    last = ("", "")
    for command, x, y in re.findall(r"([ML])\s*(-?[\d.]+)\s+(-?[\d.]+)", found[1]):
        point = (f"{float(x):.1f}", f"{float(y):.1f}")
        if command == "M":
            parts.append(f"M{point[0]} {point[1]}")
        elif point[1] == last[1] and point[0] != last[0]:
            parts.append(f"H{point[0]}")
        elif point[0] == last[0] and point[1] != last[1]:
            parts.append(f"V{point[1]}")
        elif point != last:
            parts.append(f"L{point[0]} {point[1]}")
        last = point
    end = "z" if found[1].rstrip().endswith("z") else ""
    return f' d="{"".join(parts)}{end}"'
