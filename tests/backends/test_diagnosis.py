"""What `mmcompile doctor` finds of the builders: packages, releases, plugin registries."""

from __future__ import annotations

import importlib.metadata

import pytest

from mmcompile.backends.engines import diagnosis, product
from mmcompile.backends.tensorrt import PRODUCT
from mmcompile.backends.tensorrt_rtx import PRODUCT as RTX
from tests.plugin.building import prebuilt_plugin


def registry():
    """A module with a plugin registry that is installed here."""
    found = next(filter(product.importable, PRODUCT.registries), None)
    if found is None:
        pytest.skip("no TensorRT registry: pip install 'mmcompile[test]'")
    return found


@pytest.fixture
def broken(monkeypatch, tmp_path):
    library = tmp_path / "broken.so"
    library.write_bytes(b"no ELF")
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(library))


def test_registration_in_a_real_registry(monkeypatch):
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(prebuilt_plugin()))
    finding = diagnosis.registration(PRODUCT, registry())
    assert finding.present, finding.found
    assert "MicroMixLinear 1 registered in tensorrt" in finding.found


def test_a_library_that_does_not_register(broken):
    finding = diagnosis.registration(PRODUCT, registry())
    assert not finding.present
    assert "finds no MicroMixLinear" in finding.found


def test_registration_without_a_library(monkeypatch, tmp_path):
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(tmp_path / "none.so"))
    assert diagnosis.registration(PRODUCT, "x").found == "not tried: no plugin library here"


@pytest.mark.parametrize(
    ("product", "version", "present"),
    [
        (PRODUCT, "11.4.0.106", True),
        (PRODUCT, "10.13.0.35", True),
        (PRODUCT, "10.12.9", False),
        (PRODUCT, "12.0.0", False),
        (PRODUCT, None, False),
        (RTX, "1.7.1.116", True),
        (RTX, "1.6.0.1", False),
        (RTX, "2.0", False),
        (RTX, None, False),
    ],
)
def test_releases(monkeypatch, product, version, present):
    def told(name):
        if name == product.distributions[-1] and version:
            return version
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", told)
    finding = diagnosis.installed(product)
    assert finding.present == present
    assert finding.name == product.title
    assert present or "pip install" in finding.remedy


def test_smaller_runtimes_are_told():
    pytest.importorskip("tensorrt_lean_bindings", reason="needs NVIDIA's lean runtime")
    names = [finding.name for finding in diagnosis.examine(PRODUCT)]
    assert "TensorRT runtime tensorrt_lean" in names
