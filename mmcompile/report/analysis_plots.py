"""The plots of an analysis, in the look of the report's (`plots`).

Errors stand on logarithmic axes: what matters is by which factor one plan is better. No name from
a model or a file reaches matplotlib; names appear only in the tooltips that are added here,
escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from mmcompile.formats import MXFP4, MXFP6_E3M2, MXFP8, NVFP4
from mmcompile.report.analysis import (
    Analysis,
    DamageProfile,
    Layers,
    Pareto,
    ParetoPoint,
    PlanFigures,
    Stability,
    Stress,
)
from mmcompile.report.plots import (
    ACCENT,
    BAD,
    FORMAT_COLORS,
    INK,
    MUTED,
    PROFILE_MARGINS,
    PROFILE_SIZE,
    TEXT_COLORS,
    WIDE,
    _axes,
    _color,
    _draw_stacks,
    _embed,
    _figure,
    _heading,
    _nice_ticks,
    _number_layers,
    _power_text,
    _style,
    _text,
)
from mmcompile.report.summary import Share, figure_text, format_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (520, 300)
PANEL_BOX = (52, 42, 452, 226)
"""Left, bottom, width and height of a panel's axes."""
FAMILY_COLORS = (ACCENT, FORMAT_COLORS[MXFP6_E3M2.name], INK, BAD)
"""Of families of policies, in the order of `Pareto.points`; plans of one format have its own."""
STRESS_COLORS = (
    INK,
    FORMAT_COLORS[MXFP6_E3M2.name],
    FORMAT_COLORS[MXFP4.name],
    FORMAT_COLORS[NVFP4.name],
    FORMAT_COLORS[MXFP8.name],
    MUTED,
)
"""Colours of the plans in the order of `Stress.plans`."""
LEAST_ERROR = 1e-7
"""Errors below this are float32 rounding; they lie on the floor of a plot."""


@dataclass(frozen=True)
class AnalysisPlots:
    """The plots as inline SVG; None where a section is missing or has nothing to draw.

    Attributes:
        speed: error against tensor-core cost.
        bits: error against weight bits.
        order: error against predicted damage.
        stability: errors and shares of the plans from other data.
        stress: errors on all inputs.
        layers: predicted and measured share of the error by layer.
        profiles: damage of the channels of single layers.
    """

    speed: Markup | None = None
    bits: Markup | None = None
    order: Markup | None = None
    stability: Markup | None = None
    stress: Markup | None = None
    layers: Markup | None = None
    profiles: tuple[Markup, ...] = ()


def draw_analysis(analysis: Analysis, labels: dict[str, str]) -> AnalysisPlots:
    """Draws everything that the page shows.

    Args:
        analysis: the figures.
        labels: short names of the layers, for tooltips.
    """
    with _style():
        pareto, layers = analysis.pareto, analysis.layers
        return AnalysisPlots(
            speed=_against(pareto, "speed") if pareto else None,
            bits=_against(pareto, "bits") if pareto else None,
            order=_against(pareto, "damage") if pareto else None,
            stability=_stability(analysis.stability) if analysis.stability else None,
            stress=_stress(analysis.stress) if analysis.stress else None,
            layers=_layers(layers, labels) if layers else None,
            profiles=tuple(
                _profile(profile, f"damage{index}")
                for index, profile in enumerate(layers.profiles if layers else ())
            ),
        )


def _against(pareto: Pareto, what: str) -> Markup | None:
    """Errors of all plans against their tensor-core cost, weight bits or predicted damage."""
    titles = {
        "speed": "Mean tensor-core cost (FP4 1, everything else 2)",
        "bits": "Bits per weight, scales and padding included",
        "damage": "Predicted damage D",
    }
    points = [
        (point, x, y)
        for point in pareto.points
        if (x := _place(point.plan, what)) is not None and (y := _log(point.plan.error)) is not None
    ]
    if not points:
        return None
    figure = _figure(*PANEL)
    axes = _axes(figure, PANEL_BOX)
    _log_axis(axes, [y for _, _, y in points], "y")
    places = [x for _, x, _ in points]
    if what == "damage":
        _log_axis(axes, places, "x")
    else:
        room = 0.05 * max(max(places) - min(places), 0.1)
        low, high = min(places) - room, max(places) + room
        axes.set_xlim(low, high)
        ticks = _inner_ticks(low, high)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="both")
    _heading(figure, PANEL_BOX[0], PANEL[1] - 28, "Error: 1 − mean cosine, worst output")
    middle = PANEL_BOX[0] + PANEL_BOX[2] / 2
    _text(figure, middle, 8, titles[what], color=MUTED, ha="center")
    if what != "damage":
        on_front = [p for p in points if _on_front(p[0], what)]
        _draw_front(axes, sorted((x, y) for _, x, y in on_front))
    families = dict.fromkeys(point.plan.family for point, *_ in points)
    for family, color in zip(families, itertools.cycle(FAMILY_COLORS), strict=False):
        members = [p for p in points if p[0].plan.family == family]
        _draw_family(axes, members, color, what)
    label = f"Error of {len(points)} plans against: {titles[what]}. The table has the figures."
    return _embed(figure, f"pareto-{what}", label, _targets(figure, axes, points))


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """The border of what is reached: a stair through the points on the front."""
    if front:
        axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1, alpha=0.7)


