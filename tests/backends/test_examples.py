"""The programs of examples/deploy compile, and run with doubles of what they talk to."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from examples.deploy import run_engine, triton_client
from tests.plugin import building
from tests.workplace import ROOT

HERE = Path(__file__).parent
EXAMPLES = ROOT / "examples" / "deploy"


def cuda_include():
    """The folder of CUDA's headers: of a toolkit, or of NVIDIA's package."""
    try:
        import nvidia
    except ImportError:
        nvidia = types.SimpleNamespace(__path__=[])
    places = [Path("/usr/local/cuda/include")]
    places += [
        found.parent for p in nvidia.__path__ for found in Path(p).rglob("cuda_runtime_api.h")
    ]
    for place in places:
        if (place / "cuda_runtime_api.h").is_file():
            return place
    pytest.skip("no CUDA headers; pip install nvidia-cuda-runtime")


@pytest.mark.parametrize("headers", ["ours", "NVIDIA's"])
def test_the_cpp_program_compiles(headers):
    include = HERE
    if headers != "ours":
        root = os.environ.get("TENSORRT_ROOT")
        if root is None or not (Path(root) / "include" / "NvInferRuntime.h").is_file():
            pytest.skip("no TensorRT headers; set TENSORRT_ROOT")
        include = Path(root) / "include"
    command = [building.compiler(), "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    command += ["-isystem", str(include), "-isystem", str(cuda_include())]
    done = subprocess.run(
        [*command, str(EXAMPLES / "run_engine.cpp")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_python_program(work, tensorrt, monkeypatch, capsys):
    assert work.compile().code == 0
    engine = str(work.out / "engine.plan")
    monkeypatch.setattr(sys, "argv", ["run_engine.py", engine, "x=2x8x96"])
    assert run_engine.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ms per call, copies included")
    assert lines[1].startswith("y (2, 8, 48) [")
    monkeypatch.setattr(sys, "argv", ["run_engine.py", engine, "x=2x9x96"])
    assert run_engine.main() == 2
    assert "outside the engine's" in capsys.readouterr().err


def test_the_triton_client(monkeypatch, capsys):
    """A double of tritonclient's HTTP client, as its documentation describes it."""
    sent = {}

    class InferInput:
        def __init__(self, name, _shape, _datatype):
            self.name = name

        def set_data_from_numpy(self, array):
            sent[self.name] = array

    class InferenceServerClient:
        def __init__(self, url):
            pass

        def get_model_metadata(self, _name):
            one = {"name": "ids", "shape": ["-1", "-1"], "datatype": "INT64"}
            return {"inputs": [one], "outputs": [{"name": "y"}]}

        def infer(self, _name, _inputs):
            return types.SimpleNamespace(as_numpy=lambda _: np.zeros((2, 3), np.float32))

    http = types.ModuleType("tritonclient.http")
    http.InferInput, http.InferenceServerClient = InferInput, InferenceServerClient
    utils = types.ModuleType("tritonclient.utils")
    utils.triton_to_np_dtype = {"INT64": np.int64}.get
    package = types.ModuleType("tritonclient")
    package.http, package.utils = http, utils
    for module in (package, http, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", ["triton_client.py", "mini", "ids=2x3"])
    assert triton_client.main() == 0
    assert sent["ids"].shape == (2, 3) and sent["ids"].dtype == np.int64
    assert capsys.readouterr().out.startswith("y (2, 3)")


def test_the_documents_name_files_that_exist():
    text = (ROOT / "docs" / "deploy.md").read_text()
    readme = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".cpp"):
            assert path.name in text and path.name in readme
