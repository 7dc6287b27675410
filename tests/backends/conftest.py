"""TensorRT's double in the place of TensorRT, on a GPU that is host memory."""

from __future__ import annotations

import sys

import pytest

from mmcompile.backends.engines.device import Device
from mmcompile.cuda.machine import HostMachine
from tests.backends import double
from tests.workplace import Workplace

ELF = b"\x7fELF stands for a plugin library"


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
    """`install(version, architecture)` puts a double in TensorRT's place and returns it."""

    def put(version="11.4.0.106", architecture="sm_120"):
        monkeypatch.setitem(sys.modules, "tensorrt", None)  # taken back after the test
        module = double.make(version, architecture)
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
