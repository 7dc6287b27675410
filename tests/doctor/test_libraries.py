"""The compiled libraries: found, loadable, for the GPU."""

import pytest

from mmcompile.doctor import libraries
from mmcompile.libraries import KERNELS, PLUGIN, Library, digest


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """Neither variables nor a package nor a checkout with libraries."""
    for library in (KERNELS, PLUGIN):
        monkeypatch.delenv(library.variable, raising=False)
    monkeypatch.setattr("mmcompile.libraries.PACKAGE", tmp_path / "package")
    return tmp_path


def test_where_libraries_are_looked_for(nothing, monkeypatch):
    library = Library("lib.so", "MMCOMPILE_KERNELS")
    assert library.find() is None
    built = nothing / "build" / "cuda" / "lib.so"
    packaged = nothing / "package" / "lib" / "lib.so"
    for path in (built, packaged):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        assert library.find() == path
    monkeypatch.setenv("MMCOMPILE_KERNELS", "/nowhere/lib.so")
    assert str(library.find()) == "/nowhere/lib.so"


def test_digests(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("check", [lambda: libraries.kernels(None), libraries.plugin])
def test_libraries_that_are_absent_or_broken(nothing, monkeypatch, check):
    finding = check()
    assert not finding.present and "not installed" in finding.found
    assert "make plugin" in finding.remedy and finding.cost
    broken = nothing / "broken.so"
    broken.write_bytes(b"no ELF")
    for library in (KERNELS, PLUGIN):
        monkeypatch.setenv(library.variable, str(broken))
    finding = check()
    assert not finding.present and "does not load" in finding.found


def test_a_library_that_is_another(nothing, monkeypatch):
    import mmcompile._native

    for library in (KERNELS, PLUGIN):
        monkeypatch.setenv(library.variable, mmcompile._native.__file__)
    assert "exports no getCreators" in libraries.plugin().found
    assert "does not load" in libraries.kernels(None).found
