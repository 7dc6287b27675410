"""`mmcompile doctor`: what of the environment is here, what is missing and what that costs."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import itertools
import os
import platform
import shutil
import subprocess
import tempfile

import msgspec

from mmcompile.cache import VARIABLE, cache_folder


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked for.

    Attributes:
        name: what.
        present: whether it is usable.
        found: version or place, or why it is not usable.
        cost: what cannot be done without it.
        remedy: how to get it.
        required: nothing works without it.
    """

    name: str
    present: bool
    found: str
    cost: str
    remedy: str
    required: bool = False


_REQUIRED = {
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
_OPTIONAL = {
    "tokenizers": ("no calibration on text files", "pip install 'mmcompile[text]'"),
    "torch": ("no export from PyTorch", "pip install 'mmcompile[export]'"),
    "transformers": ("no export of Hugging Face folders", "pip install 'mmcompile[export]'"),
    "tensorrt": ("no engine on this machine; the ONNX model is complete", "pip install tensorrt"),
}
TOOL_SECONDS = 20.0
"""How long a tool may take to tell its version."""
_TOOLS = {
    "c++": "the native module cannot be built from source",
    "cmake": "the native module cannot be built from source",
    "nvcc": "CUDA kernels cannot be compiled here",
}


def examine() -> tuple[Finding, ...]:
    """Looks at packages, the native module, compilers, the GPU and the cache."""
    return (
        Finding("python", True, platform.python_version(), "", "", required=True),
        *(_required(name, oldest) for name, oldest in _REQUIRED.items()),
        _native(),
        *(_optional(name, cost, remedy) for name, (cost, remedy) in _OPTIONAL.items()),
        *(_tool(name, cost) for name, cost in _TOOLS.items()),
        _gpu(),
        _cache(),
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


def _tool(name: str, cost: str) -> Finding:
    remedy = f"install {name} and put it on PATH"
    path = shutil.which(name)
    if path is None:
        return Finding(name, False, "not on PATH", cost, remedy)
    try:
        output = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=TOOL_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, f"{path}: {error}", cost, remedy)
    lines = [line for line in output.splitlines() if any(c.isdigit() for c in line)]
    version = next((line for line in lines if "release" in line or "version" in line), None)
    return Finding(name, True, version or (lines[0] if lines else path), cost, remedy)


def _gpu() -> Finding:
    """The first CUDA device, asked of the driver itself."""
    name, cost = "NVIDIA GPU", "nothing runs on a GPU here; compiling and verifying work"
    remedy = "run the compiled model on the machine that has the GPU"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(name, False, "no driver (libcuda.so.1)", cost, remedy)
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    text = ctypes.create_string_buffer(128)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Finding(name, False, "the driver finds no device", cost, remedy)
    driver.cuDeviceGetName(text, len(text), 0)
    # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    found = f"{text.value.decode(errors='replace')}, sm_{major.value}{minor.value}"
    return Finding(name, True, found, cost, remedy)


def _cache() -> Finding:
    """The cache folder, by writing to it: permissions alone do not tell for root."""
    folder = cache_folder()
    cost, remedy = "every run calibrates anew", f"make it writable, or set {VARIABLE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError as error:
        return Finding("cache", False, f"{folder}: {error.strerror}", cost, remedy)
    return Finding("cache", True, f"{folder}, {size / 1e6:.1f} MB", cost, remedy)
