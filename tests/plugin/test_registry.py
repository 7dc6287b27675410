"""The plugin library in NVIDIA's own plugin registry, in every TensorRT that is installed."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmcompile import ops
from tests.plugin import building

pytestmark = pytest.mark.slow

# The ONNX parser and TensorRT keep these two themselves (plugins/trt/fields.h).
NOT_FIELDS = {"plugin_version", "plugin_namespace"}
FIELD_TYPES = {"INT": "INT32", "INTS": "INT32", "FLOAT": "FLOAT32", "FLOATS": "FLOAT32"}
LOOK = {
    "count": 1,
    "names": [ops.OP_TYPE, ops.PLUGIN_VERSION, ops.DOMAIN],
    "fields": [
        [field.name, FIELD_TYPES[field.kind]]
        for field in ops.ATTRIBUTES
        if field.name not in NOT_FIELDS
    ],
    "created": True,
    "refused": True,
}
GOOD = {"good", "good-int64", "good-reversed", "good-runtime"}
ERROR = 1


def client(
    release: building.Release, plugin: Path, driver: Path, way: str
) -> tuple[dict[str, Any], str]:
    done = building.run_in(release, "registry_client.py", plugin, driver, way)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report, done.stderr


@pytest.mark.parametrize("release", building.release_parameters())
def test_load_library(release: building.Release, plugin: Path, driver: Path) -> None:
    report, stderr = client(release, plugin, driver, "load")
    assert report["before"] == 0
    assert report["loaded"] == LOOK
    assert report["after"] == 0
    assert not report["mapped"]
    # No runtime exists yet, so TensorRT's finder has no logger: the sentence is on stderr.
    assert stderr.startswith(
        "mmcompile: MicroMixLinear layer 'x': field 'segment_channels' is missi"
    )

    cases = report["cases"]
    assert len(cases) > 40
    for name, case in cases.items():
        if name in GOOD:
            assert case == {"created": True, "log": []}, name
            continue
        assert not case["created"], name
        assert len(case["log"]) == 1, name
        severity, sentence = case["log"][0]
        assert severity == ERROR
        assert sentence.startswith("MicroMixLinear layer 'a layer': ")
        assert sentence.endswith("; compile the model again with this version of mmcompile")
        assert "\n" not in sentence and len(sentence) < 500
    sentence = cases["formats-fewer"]["log"][0][1]
    assert "'segment_act_formats' has 2 entries, 'segment_channels' has 3" in sentence


@pytest.mark.parametrize("release", building.release_parameters())
def test_dlopen_registers_and_dlclose_takes_back(
    release: building.Release, plugin: Path, driver: Path
) -> None:
    report, _ = client(release, plugin, driver, "close")
    assert report["opened"] == LOOK
    assert report["after"] == 0
    assert not report["mapped"]


@pytest.mark.parametrize("release", building.release_parameters())
def test_dlopen_and_load_library_register_once(
    release: building.Release, plugin: Path, driver: Path
) -> None:
    report, _ = client(release, plugin, driver, "both")
    assert report["opened"] == LOOK
    assert report["loaded"] == LOOK
    assert report["after"] == 0


@pytest.mark.parametrize("release", building.release_parameters())
def test_exit_while_registered(release: building.Release, plugin: Path, driver: Path) -> None:
    report, _ = client(release, plugin, driver, "exit")
    assert report["after"] == 1


@pytest.mark.parametrize("other", building.BINDINGS[1:])
def test_two_tensorrts_in_one_process(plugin: Path, other: str) -> None:
    """A lean runtime and another, of different releases where there are several."""
    found = building.releases()
    lean = [release for release in found if release.module == building.BINDINGS[0]]
    others = [release for release in found if release.module == other]
    if not lean or not others:
        pytest.skip(f"needs a lean runtime and {other}; " + building.NO_TENSORRT)
    done = building.run_in(lean[0], "two_registries.py", plugin, beside=others[-1])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "dlopen": [1, 1],
        "load in the first": [1, 0],  # whoever loads explicitly is in charge
        "load in the second": [1, 1],
        "leave the first": [0, 1],
        "leave the second": [0, 0],
    }


def test_without_tensorrt_nothing_happens(plugin: Path) -> None:
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); count = ctypes.c_int32();"
        "library.setLoggerFinder(None); library.getCreators.restype = ctypes.c_void_p;"
        "assert library.getCreators(ctypes.byref(count)); print(count.value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(plugin)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_exports_two_functions(plugin: Path) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf; install binutils")
    table = subprocess.run(
        [readelf, "--dyn-syms", "--wide", str(plugin)], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in table.splitlines()]
    defined = {
        row[7].split("@")[0]
        for row in rows
        if len(row) >= 8 and row[4] in ("GLOBAL", "WEAK", "UNIQUE") and row[6] != "UND"
    }
    assert defined == {"getCreators", "setLoggerFinder"}


def test_needs_no_cpp_runtime_and_no_tensorrt(plugin: Path) -> None:
    """The library runs beside whatever libstdc++ and TensorRT the process has."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf; install binutils")
    dynamic = subprocess.run(
        [readelf, "--dynamic", "--wide", str(plugin)], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    allowed = ("libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux")
    assert [name for name in needed if not name.startswith(allowed)] == []
    ctypes.CDLL(str(plugin))  # every symbol resolves
