"""What TensorRT-RTX builds of the stock baselines for SM120: sizes, and what their layers run.

    python -m benchmarks.baseline_engines              MiniLM, and the tests' small Llama and BERT
    python -m benchmarks.baseline_engines model.onnx   another model

No GPU and no driver is needed. Scales of activations are made up: they are constants of the engine
and change nothing of its form. The figures stand in docs/measurements/precision.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import onnx

from benchmarks import models
from benchmarks.tables import show
from mmcompile.backends.engines.expectations import expected_by_graph
from mmcompile.backends.engines.precision import counts_text, lost, realized
from mmcompile.model.passes.baselines import KINDS, write_baseline
from mmcompile.model.selection import Selection
from mmcompile.pipeline.prepare import prepare
from tests.rtx.stock import build_stock, real_builder

AMAX = 4.0
"""Stands for the largest |x| of every layer."""


def rows(title: str, model: Path) -> Iterator[list[str]]:
    """A row per baseline, and the original."""
    prepared = prepare(model, Selection())
    amax = {group.input: AMAX for group in prepared.groups}
    for kind in ("original", *KINDS):
        with tempfile.TemporaryDirectory() as folder:
            path, left = model, 0
            if kind in KINDS:
                written = write_baseline(kind, prepared.source, prepared.groups, amax, Path(folder))
                path, left = written.path, len(written.left_alone)
            start = time.perf_counter()
            plan = build_stock(path)
            built = time.perf_counter() - start
            expected = expected_by_graph(onnx.load(path, load_external_data=False))
            start = time.perf_counter()
            found = realized(plan, "", expected)
            read = time.perf_counter() - start
        missing = lost(expected, found)
        yield [
            f"{title}, {kind}",
            f"{len(plan) / 1e6:.1f}",
            counts_text(found),
            f"{len(missing)} of {len(expected)}" if missing else "none" if expected else "–",
            str(left),
            f"{built:.1f}",
            f"{read:.2f}",
        ]


def main() -> None:
    """Builds all and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="an ONNX model")
    chosen = parser.parse_args().model
    models.use_work_folder()
    subjects = (
        [(chosen.stem, chosen)]
        if chosen
        else [
            ("MiniLM", models.minilm() / models.MODEL_FILE),
            ("small Llama", models.small("llama", 0)),
            ("small BERT", models.small("bert", 0)),
        ]
    )
    columns = ["model, baseline", "MB", "layers that multiply", "lost", "left", "build s", "read s"]
    table = [row for title, model in subjects for row in rows(title, model)]
    version = real_builder().__version__
    show(f"Engines for SM120 by TensorRT-RTX {version}", columns, table, markdown=True)


if __name__ == "__main__":
    main()
