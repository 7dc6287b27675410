"""A benchmark as one self-contained HTML page: what it is, its plots, its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmcompile.formats import MXFP4, MXFP6_E3M2, MXFP8, NVFP4
from mmcompile.report.page import render_page
from mmcompile.report.plots import (
    ACCENT,
    FORMAT_COLORS,
    INK,
    MUTED,
    RULE,
    _axes,
    _embed,
    _figure,
    _heading,
    _nice_ticks,
    _text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1080, 250
LEFT, RIGHT, BOTTOM, TOP = 46, 16, 28, 50
LEGEND_STEP = 96
"""Pixels per entry of a legend."""
COLORS = {
    "FP16": MUTED,
    "FP8": ACCENT,
    "MXFP8": FORMAT_COLORS[MXFP8.name],
    "MXFP6": FORMAT_COLORS[MXFP6_E3M2.name],
    "NVFP4": FORMAT_COLORS[NVFP4.name],
    "MXFP4": FORMAT_COLORS[MXFP4.name],
    "MicroMix": INK,
}
_OTHERS = (*FORMAT_COLORS.values(), ACCENT, INK, MUTED)


@dataclass(frozen=True)
class Chart:
    """Bars in groups.

    Attributes:
        title: what it shows, with the unit.
        groups: labels below the groups.
        series: name and one value per group; None leaves a gap.
    """

    title: str
    groups: Sequence[str]
    series: Sequence[tuple[str, Sequence[float | None]]]


@dataclass(frozen=True)
class PageTable:
    """A table; the first `text_columns` hold text, others figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class BenchPage:
    """What the page shows.

    Attributes:
        kind: `modelled`, `measured` or `rehearsed`; stands beside the title.
        title: of the page.
        notice: how the figures came about.
        facts: what they hold for.
        charts: plots.
        tables: tables.
        notes: what else is to be known.
    """

    kind: str
    title: str
    notice: str
    facts: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    tables: Sequence[PageTable]
    notes: Sequence[str]


def render_bench(page: BenchPage) -> str:
    """The page as an HTML document that needs no other file and makes no request."""
    plots = [draw_chart(chart, f"chart{i}") for i, chart in enumerate(page.charts)]
    return render_page("bench.html.jinja", page=page, plots=plots)


def draw_chart(chart: Chart, key: str) -> Markup:
    """The chart as inline SVG; names of series appear in it, so they must come from mmcompile."""
    figure = _figure(WIDTH, HEIGHT)
    axes = _axes(figure, (LEFT, BOTTOM, WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP))
    found = [value for _, values in chart.series for value in values if value is not None]
    ticks = _nice_ticks(0.0, max(found, default=1.0))
    axes.set_ylim(0, ticks[-1])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.tick_params(labelcolor=MUTED)
    axes.spines["bottom"].set_color(RULE)
    width = 0.8 / max(len(chart.series), 1)
    for number, (name, values) in enumerate(chart.series):
        places = [i - 0.4 + (number + 0.5) * width for i in range(len(values))]
        axes.bar(
            places, [value or 0.0 for value in values], width * 0.9, color=_color(name, number)
        )
    axes.set_xticks(range(len(chart.groups)), list(chart.groups), parse_math=False)
    axes.set_xlim(-0.5, max(len(chart.groups), 1) - 0.5)
    _heading(figure, LEFT, HEIGHT - 22, chart.title)
    _legend(figure, chart)
    label = f"{chart.title}: " + ", ".join(name for name, _ in chart.series)
    return _embed(figure, key, label)


def _legend(figure: Figure, chart: Chart) -> None:
    for number, (name, _) in enumerate(chart.series):
        left = LEFT + number * LEGEND_STEP
        _text(figure, left, HEIGHT - 36, "■", color=_color(name, number))
        _text(figure, left + 14, HEIGHT - 36, name, color=MUTED)


def _color(name: str, number: int) -> str:
    return COLORS.get(name) or _OTHERS[number % len(_OTHERS)]