def _draw_family(
    axes: Axes, points: Sequence[tuple[ParetoPoint, float, float]], color: str, what: str
) -> None:
    """The plans of one family: joined by a line, or named where each is a format of its own."""
    formats = all(point.plan.name in FORMAT_COLORS for point, *_ in points)
    if not formats and what != "damage":
        line = sorted((x, y) for _, x, y in points)
        axes.plot(*zip(*line, strict=True), "-", color=color, linewidth=1.6, alpha=0.55)
    for point, x, y in points:
        own = _color(point.plan.name) if formats else color
        size = 9 if point.chosen else 6.5
        edge = INK if point.chosen else own
        axes.plot([x], [y], "o", color=own, markersize=size, mew=2 if point.chosen else 0, mec=edge)
        if formats and what != "damage":
            near_end = x > np.mean(axes.get_xlim())
            axes.annotate(
                point.plan.name,
                (x, y),
                xytext=(-8 if near_end else 8, 5),
                textcoords="offset pixels",
                ha="right" if near_end else "left",
                color=TEXT_COLORS.get(point.plan.name, MUTED),
                parse_math=False,
            )


def _targets(
    figure: Figure, axes: Axes, points: Sequence[tuple[ParetoPoint, float, float]]
) -> Markup:
    """Tooltips over the points."""
    height = figure.get_size_inches()[1] * 72
    found = []
    for point, x, y in points:
        left, bottom = axes.transData.transform((x, y))
        plan = point.plan
        title = (
            f"{plan.name}{' (chosen)' if point.chosen else ''}\nerror {figure_text(plan.error)}"
            f"\ncost {plan.speed_cost:.3f}, {plan.weight_bits:.2f} bits"
        )
        found.append(
            Markup(
                '<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="9"><title>{}</title></circle>'
            ).format(left, height - bottom, title)
        )
    return Markup("").join(found)


def _stability(stability: Stability) -> Markup | None:
    """Errors of the chosen plan (number 0) and its variants above their shares of formats."""
    plans = [stability.chosen, *(variant.plan for variant in stability.variants)]
    figure = _figure(WIDE, 290)
    left, right, bottom = 52, 12, 24
    width = WIDE - left - right
    shares = _axes(figure, (left, bottom, width, 84))
    _heading(figure, left, bottom + 84, "Share of the multiplications")
    shares.set_ylim(0, 1)
    shares.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    stacks = [
        [Share(s.act_format, s.weight_format, s.share) for s in plan.shares] for plan in plans
    ]
    _draw_stacks(shares, stacks)
    slots = max(len(plans), 8)
    numbers = list(range(1, len(plans) + 1))
    shares.set_xlim(0.5, slots + 0.5)
    shares.set_xticks(numbers, ["chosen", *(str(number) for number in numbers[:-1])])
    known = [(n, plan.error) for n, plan in enumerate(plans, 1) if plan.error is not None]
    if known:
        errors = _axes(figure, (left, bottom + 130, width, 90))
        _heading(figure, left, bottom + 220, "Error on the same held-back inputs")
        errors.set_xlim(0.5, slots + 0.5)
        errors.set_xticks([])
        ticks = _nice_ticks(0.0, max(error for _, error in known))
        errors.set_ylim(0, ticks[-1])
        errors.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        errors.grid(axis="y")
        errors.bar([n for n, _ in known], [error for _, error in known], 0.82, color=ACCENT)
        if (line := stability.chosen.error) is not None:
            errors.axhline(line, color=INK, linewidth=1, linestyle=(0, (2, 1.5)))
    label = f"Errors and formats of the chosen plan and {len(plans) - 1} plans from other data."
    return _embed(figure, "stability", label)


