"""Polygraphy as a second opinion: its comparators and its command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from polygraphy.comparator import CosineSimilarityCompareFunc, IterationResult, SnrCompareFunc

from mmcompile.backends.engines.bundle import polygraphy_lines
from mmcompile.data.options import DataOptions
from mmcompile.model.selection import Selection
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.options import CompileOptions
from mmcompile.verification.metrics import Agreement
from tests.models import linear_model


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_polygraphys_comparators(seed):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((4, 7, 33)).astype(np.float32)
    value = (reference + 0.1 * rng.standard_normal(reference.shape)).astype(np.float32)
    ours = Agreement()
    ours.add(reference, value)
    runs = [
        IterationResult({"y": array}, runner_name=name)
        for array, name in ((reference, "original"), (value, "compiled"))
    ]
    cosine = CosineSimilarityCompareFunc()(*runs)["y"].cosine_similarity
    snr = SnrCompareFunc()(*runs)["y"].snr
    # Polygraphy sums 924 terms in float32: relative error within 924 · 2^-24 = 6e-5.
    assert ours.cosine_mean == pytest.approx(cosine, rel=1e-4)
    assert ours.sqnr_db == pytest.approx(snr, abs=10 * np.log10(1 + 1e-3))
    assert ours.max_abs_error == pytest.approx(np.abs(reference - value).max(), rel=1e-6)


@pytest.mark.slow
def test_the_reports_polygraphy_lines_work_as_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "original.onnx"
    onnx.save(linear_model("matmul_add"), path)
    options = CompileOptions(
        data=DataOptions(calibration="random", samples=4),
        selection=Selection(heads=True),
        output=tmp_path / "out",
        html=False,
    )
    result = compile_model(path, options)
    assert result.model is not None
    polygraphy = str(Path(sys.executable).with_name("polygraphy"))
    for line in polygraphy_lines(str(path), str(result.model)):
        command = [polygraphy, *line.split()[1:]]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
