"""Python packages and the native module."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import itertools
import os
import platform

from mmcompile.finding import Finding

REQUIRED = {
    "click": "8.1",
    "jinja2": "3.1",
    "matplotlib": "3.8",
    "ml_dtypes": "0.5",
    "msgspec": "0.19",
    "numpy": "1.26",
    "onnx": "1.18",
    "onnx-graphsurgeon": "0.5.8",
    "onnxruntime": "1.20",
    "polygraphy": "0.53",
    "rich": "13.7",
}
"""Packages that nothing works without, with their oldest version; pyproject.toml's dependencies."""
OPTIONAL = {
    "tokenizers": ("no calibration on text files", "pip install 'mmcompile[text]'"),
    "torch": (
        "no export from PyTorch, no cuBLAS beside our kernels in bench --kernels",
        "pip install 'mmcompile[export]'",
    ),
    "transformers": ("no export of Hugging Face folders", "pip install 'mmcompile[export]'"),
}
"""Packages that single commands need, with what is missing without them and how to get them."""


def examine() -> tuple[Finding, ...]:
    """Python, the packages and the native module."""
    return (
        Finding("python", True, platform.python_version(), "", "", required=True),
        *(_required(name, oldest) for name, oldest in REQUIRED.items()),
        _native(),
        *(_optional(name, cost, remedy) for name, (cost, remedy) in OPTIONAL.items()),
    )


def _required(name: str, oldest: str) -> Finding:
    """A package that has to be there, new enough, and able to be imported."""
    missing = functools.partial(
        Finding,
        name,
        False,
        cost="mmcompile does not work",
        remedy=f"pip install '{name}>={oldest}'",
        required=True,
    )
    try:
        version = importlib.metadata.version(name)
        importlib.import_module(name.replace("-", "_"))
    except importlib.metadata.PackageNotFoundError:
        return missing("not installed")
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return missing(f"it cannot be imported: {error}")
    if _numbers(version) < _numbers(oldest):
        return missing(f"{version} is too old")
    return Finding(name, True, version, "", "", required=True)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparison."""
    parts = itertools.takewhile(str.isdigit, version.split("."))
    return tuple(map(int, parts))


def _optional(name: str, cost: str, remedy: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", cost, remedy)
    return Finding(name, True, version, cost, remedy)


def _native() -> Finding:
    cost, remedy = "mmcompile cannot pack weights", "pip install . in the source, or reinstall"
    try:
        from mmcompile import _native
    except ImportError as error:
        return Finding("native module", False, str(error), cost, remedy, required=True)
    place = f"{_native.__file__}, {os.cpu_count()} threads"
    return Finding("native module", True, place, cost, remedy, required=True)
