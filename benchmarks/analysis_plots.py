"""Writes the plots of an analysis as SVG files of their own, for docs/measurements.

    python -m benchmarks.analysis_plots analysis.json docs/measurements/analysis

The plots are those of analysis.html (`mmcompile analyze`), in its light colours.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mmcompile.report.analysis import load_analysis
from mmcompile.report.analysis_page import layer_labels
from mmcompile.report.analysis_plots import draw_analysis
from mmcompile.report.page import FOLDER

NAMES = ("speed", "bits", "order", "stability", "stress", "layers")
HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("analysis", type=Path, help="analysis.json of mmcompile analyze")
    parser.add_argument("folder", type=Path, help="where the .svg files go")
    arguments = parser.parse_args()
    analysis = load_analysis(arguments.analysis)
    plots = draw_analysis(analysis, layer_labels(analysis.layers.layers if analysis.layers else ()))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        drawing = getattr(plots, name)
        if drawing is not None:
            path = arguments.folder / f"{name}.svg"
            path.write_text(standalone(str(drawing)), encoding="utf-8")
            print(f"wrote {path}")


def standalone(drawing: str) -> str:
    """An inline SVG as a document: name spaces, the page's light colours, a ground of its own."""
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    colors = re.search(r":root\s*{[^}]*}", style)
    assert colors is not None
    rules = f"{colors[0]} svg {{ background: var(--page); font: 12px sans-serif; }}"
    head, rest = drawing.split(">", 1)
    return f"{head.replace('<svg ', HEAD, 1)}><style>{rules}</style>{rest}\n"


if __name__ == "__main__":
    main()
