"""The names of TensorRT's API that are used: against NVIDIA's packages and our double."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from mmcompile.backends.engines.api.names import FULL_ONLY, RUNTIME
from tests.backends import double

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mmcompile" / "backends" / "engines" / "api"
FACTS = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())
# pybind11 gives these to every class and module; they are not in the binding sources.
IMPLICIT = {"__version__", "ILogger.__init__"}


def reached(module, path):
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("package", ["tensorrt_lean_bindings", "tensorrt_dispatch_bindings"])
def test_nvidias_packages_have_the_runtime_names(package):
    module = pytest.importorskip(package, reason=f"needs NVIDIA's {package}")
    for name in sorted(RUNTIME):
        assert reached(module, name) is not None, name


def test_what_the_packages_have_is_not_called_full_only():
    module = pytest.importorskip("tensorrt_lean_bindings", reason="needs NVIDIA's lean runtime")
    kinds = {name.partition(".")[0] for name in FULL_ONLY}
    assert [kind for kind in sorted(kinds) if hasattr(module, kind)] == []


@pytest.mark.parametrize("name", sorted((RUNTIME | FULL_ONLY) - IMPLICIT))
def test_every_supported_release_has_the_name(name):
    assert name not in FACTS["missing"]
    assert tuple(map(int, FACTS["first"][name].split("."))) <= (10, 13)


def test_severities_are_numbers_as_assumed():
    module = pytest.importorskip("tensorrt_lean_bindings", reason="needs NVIDIA's lean runtime")
    names = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO")
    assert [int(getattr(module.ILogger, name)) for name in names] == [0, 1, 2, 3]
    assert str(module.DataType.HALF).rpartition(".")[2] == "HALF"


def test_the_double_has_no_other_names():
    """So code that uses a name that is not in the table fails in every test with the double."""
    allowed = RUNTIME | FULL_ONLY
    kinds = {name.partition(".")[0] for name in allowed if "." in name}
    # Classes that TensorRT's users never name, since methods return them.
    for kind in sorted(kinds):
        members = {m for m in vars(getattr(double, kind)) if not m.startswith("_")}
        extra = {f"{kind}.{member}" for member in members} - allowed
        if kind == "DataType":
            continue
        assert not extra, extra


def attributes(path):
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if _is_attribute(node)}


def _is_attribute(node):
    return isinstance(node, ast.Attribute)


def test_every_name_of_the_table_is_used():
    used = set().union(*map(attributes, PACKAGE.glob("*.py")))
    text = (PACKAGE / "tensors.py").read_text()
    for name in sorted(RUNTIME | FULL_ONLY):
        member = name.rpartition(".")[2]
        if name.startswith("DataType."):
            assert f'"{member}"' in text
        elif member == "__init__":
            assert name.partition(".")[0] in used, name
        else:
            assert member in used, name


def test_tensorrt_is_reached_through_one_package():
    for path in (ROOT / "mmcompile").rglob("*.py"):
        if PACKAGE in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0].startswith("tensorrt") for name in names), path


def test_nothing_of_tensorrt_is_imported_early():
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert all(not alias.name.startswith("tensorrt") for alias in node.names)
