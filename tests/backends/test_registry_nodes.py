"""Every node of a compiled real model, in NVIDIA's own plugin registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmcompile import CompileOptions, compile_model
from mmcompile.pipeline.options import DataOptions, VerifyOptions
from tests.plugin import building
from tests.real_models import REAL_MODELS

pytestmark = pytest.mark.slow

ROOT = building.ROOT


@pytest.fixture(scope="module", params=REAL_MODELS)
def bundle(request, exported, tmp_path_factory):
    """The output folder of a real model, compiled once, and its number of nodes."""
    building.prebuilt_plugin()
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCOMPILE_CACHE_DIR", str(folder / "cache"))
        options = CompileOptions(
            data=DataOptions(calibration="random", samples=4, max_length=32),
            verify=VerifyOptions(enabled=False),
            output=folder / "out",
            html=False,
        )
        return options.output, len(compile_model(exported(request.param), options).plan.groups)


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
