"""Renders a template of this package as one self-contained HTML page.

The page needs no other file and makes no request: style and script stand in it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup

from mmcompile.formats import BLOCK_FORMATS
from mmcompile.report import summary
from mmcompile.report.summary import Share

FOLDER = Path(__file__).parent


def render_page(
    template: str, filters: dict[str, Callable[..., object]] | None = None, **values: object
) -> str:
    """A template with the package's style and script.

    Args:
        template: name of a file in this folder.
        filters: beside `FILTERS`.
        values: what the template shows.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, **(filters or {}))
    script = _asset("script.js")
    return environment.get_template(template).render(
        **values,
        script=script,
        style=_asset("style.css"),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _asset(name: str) -> Markup:
    """A file of this package that belongs in the page as it is."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S704


def _plain(value: object) -> object:
    """What a template writes, without control characters; autoescape follows."""
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
"""How templates write figures."""
