"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mmcompile.formats import BLOCK_FORMATS
from mmcompile.report import summary
from mmcompile.report.model import LayerError, LayerReport, OutputReport, Report
from mmcompile.report.summary import Share

DETAILED_LAYERS = 24
MOST_DETAILED = 60
"""Up to this many layers, each gets its plot; beyond, the worst `DETAILED_LAYERS` do."""
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class LayerView:
    """A layer as the page shows it.

    Attributes:
        number: its place in the graph, from 1; the id of its row and its details.
        label: short name.
        layer: its figures.
        shares: its split.
        inside: its error inside the compiled model, or None.
        detailed: True where the page has its channel profile.
    """

    number: int
    label: str
    layer: LayerReport
    shares: tuple[Share, ...]
    inside: LayerError | None
    detailed: bool


def render_html(report: Report) -> str:
    """The report as an HTML document that needs no other file and makes no request."""
    import jinja2

    from mmcompile.report.plots import draw_plots

    labels = summary.layer_labels(report.layers)
    views = _views(report, labels)
    shown = [view for view in views if view.detailed]
    plots = None
    if views:
        profiled = [view.layer for view in shown]
        plots = draw_plots(report.layers, labels, profiled, report.verification)
    totals = summary.report_totals(report)
    script = _asset("script.js")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("template.html.jinja").render(
        report=report,
        totals=totals,
        change=summary.change_text(report.model.bytes_before, report.model.bytes_after),
        views=views,
        profiles=list(zip(shown, plots.profiles, strict=True)) if plots else [],
        plots=plots,
        worst=next((view for view in views if view.layer is totals.worst), None),
        worst_output=_worst_output(report),
        verdict=summary.verdict(report.verification),
        reasons=summary.reason_groups(report.left_alone),
        rounded=summary.weights_text(report),
        total_seconds=sum(stage.seconds for stage in report.stages),
        script=script,
        style=_asset("style.css"),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _views(report: Report, labels: dict[str, str]) -> list[LayerView]:
    detailed = summary.worst_first(report.layers)
    if len(detailed) > MOST_DETAILED:
        detailed = detailed[:DETAILED_LAYERS]
    names = {layer.name for layer in detailed}
    inside = summary.layer_errors(report.layers, report.verification)
    return [
        LayerView(
            number=number,
            label=labels[layer.name],
            layer=layer,
            shares=summary.layer_shares(layer),
            inside=inside.get(layer.name),
            detailed=layer.name in names,
        )
        for number, layer in enumerate(report.layers, start=1)
    ]


def _worst_output(report: Report) -> OutputReport | None:
    return summary.worst_output(report.verification.outputs) if report.verification else None


def _asset(name: str) -> Markup:
    """A file of this package that belongs in the page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S704


def _plain(value: object) -> object:
    """What the template writes, without control characters; autoescape follows."""
    return summary.plain_text(value) if type(value) is str else value


def _paint(share: Share) -> str:
    """CSS paint of a pair of formats: its colour, or stripes of both sides' colours."""
    act, weight = (
        f"var(--{name})" if name in BLOCK_FORMATS else "var(--muted)"
        for name in (share.act_format, share.weight_format)
    )
    if act == weight:
        return act
    return f"repeating-linear-gradient(135deg,{act} 0 5px,{weight} 5px 8px)"


FILTERS: dict[str, Callable[..., str]] = {
    "size": summary.bytes_text,
    "count": summary.count_text,
    "decibel": summary.decibel_text,
    "bits": summary.bits_text,
    "cosine": summary.cosine_text,
    "figure": summary.figure_text,
    "percent": summary.percent_text,
    "time": summary.seconds_text,
    "shape": summary.shape_text,
    "split": summary.split_text,
    "rounding": summary.rounding_text,
    "gains": summary.gains_text,
    "file_name": summary.file_name,
    "paint": _paint,
}
"""How the template writes figures."""
