"""Libraries that the plugin tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin import building


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ side of the tests that run NVIDIA's bindings."""
    output = tmp_path_factory.mktemp("driver") / "libdriver.so"
    return building.compile_cpp(output, "-shared", building.HERE / "drive_trampolines.cpp")


@pytest.fixture(scope="session")
def recording_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin over a kernel library that writes down its arguments; linked like the real one."""
    output = tmp_path_factory.mktemp("recording") / "libmmcompile_plugin.so"
    sources = sorted((building.PLUGINS / "trt").glob("*.cpp"))
    exports = building.PLUGINS / "trt" / "exports.map"
    return building.compile_cpp(
        output,
        "-shared",
        "-DMMCOMPILE_EMULATED=1",
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