def _stress(stress: Stress) -> Markup | None:
    """Bars of every plan's error, in groups by input."""
    errors = np.array([plan.errors for plan in stress.plans], np.float64)
    known = errors[np.isfinite(errors)]
    if not known.size:
        return None
    figure = _figure(WIDE, 280)
    left, right, bottom, top = 52, 12, 42, 50
    axes = _axes(figure, (left, bottom, WIDE - left - right, 280 - bottom - top))
    floor, _ = _log_axis(axes, [value for v in known if (value := _log(v)) is not None], "y")
    axes.grid(axis="y")
    width = 0.8 / len(stress.plans)
    for number, row in enumerate(errors):
        color = STRESS_COLORS[number % len(STRESS_COLORS)]
        places = [i - 0.4 + (number + 0.5) * width for i in range(row.size)]
        heights = [(_log(value) or floor) - floor if np.isfinite(value) else 0.0 for value in row]
        axes.bar(places, heights, width * 0.9, bottom=floor, color=color)
    slots = max(len(stress.inputs), 4)
    axes.set_xlim(-0.5, slots - 0.5)
    names, foreign = [], 0
    for given in stress.inputs:
        foreign += given.kind == "other"
        names.append(f"other data {foreign}" if given.kind == "other" else given.name)
    axes.set_xticks(range(len(names)), names, parse_math=False)
    _heading(figure, left, 280 - 22, "Error: 1 − mean cosine, worst output")
    for number, plan in enumerate(stress.plans):
        x = left + 150 * number
        _text(figure, x, 280 - 36, "■", color=STRESS_COLORS[number % len(STRESS_COLORS)])
        _text(figure, x + 14, 280 - 36, plan.plan, color=MUTED)
    label = "Errors of every plan by kind of input; the table has the figures."
    return _embed(figure, "stress", label)


def _layers(layers: Layers, labels: dict[str, str]) -> Markup:
    """Share of the error by layer, predicted and measured alone, above the output's SQNR."""
    figure = _figure(WIDE, 340)
    left, right, bottom, height = 52, 12, 24, 150
    width = WIDE - left - right
    count = len(layers.layers)
    slots = max(count, 16)
    shares = _axes(figure, (left, bottom + 136, width, height))
    _heading(figure, left, bottom + 136 + height, "Share of the error: predicted, and measured")
    _text(figure, left + 330, bottom + 145 + height, "■", color=ACCENT)
    _text(figure, left + 344, bottom + 145 + height, "predicted damage", color=MUTED)
    _text(figure, left + 460, bottom + 145 + height, "■", color=INK)
    _text(figure, left + 474, bottom + 145 + height, "measured with this layer alone", color=MUTED)
    whole = layers.sum_of_errors_alone or 1.0
    predicted = [layer.damage_share for layer in layers.layers]
    measured = [(layer.error_alone or 0.0) / whole for layer in layers.layers]
    numbers = np.arange(1, count + 1)
    shares.bar(numbers - 0.21, predicted, 0.38, color=ACCENT)
    shares.bar(numbers + 0.21, measured, 0.38, color=INK)
    ticks = _nice_ticks(0.0, max(*predicted, *measured, 1e-3))
    shares.set_ylim(0, ticks[-1])
    shares.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    shares.set_xlim(0.5, slots + 0.5)
    shares.set_xticks([])
    shares.grid(axis="y")
    _draw_sqnr(figure, (left, bottom, width, 86), [x.output_sqnr_db for x in layers.layers], slots)
    step = width / slots
    targets = [
        Markup(
            '<a href="#row-{}" tabindex="-1"><rect class="hit" x="{:.1f}" y="{}" width="{:.1f}"'
            ' height="{}"><title>{}</title></rect></a>'
        ).format(
            number,
            left + (number - 1) * step,
            340 - bottom - 136 - height,
            step,
            136 + height,
            f"{number}  {labels[layer.name]}\npredicted {100 * layer.damage_share:.1f} %"
            f"\nerror alone {figure_text(layer.error_alone)}",
        )
        for number, layer in enumerate(layers.layers, start=1)
    ]
    label = f"Share of the error and output SQNR of {count} layers; the table has the figures."
    return _embed(figure, "layers-error", label, Markup("").join(targets))


