import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

import pytest

from mmcompile.cache import cache_folder
from mmcompile.doctor import machine, packages
from mmcompile.doctor.environment import examine
from mmcompile.finding import Finding
from tests.workplace import ROOT, call, command


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def findings():
    return {finding.name: finding for finding in examine()}


def without(monkeypatch, *names):
    """Makes packages look as if they were not installed."""
    real = importlib.metadata.version

    def version(name):
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_works_here_is_present(here):
    found = findings()
    for name, finding in found.items():
        assert finding.present or not finding.required, finding
        assert finding.found
        if not finding.present:
            assert finding.cost and finding.remedy, name
    assert found["numpy"].found == importlib.metadata.version("numpy")
    assert "_native" in found["native module"].found
    assert str(here / "cache") in found["cache"].found


def test_required_packages_are_the_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = dict(
        re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        for requirement in project["dependencies"]
    )
    assert dependencies == packages.REQUIRED


def test_remedies_name_extras_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, (_, remedy) in packages.OPTIONAL.items():
        for extra in re.findall(r"mmcompile\[(\w+)\]", remedy):
            listed = " ".join(project["optional-dependencies"][extra])
            assert name in listed


def test_the_table(here):
    result = call("doctor")
    assert (result.code, result.err) == (0, "")
    for name in ("python", "numpy", "native module", "c++", "NVIDIA GPU", "cache"):
        assert name in result.out
    assert "does not work here" not in result.out


def test_json(here):
    result = call("doctor", "--json")
    assert (result.code, result.err) == (0, "")
    listed = result.json()
    assert [entry["name"] for entry in listed] == list(findings())
    assert set(listed[0]) == {"name", "present", "found", "cost", "remedy", "required"}


def test_something_required_is_missing(here, monkeypatch):
    without(monkeypatch, "onnx-graphsurgeon", "torch")
    result = call("doctor")
    assert result.code == 4
    assert result.err == ""
    assert re.search(r"✗ onnx-graphsurgeon +not installed +mmcompile does not work", result.out)
    assert "pip install 'onnx-graphsurgeon>=0.5.8'" in result.out
    assert re.search(r"torch +not installed +no export from PyTorch", result.out)
    assert "mmcompile does not work here" in result.out
    by_name = {entry["name"]: entry for entry in call("doctor", "--json").json()}
    assert not by_name["onnx-graphsurgeon"]["present"]
    assert by_name["onnx-graphsurgeon"]["required"]


def test_something_optional_is_missing(here, monkeypatch):
    without(monkeypatch, "tokenizers", "torch", "transformers")
    result = call("doctor")
    assert result.code == 0
    assert "no calibration on text files" in result.out
    assert "pip install 'mmcompile[text]'" in result.out


def test_a_package_that_is_too_old(here, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.9.2" if name == "onnx" else real(name)
    )
    finding = findings()["onnx"]
    assert not finding.present
    assert finding.found == "1.9.2 is too old"


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.4.6", (2, 4, 6)), ("8.1", (8, 1)), ("1.0rc1", (1,)), ("x", ())]
)
def test_numbers_of_versions(version, numbers):
    assert packages._numbers(version) == numbers


def test_a_package_that_is_broken(here, monkeypatch):
    real = importlib.import_module

    def broken(name):
        if name == "onnxruntime":
            raise ImportError("libstdc++.so.6: version not found")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    finding = findings()["onnxruntime"]
    assert not finding.present
    assert finding.found == "it cannot be imported: libstdc++.so.6: version not found"


def test_the_native_module_is_missing(here, monkeypatch):
    import mmcompile

    monkeypatch.delattr(mmcompile, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "mmcompile._native", None)
    assert not findings()["native module"].present
    assert call("doctor").code == 4


def test_the_doctor_works_where_packages_are_missing(here):
    """It needs only what prints."""
    script = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'polygraphy', 'onnx_graphsurgeon', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "from mmcompile.cli import main\n"
        "main()\n"
    )
    started = command("doctor")
    started["args"] = [sys.executable, "-c", script, "doctor"]
    done = subprocess.run(**started, capture_output=True, check=False)
    assert done.returncode == 4
    assert done.stderr == ""
    assert "✗ onnxruntime" in done.stdout


@pytest.mark.parametrize("how", ["absent", "fails", "hangs"])
def test_tools(here, monkeypatch, how):
    script = {"fails": "#!/bin/sh\nexit 3\n", "hangs": "#!/bin/sh\nexec sleep 60\n"}
    folder = here / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    if how != "absent":
        (folder / "nvcc").write_text(script[how])
        (folder / "nvcc").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
        monkeypatch.setattr(machine, "TOOL_SECONDS", 0.2)
    finding = machine.tool("nvcc", "no kernels")
    assert not finding.present
    assert (finding.found == "not on PATH") == (how == "absent")


def test_the_version_of_a_tool(here, monkeypatch):
    tool = here / "nvcc"
    tool.write_text("#!/bin/sh\necho 'Copyright (c) 2005-2025'\necho 'release 13.0, V13.0.88'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(here))
    assert machine.tool("nvcc", "") == Finding(
        "nvcc", True, "release 13.0, V13.0.88", "", "install nvcc and put it on PATH"
    )


def test_the_cache(here, monkeypatch):
    folder = here / "cache"
    assert machine.cache().present
    (folder / "calibration").mkdir(parents=True)
    (folder / "calibration" / "x.npz").write_bytes(bytes(2_500_000))
    assert machine.cache().found == f"{folder}, 2.5 MB"
    (here / "file").write_text("")
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(here / "file"))
    assert not machine.cache().present
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", "/proc/none")
    assert not machine.cache().present
    assert "MMCOMPILE_CACHE_DIR" in machine.cache().remedy


def test_where_the_cache_is(here, monkeypatch):
    monkeypatch.delenv("MMCOMPILE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here))
    assert cache_folder() == here / "mmcompile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(here / "home"))
    assert cache_folder() == here / "home" / ".cache" / "mmcompile"
    # Some containers run as a user that has no home.
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert cache_folder().name == f"mmcompile-{os.getuid()}"
