"""TensorRT's double in the place of TensorRT, on a GPU that is host memory."""

from __future__ import annotations

import functools
import os
import shutil
import sys

import pytest

from mmcompile.backends.engines.device import Device
from mmcompile.cuda.machine import HostMachine
from tests.backends import double
from tests.plugin import building
from tests.workplace import Workplace

ELF = b"\x7fELF stands for a plugin library"
REAL_PLUGIN = os.environ.get("MMCOMPILE_PLUGIN")
"""Before the fixture `work` puts a stand-in there."""


def real_plugin(monkeypatch):
    """Takes the library that `make plugin` builds; skips the test where it is absent."""
    monkeypatch.delenv("MMCOMPILE_PLUGIN", raising=False)
    if REAL_PLUGIN:
        monkeypatch.setenv("MMCOMPILE_PLUGIN", REAL_PLUGIN)
    return building.prebuilt_plugin()


def put_library(folder, patch):
    path = folder / "plugin.so"
    path.write_bytes(ELF)
    patch.setenv("MMCOMPILE_PLUGIN", str(path))


def put_double(patch, version="11.4.0.106", architecture="sm_120", name="tensorrt"):
    """Puts a double in TensorRT's place and returns it."""
    patch.setitem(sys.modules, name, None)  # taken back after the test
    module = double.make(version, architecture, name)
    device = Device(f"double of {architecture}", architecture, 32 << 30, "13.0")
    for user in (
        "mmcompile.backends.engines.backend.read_device",
        "mmcompile.backends.engines.running.read_device",
    ):
        patch.setattr(user, lambda *_: device)
    patch.setattr("mmcompile.backends.engines.running.GpuMachine", lambda _: HostMachine())
    return module


@pytest.fixture
def library(home, monkeypatch):
    """A file that stands for the plugin library."""
    put_library(home, monkeypatch)


@pytest.fixture
def work(home, library):
    """A small model and data, and a file that stands for the plugin library."""
    return Workplace(home)


@pytest.fixture
def install(monkeypatch):
    """`install(version, architecture, name)` puts a double in TensorRT's place and returns it."""
    return functools.partial(put_double, monkeypatch)


@pytest.fixture
def tensorrt(install):
    """A double of a supported release on the target GPU."""
    return install()


@pytest.fixture(scope="session")
def template_with_engine(tmp_path_factory):
    """A folder in which the model of `work` was compiled, its engine with it."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCOMPILE_CACHE_DIR", str(folder / "cache"))
        put_library(folder, patch)
        put_double(patch)
        assert Workplace(folder).compile().code == 0
    return folder


@pytest.fixture
def built(template_with_engine, work, tensorrt):
    """An earlier run with its engine; a copy, whose report names the folder it was made in."""
    shutil.copytree(template_with_engine, work.folder, dirs_exist_ok=True)
    return work
