"""The analysis as one self-contained HTML page, in the look of the report."""

from __future__ import annotations

from collections.abc import Sequence

from mmcompile.formats import BLOCK_FORMATS
from mmcompile.report import summary
from mmcompile.report.analysis import Analysis, FormatShare, LayerFigures
from mmcompile.report.page import render_page
from mmcompile.report.summary import Share


def render_analysis(analysis: Analysis) -> str:
    """The analysis as an HTML document that needs no other file and makes no request."""
    from mmcompile.report.analysis_plots import draw_analysis

    labels = layer_labels(analysis.layers.layers if analysis.layers else ())
    return render_page(
        "analysis.html.jinja",
        {"factor": factor_text, "bars": _bars},
        analysis=analysis,
        plots=draw_analysis(analysis, labels),
        labels=labels,
        formats=list(BLOCK_FORMATS),
        order=order_verdict(analysis.pareto.rank_correlation) if analysis.pareto else "",
        total_seconds=sum(stage.seconds for stage in analysis.stages),
    )


def layer_labels(layers: Sequence[LayerFigures]) -> dict[str, str]:
    """Short printable names of layers by their names."""
    return summary.short_labels([layer.name for layer in layers])


def factor_text(error: float | None, reference: float | None) -> str:
    """How many times another error an error is, such as `1.8×`."""
    if error is None or not reference:
        return summary.UNMEASURED
    return f"{error / reference:.3g}×"


def order_verdict(correlation: float | None) -> str:
    """Spearman's ρ of predicted damage and measured error, in words."""
    if correlation is None:
        return "too few plans to say whether predicted damage orders them as measured errors do"
    if correlation >= 0.9:
        how = "orders the plans as measured errors do, but for neighbours"
    elif correlation >= 0.6:
        how = "tells good plans from bad ones, but not similar ones from each other"
    else:
        how = "does not order these plans: choose by the measured errors"
    return f"predicted damage {how} (Spearman's ρ {correlation:.2f})"


def _bars(shares: Sequence[FormatShare]) -> list[Share]:
    """Shares as the report's bars are made of."""
    return [Share(share.act_format, share.weight_format, share.share) for share in shares]
