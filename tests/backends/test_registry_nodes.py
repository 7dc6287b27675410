"""Every node of a compiled real model, in NVIDIA's own plugin registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcompile import CompileOptions, compile_model
from mmcompile.errors import EnvironmentProblem
from mmcompile.exporting import export_model
from mmcompile.pipeline.options import DataOptions, VerifyOptions
from tests.plugin import building

pytestmark = pytest.mark.slow

ROOT = building.ROOT
SHARED = ROOT.parent / "shared" / "data"


def minilm(folder):
    for package in ("torch", "transformers", "onnxscript"):
        pytest.importorskip(package, reason=f"exports need {package}")
    from examples.minilm.prepare import PACKAGE, model_folder

    try:
        source = model_folder()
    except EnvironmentProblem:
        pytest.skip(f"the package {PACKAGE} is not installed")
    return export_model(str(source), folder / "model.onnx"), DataOptions(
        calibration="random", samples=4, max_length=32
    )


def babyllama(folder):
    torch = pytest.importorskip("torch", reason="exports need torch")
    pytest.importorskip("onnxscript", reason="exports need onnxscript")
    checkpoint = SHARED / "babyllama105" / "model5000.bin"
    if not checkpoint.exists():
        pytest.skip("the BabyLlama checkpoint is not on this machine")
    from examples.babyllama.export import export_module, read_checkpoint

    path = export_module(
        read_checkpoint(checkpoint),
        {"input_ids": torch.zeros(2, 32, dtype=torch.int64)},
        folder / "model.onnx",
        dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}},
        outputs=["logits"],
    )
    return path, DataOptions(calibration="random", samples=4, max_length=32)


@pytest.fixture(scope="module", params=[minilm, babyllama])
def bundle(request, tmp_path_factory):
    """The output folder of a real model, compiled once, and its number of nodes."""
    building.prebuilt_plugin()
    folder = tmp_path_factory.mktemp(request.param.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCOMPILE_CACHE_DIR", str(folder / "cache"))
        model, data = request.param(folder)
        options = CompileOptions(
            data=data,
            verify=VerifyOptions(enabled=False),
            output=folder / "out",
            html=False,
        )
        return options.output, len(compile_model(model, options).plan.groups)


@pytest.mark.parametrize("release", building.release_parameters())
def test_every_node_of_the_bundle_becomes_a_plugin(release, bundle):
    folder, count = bundle
    paths = [str(release.folder)] if release.folder else []
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("registry_nodes.py")),
            release.module,
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert count > 10
    report = json.loads(done.stdout)
    assert report == {"loaded": True, "nodes": count, "created": count, "damaged": 0}
