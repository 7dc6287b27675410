"""The report as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass

from mmcompile.report import summary
from mmcompile.report.model import LayerError, LayerReport, OutputReport, Report
from mmcompile.report.page import render_page
from mmcompile.report.summary import Share

DETAILED_LAYERS = 24
MOST_DETAILED = 60
"""Up to this many layers, each gets its plot; beyond, the worst `DETAILED_LAYERS` do."""


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
    from mmcompile.report.plots import draw_plots

    labels = summary.layer_labels(report.layers)
    views = _views(report, labels)
    shown = [view for view in views if view.detailed]
    plots = None
    if views:
        profiled = [view.layer for view in shown]
        plots = draw_plots(report.layers, labels, profiled, report.verification)
    totals = summary.report_totals(report)
    return render_page(
        "template.html.jinja",
        report=report,
        totals=totals,
        change=summary.size_change(report.model),
        original=summary.original_sizes_text(report.model),
        full_size=report.model.bytes_fp16 or report.model.bytes_before,
        rest=summary.rest_text(report.rest) if report.rest else "",
        rest_alone=summary.REST_ALONE,
        views=views,
        profiles=list(zip(shown, plots.profiles, strict=True)) if plots else [],
        plots=plots,
        worst=next((view for view in views if view.layer is totals.worst), None),
        worst_output=_worst_output(report),
        verdict=summary.verdict(report.verification),
        reasons=summary.reason_groups(report.left_alone),
        rounded=summary.weights_text(report),
        total_seconds=sum(stage.seconds for stage in report.stages),
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
