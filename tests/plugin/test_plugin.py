"""The plugin's methods, called from C++ as TensorRT calls them; no TensorRT, no GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.plugin import building

pytestmark = pytest.mark.slow

# In every plugin library, and in those whose kernels write down their arguments.
CASES = ["identity", "broken-fields", "unaligned-fields", "round-trip", "formats", "shapes"]
RECORDING_CASES = ["building", "refused-shapes", "running", "tactics", "threads"]


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("caller") / "drive_plugin"
    sources = [building.HERE / name for name in ("drive_plugin.cpp", "drive_running.cpp")]
    return building.compile_cpp(output, *sources, "-pthread", "-ldl")


def call(
    caller: Path, plugin: Path, case: str, environment: Mapping[str, str] | None = None
) -> str:
    """Runs a case; returns what the plugin said on stderr."""
    done = subprocess.run(
        [caller, plugin, case],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("case", CASES)
def test_methods(caller: Path, plugin: Path, case: str) -> None:
    call(caller, plugin, case)


@pytest.mark.parametrize("case", RECORDING_CASES)
def test_methods_that_run(caller: Path, recording_plugin: Path, case: str) -> None:
    call(caller, recording_plugin, case)


def test_refusals_say_what_is_wrong(caller: Path, recording_plugin: Path) -> None:
    said = call(caller, recording_plugin, "refused-shapes") + call(
        caller, recording_plugin, "running"
    )
    assert all(
        line.startswith("mmcompile: MicroMixLinear layer 'driven': ")
        for line in said.split("\n")[:-1]
    )
    assert "input 'scales' has the shape [7, 48, 4], expected [2, 48, 4]" in said
    assert "input 'order' has an unknown dimension" in said
    assert "this GPU fears thirteen rows" in said


def test_ahead_of_time_although_there_is_a_gpu(
    caller: Path, recording_plugin: Path, tmp_path: Path
) -> None:
    """TensorRT-RTX never measures; an empty library of its name stands for it."""
    empty = tmp_path / "empty.cpp"
    empty.touch()
    rtx = building.compile_cpp(tmp_path / "libtensorrt_rtx.so.1", "-shared", empty)
    call(caller, recording_plugin, "ahead-of-time", {"LD_PRELOAD": str(rtx)})


def test_the_gpu_is_asked_for(caller: Path, plugin_with_cuda: Path) -> None:
    call(caller, plugin_with_cuda, "building")
    said = call(caller, plugin_with_cuda, "without-gpu", {"FAKE_CUDA_DEVICES": "0"})
    assert "no current GPU: " in said
    call(caller, plugin_with_cuda, "without-gpu", {"FAKE_CUDA_DRIVER": "0"})
    said = call(caller, plugin_with_cuda, "refused-driver", {"FAKE_CUDA_DRIVER": "12080"})
    assert "driver version is insufficient" in said


def test_without_a_gpu(caller: Path) -> None:
    plugin = building.prebuilt_plugin()
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    said = call(caller, plugin, "without-gpu")
    assert "MicroMixLinear layer 'driven': " in said
