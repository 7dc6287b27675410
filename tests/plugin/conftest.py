"""Libraries that the plugin tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin import building
from tests.test_cuda_oracle import WHEELS, cuda_includes


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ side of the tests that run NVIDIA's bindings."""
    output = tmp_path_factory.mktemp("driver") / "libdriver.so"
    return building.compile_cpp(output, "-shared", building.HERE / "drive_trampolines.cpp")


@pytest.fixture(scope="session")
def recording_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin over a kernel library that writes down its arguments; linked like the real one."""
    output = tmp_path_factory.mktemp("recording") / "libmmcompile_plugin.so"
    return compile_plugin(output, "-DMMCOMPILE_EMULATED=1")


@pytest.fixture(scope="session")
def plugin_with_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, asking a CUDA runtime of the tests for the GPU: see fake_cuda_runtime.cpp."""
    includes = cuda_includes()
    if not includes:
        pytest.skip(f"no CUDA headers; pip install {WHEELS}")
    output = tmp_path_factory.mktemp("with_cuda") / "libmmcompile_plugin.so"
    runtime = building.ROOT / "tests" / "fake_cuda_runtime.cpp"
    return compile_plugin(output, *(f"-isystem{folder}" for folder in includes), runtime)


def compile_plugin(output: Path, *arguments: str | Path) -> Path:
    """The plugin's sources over recording_kernels.cpp."""
    sources = sorted((building.PLUGINS / "trt").glob("*.cpp"))
    exports = building.PLUGINS / "trt" / "exports.map"
    return building.compile_cpp(
        output,
        "-shared",
        *arguments,
        "-fvisibility=hidden",
        "-fvisibility-inlines-hidden",
        "-fno-gnu-unique",
        "-static-libstdc++",
        "-static-libgcc",
        "-Wl,-z,defs",
        f"-Wl,--version-script={exports}",
        *sources,
        building.HERE / "recording_kernels.cpp",
    )


@pytest.fixture(params=["recording", "built"])
def plugin(request: pytest.FixtureRequest) -> Path:
    """Each plugin library in turn: the one of the test, and the one of `make plugin`."""
    if request.param == "built":
        return building.prebuilt_plugin()
    library: Path = request.getfixturevalue("recording_plugin")
    return library
