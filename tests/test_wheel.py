"""The wheel: what `pip install .` builds, without nvcc, from a copy of the source."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SOURCES = (
    "CMakeLists.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "mmcompile",
    "plugins",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("scikit_build_core", reason="needs scikit-build-core to build the wheel")
    pytest.importorskip("nanobind", reason="needs nanobind to build the wheel")
    source = tmp_path_factory.mktemp("source")
    leftovers = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=leftovers, symlinks=True)
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source)]
    tools = str(Path(sys.executable).parent)
    no_nvcc = [p for p in os.environ["PATH"].split(":") if not (Path(p) / "nvcc").exists()]
    path = ":".join([tools, *(no_nvcc or ["/usr/bin"]), "/usr/bin", "/bin"])
    environment = os.environ | {"PATH": path}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    (found,) = (source / "dist").glob("*.whl")
    return found


def test_wheel_holds_the_whole_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in (ROOT / "mmcompile").rglob("*.py"):
        assert file.relative_to(ROOT).as_posix() in names
    pages = ("report/template.html.jinja", "report/analysis.html.jinja", "report/style.css")
    for data in ("py.typed", "_native.pyi", *pages):
        assert f"mmcompile/{data}" in names
    assert any(name.startswith("mmcompile/_native.") and name.endswith(".so") for name in names)
    assert not any(name.startswith(("tests/", "plugins/", "benchmarks/")) for name in names)


def test_wheel_runs_from_where_it_is_unpacked(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import numpy as np, mmcompile.packed as packed, mmcompile;"
        "from mmcompile.cli import run; raise SystemExit(run(['--version']))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("mmcompile ")
