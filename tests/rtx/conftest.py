"""Compiled models and plugin libraries for TensorRT-RTX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.compiling import Compiled, compiled, prepare
from tests.models import linear_model
from tests.plugin.building import prebuilt_plugin
from tests.rtx.building import recording_plugin


@pytest.fixture(autouse=True, scope="session")
def tensorrt_rtx() -> None:
    """Skips where NVIDIA's package is not installed."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("no TensorRT-RTX; pip install tensorrt-rtx-cu13")


@pytest.fixture(scope="session", params=["recording", "built"])
def plugin(request: pytest.FixtureRequest) -> Path:
    """Each plugin library in turn: the one of the test, and the one of `make plugin`."""
    return prebuilt_plugin() if request.param == "built" else recording_plugin()


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compiled]:
    """`linear(variant)`: a compiled model of one linear, see `tests.models.LINEAR_MODELS`."""

    def make(variant: str) -> Compiled:
        folder = tmp_path_factory.mktemp(variant)
        return compiled(prepare(linear_model(variant), folder), folder)

    return make


@pytest.fixture(scope="session")
def refused(linear: Callable[[str], Compiled], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose only node has a layout that no plugin reads."""
    model = linear("matmul").proto
    (layout,) = [a for a in model.graph.node[0].attribute if a.name == "layout_version"]
    layout.i = 1
    path = tmp_path_factory.mktemp("refused") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def encoder(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A BERT of two layers, as MiniLM is one of six."""
    folder = tmp_path_factory.mktemp("encoder")
    return compiled(prepare(exported("bert"), folder), folder)
