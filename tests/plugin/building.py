"""What the plugin tests need besides TensorRT: a compiler, plugin libraries, releases to run in.

Nothing here imports TensorRT: a wrong ABI crashes, so every test runs it in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PLUGINS = ROOT / "plugins"
BINDINGS = ("tensorrt_lean_bindings", "tensorrt_dispatch_bindings", "tensorrt_rtx_bindings")
NO_TENSORRT = "no TensorRT runtime; pip install tensorrt-lean-cu12-libs tensorrt-lean-cu12-bindings"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@dataclass(frozen=True)
class Release:
    """One installed TensorRT runtime: the module of its bindings, and the folder it is in."""

    module: str
    folder: Path | None = None

    def __str__(self) -> str:
        flavour = self.module.split("_")[1]
        return flavour if self.folder is None else f"{flavour}-{self.folder.name}"


def releases() -> list[Release]:
    """The wheels of this environment, and of the folders in MMCOMPILE_TENSORRT_FOLDERS.

    So one run can test several releases. Such a folder is filled by `pip install --no-deps
    --target FOLDER tensorrt-lean-cu12-libs==VERSION tensorrt-lean-cu12-bindings==VERSION`.
    """
    found = [Release(module) for module in BINDINGS if importlib.util.find_spec(module)]
    for name in filter(None, os.environ.get("MMCOMPILE_TENSORRT_FOLDERS", "").split(os.pathsep)):
        folder = Path(name)
        found += [Release(module, folder) for module in BINDINGS if (folder / module).is_dir()]
    return found


def release_parameters() -> list[object]:
    """The releases as parameters of a test, or one that skips where there are none."""
    missing = pytest.mark.skip(reason=NO_TENSORRT)
    found = releases()
    if not found:
        return [pytest.param(None, marks=missing, id="no-tensorrt")]
    return [pytest.param(release, id=str(release)) for release in found]


def compiler() -> str:
    """The C++ compiler's path; skips the test where there is none."""
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("no C++ compiler; install g++ or set CXX")
    return found


def compile_cpp(output: Path, *arguments: str | Path, include: Path = PLUGINS / "trt") -> Path:
    """Compiles C++20 into `output`; `include` is the folder of the TensorRT interface's headers."""
    command = [compiler(), "-std=c++20", "-O0", "-fPIC", *WARNINGS, f"-I{include}"]
    command += [f"-I{PLUGINS / 'include'}", *map(str, arguments), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def prebuilt_plugin() -> Path:
    """The plugin library that `make plugin` builds; skips the test where it is absent."""
    path = Path(
        os.environ.get("MMCOMPILE_PLUGIN", ROOT / "build" / "cuda" / "libmmcompile_plugin.so")
    )
    if not path.is_file():
        pytest.skip(f"{path} is not built; make plugin, or set MMCOMPILE_PLUGIN")
    return path


def run_in(
    release: Release, script: str, *arguments: str | Path, beside: Release | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script of this folder with a release's bindings; a crash is its return code.

    `beside` is a second TensorRT for the same process, of another flavour.
    """
    used = [release] if beside is None else [release, beside]
    paths = [str(each.folder) for each in used if each.folder is not None]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])}
    modules = [each.module for each in used]
    return subprocess.run(
        [sys.executable, str(HERE / script), *modules, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
