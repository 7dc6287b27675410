"""TensorRT's double in the place of TensorRT, on a GPU that is host memory."""

from __future__ import annotations

import os
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


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A small model and data, and a file that stands for the plugin library."""
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    library = tmp_path / "plugin.so"
    library.write_bytes(ELF)
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(library))
    return Workplace(tmp_path)


@pytest.fixture
def install(monkeypatch):
    """`install(version, architecture, name)` puts a double in TensorRT's place and returns it."""

    def put(version="11.4.0.106", architecture="sm_120", name="tensorrt"):
        monkeypatch.setitem(sys.modules, name, None)  # taken back after the test
        module = double.make(version, architecture, name)
        device = Device(f"double of {architecture}", architecture, 32 << 30, "13.0")
        for user in (
            "mmcompile.backends.engines.backend.read_device",
            "mmcompile.backends.engines.running.read_device",
        ):
            monkeypatch.setattr(user, lambda *_: device)
        monkeypatch.setattr(
            "mmcompile.backends.engines.running.GpuMachine", lambda _: HostMachine()
        )
        return module

    return put


@pytest.fixture
def tensorrt(install):
    """A double of a supported release on the target GPU."""
    return install()
