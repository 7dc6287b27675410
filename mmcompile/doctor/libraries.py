"""The compiled libraries and TensorRT: found, loadable, for this GPU, registered."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import re
import subprocess
import sys

from mmcompile.cuda.driver import GpuFacts
from mmcompile.finding import Finding, looked_for
from mmcompile.kernels import KernelLibrary
from mmcompile.libraries import KERNELS, MISSING, PLUGIN, remedy

REGISTRY_SECONDS = 120.0
OLDEST, NEWEST_MAJOR = (10, 13), 11
"""Releases of TensorRT that mmcompile supports."""
REGISTRIES = (
    "tensorrt",
    "tensorrt_lean",
    "tensorrt_lean_bindings",
    "tensorrt_dispatch",
    "tensorrt_dispatch_bindings",
)
"""Python modules with a plugin registry, the complete one first."""

# In a process of its own: a library that does not fit ends it, and only it. A GPU is not needed.
_REGISTER = """
import importlib, sys
trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[2])
found = registry.get_creator(*sys.argv[3:6])
print(f"registered in {sys.argv[1]} {trt.__version__}" if found is not None else "")
"""


def fits(architectures: str, device: int) -> bool:
    """Whether a library for these architectures has code for a device.

    `80` runs on 8.x from 8.0 on, `120f` on its whole family, `120a` on 12.0 alone (CUDA C++
    Programming Guide, "Compute capabilities").
    """
    for entry in architectures.split():
        found = re.fullmatch(r"(\d+)([af]?)", entry)
        if found is None:
            continue
        number, suffix = int(found[1]), found[2]
        if number == device or (suffix != "a" and number // 10 == device // 10 and number < device):
            return True
    return False


def kernels(facts: GpuFacts | None) -> Finding:
    """The kernel library, and whether it has kernels for the GPU that is here."""
    here, missing = looked_for(
        "kernel library", "no self-test on a GPU, no bench --kernels", remedy(KERNELS)
    )
    path = KERNELS.find()
    if path is None:
        return missing(MISSING)
    try:
        architectures = KernelLibrary(path).architectures
    except (OSError, AttributeError) as error:
        return missing(f"{path} does not load: {error}")
    text = f"{path}, for {architectures}"
    if facts is not None and not fits(architectures, facts.architecture):
        return missing(f"{text}: nothing for sm_{facts.architecture}, the GPU that is here")
    return here(text)


def plugin() -> Finding:
    """The TensorRT plugin as a file that loads."""
    here, missing = looked_for(
        "TensorRT plugin", "no engine can be built or run with it", remedy(PLUGIN)
    )
    path = PLUGIN.find()
    if path is None:
        return missing(MISSING)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return missing(f"{path} does not load: {error}")
    if not hasattr(library, "getCreators"):
        return missing(f"{path} is no TensorRT plugin: it exports no getCreators")
    return here(str(path))


def tensorrt() -> tuple[Finding, ...]:
    """TensorRT for building and running, and its smaller runtimes where they are installed."""
    here, missing = looked_for(
        "TensorRT",
        "no engine on this machine; the ONNX model is complete",
        "pip install 'tensorrt>=10.13,<12' on the machine that has the GPU",
    )
    found = []
    version = _installed("tensorrt")
    if version is None:
        found.append(missing("not installed"))
    elif not OLDEST <= _numbers(version) < (NEWEST_MAJOR + 1,):
        found.append(missing(f"{version} is not supported: 10.13 to {NEWEST_MAJOR}.x are"))
    else:
        found.append(here(version))
    for flavour in ("lean", "dispatch"):
        packages = ("", "_bindings", "_cu12_bindings", "_cu13_bindings")
        versions = (_installed(f"tensorrt_{flavour}{package}") for package in packages)
        smaller = next(filter(None, versions), None)
        if smaller is not None:
            name = f"TensorRT {flavour} runtime"
            found.append(Finding(name, True, smaller, "", ""))
    return tuple(found)


def registration() -> Finding:
    """Whether TensorRT's plugin registry takes the library and finds the plugin in it."""
    here, missing = looked_for(
        "plugin registration", "TensorRT does not find the plugin", remedy(PLUGIN)
    )
    path = PLUGIN.find()
    module = next((name for name in REGISTRIES if _importable(name)), None)
    if path is None or not path.is_file() or module is None:
        absent = "no plugin library" if module is not None else "no TensorRT"
        return missing(f"not tried: {absent} here")
    try:
        from mmcompile.ops.schema import DOMAIN, OP_TYPE, PLUGIN_VERSION
    except ImportError as error:
        return missing(f"not tried: {error}")
    command = [sys.executable, "-c", _REGISTER, module, str(path.resolve())]
    try:
        done = subprocess.run(
            [*command, OP_TYPE, PLUGIN_VERSION, DOMAIN],
            capture_output=True,
            text=True,
            timeout=REGISTRY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return missing(f"{module}: {error}")
    if done.returncode == 0 and done.stdout.strip():
        return here(f"{OP_TYPE} {PLUGIN_VERSION} {done.stdout.strip()}")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = lines[-1] if lines else f"the process ended with code {done.returncode}"
    return missing(f"{module} finds no {OP_TYPE} in {path}: {told}")


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