def _draw_sqnr(
    figure: Figure, box: tuple[int, int, int, int], values: Sequence[float | None], slots: int
) -> None:
    axes = _axes(figure, box)
    _heading(figure, box[0], box[1] + box[3], "SQNR of the layer's own output in dB")
    figures = np.array(values, np.float64)
    known = figures[np.isfinite(figures)]
    ticks = _nice_ticks(float(known.min()), float(known.max())) if known.size else [0.0, 1.0]
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="y")
    _number_layers(axes, len(values), slots)
    axes.plot(np.arange(1, len(values) + 1), figures, "o", color=ACCENT, markersize=5, mew=0)


def _profile(profile: DamageProfile, key: str) -> Markup:
    """The sorted damage of a layer's channels, class by class."""
    width, height = PROFILE_SIZE
    left, right, bottom, top = PROFILE_MARGINS
    figure = _figure(width, height)
    axes = _axes(figure, (left, bottom, width - left - right, height - bottom - top))
    positive = [
        math.log10(value) for segment in profile.segments for value in segment.damage if value > 0
    ]
    high = max(positive, default=0.0)
    shown = [max(value, high - 8) for value in positive] or [-1.0, 0.0]
    low, high = _log_axis(axes, shown, "y")
    axes.grid(axis="y")
    start, borders = 0, [0]
    for segment in profile.segments:
        damage = np.array(segment.damage)
        with np.errstate(divide="ignore"):
            y = np.clip(np.log10(damage), low, high)
        x = start + np.linspace(0, segment.channels, damage.size)
        color = _color(segment.act_format)
        axes.fill_between(x, low, y, facecolor=color, alpha=0.3, linewidth=0)
        axes.plot(x, y, color=color, linewidth=1.6)
        start += segment.channels
        borders.append(start)
    axes.set_xlim(0, max(1, start))
    for border in borders[1:-1]:
        axes.axvline(border, ymax=1.03, color=MUTED, linewidth=0.9, clip_on=False)
    axes.set_xticks([0, start], ["0", str(start)])
    _name_classes(figure, profile, borders)
    label = f"Damage of {start} channels, sorted inside each class."
    return _embed(figure, key, label)


def _name_classes(figure: Figure, profile: DamageProfile, borders: Sequence[int]) -> None:
    """Format names over the classes that are wide enough for them."""
    left, right, _, top = PROFILE_MARGINS
    scale = (PROFILE_SIZE[0] - left - right) / max(1, borders[-1])
    for segment, begin, end in zip(profile.segments, borders, borders[1:], strict=False):
        name = format_pair(segment.act_format, segment.weight_format)
        if (end - begin) * scale >= 7.5 * len(name):
            x = left + scale * (begin + end) / 2
            color = TEXT_COLORS.get(segment.act_format, MUTED)
            _text(
                figure,
                x,
                PROFILE_SIZE[1] - top + 7,
                name,
                ha="center",
                color=color,
                fontweight="bold",
            )


def _place(plan: PlanFigures, what: str) -> float | None:
    """Where a plan stands on the level axis."""
    if what == "damage":
        return _log(plan.predicted_damage, least=0.0)
    return plan.speed_cost if what == "speed" else plan.weight_bits


def _on_front(point: ParetoPoint, what: str) -> bool:
    return point.on_speed_front if what == "speed" else point.on_bits_front


def _inner_ticks(low: float, high: float) -> list[float]:
    """Round numbers within an interval, evenly spaced, at most seven."""
    power = 10.0 ** math.floor(math.log10((high - low) / 7))
    step = next(f * power for f in (1, 2, 5, 10) if (high - low) / (f * power) <= 7)
    return [round(step * k, 6) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log(value: float | None, least: float = LEAST_ERROR) -> float | None:
    """The common logarithm; None for what is missing or has none."""
    if value is None or not math.isfinite(value) or max(value, least) <= 0:
        return None
    return math.log10(max(value, least))


def _log_axis(axes: Axes, logarithms: Sequence[float], side: str) -> tuple[float, float]:
    """Limits and ticks of an axis that shows logarithms as the numbers that they are of."""
    low, high = min(logarithms) - 0.08, max(logarithms) + 0.08
    if high - low < 0.5:
        low, high = low - 0.2, high + 0.2
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = math.ceil(len(decades) / 6)
    ticks = [
        (k + math.log10(step), f"{step * 10.0**k:g}" if len(steps) > 1 else _power_text(k))
        for k in decades[::every]
        for step in steps
        if low <= k + math.log10(step) <= high
    ]
    values, texts = [value for value, _ in ticks], [text for _, text in ticks]
    if side == "x":
        axes.set_xlim(low, high)
        axes.set_xticks(values, texts)
    else:
        axes.set_ylim(low, high)
        axes.set_yticks(values, texts)
    return low, high
