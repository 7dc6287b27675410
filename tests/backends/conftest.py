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
def library(home, monkeypatch):
    """A file that stands for the plugin library."""
    path = home / "plugin.so"
    path.write_bytes(ELF)
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(path))


@pytest.fixture
def work(home, library):
    """A small model and data, and a file that stands for the plugin library."""
    return Workplace(home)


@pytest.fixture
def install(monkeypatch):
    """`install(version, architecture)` puts a double in TensorRT's place and returns it."""

    def put(version="11.4.0.106", architecture="sm_120"):
        monkeypatch.setitem(sys.modules, "tensorrt", None)  # taken back after the test
        module = double.make(version, architecture)
        device = Device(f"double of {architecture}", architecture, 32 << 30, "13.0")
        for user in (
            "mmcompile.backends.engines.engine.read_device",
            "mmcompile.runtime.engine.read_device",
        ):
            monkeypatch.setattr(user, lambda *_: device)
        monkeypatch.setattr("mmcompile.runtime.engine.GpuMachine", lambda _: HostMachine())
        return module

    return put


@pytest.fixture
def tensorrt(install):
    """A double of a supported release on the target GPU."""
    return install()
