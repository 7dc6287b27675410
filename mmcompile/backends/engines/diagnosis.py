"""Whether one of NVIDIA's builders is here, and whether its registry takes the plugin."""

from __future__ import annotations

import subprocess
import sys

from mmcompile.backends.engines.product import Product, importable, version_of
from mmcompile.finding import Finding, looked_for
from mmcompile.libraries import PLUGIN, remedy

REGISTRY_SECONDS = 120.0
"""How long a registry may take."""

# In a process of its own: a library that does not fit ends it, and only it. A GPU is not needed.
_REGISTER = """
import importlib, sys
trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()
handle = registry.load_library(sys.argv[2])
found = registry.get_creator(*sys.argv[3:6])
print(f"registered in {sys.argv[1]} {trt.__version__}" if found is not None else "")
"""


def examine(product: Product) -> tuple[Finding, ...]:
    """A product, its smaller runtimes where they are installed, and its plugin registry."""
    registry = next(filter(importable, product.registries), None)
    tried = () if registry is None else (registration(product, registry),)
    return (installed(product), *_smaller(product), *tried)


def installed(product: Product) -> Finding:
    """The package, by what package managers say: it is not imported."""
    served = f", builds for {', '.join(product.targets)}" if product.targets else ""
    where = "" if product.ahead_of_time else " on the machine that has the GPU"
    here, missing = looked_for(
        product.title,
        f"no engine by {product.title}; the ONNX model is complete",
        f"{product.install}{where}",
    )
    version = version_of(product.distributions)
    if version is None:
        return missing("not installed")
    if product.age(version):
        return missing(f"{version} is not supported: {product.supported} are")
    return here(f"{version}{served}")


def registration(product: Product, registry: str) -> Finding:
    """Whether a plugin registry takes the library and finds the plugin in it.

    Args:
        product: the product.
        registry: the module that has the registry.
    """
    here, missing = looked_for(
        f"plugin in {product.title}", f"{product.title} does not find the plugin", remedy(PLUGIN)
    )
    path = PLUGIN.find()
    if path is None or not path.is_file():
        return missing("not tried: no plugin library here")
    try:
        from mmcompile.ops.schema import DOMAIN, OP_TYPE, PLUGIN_VERSION
    except ImportError as error:
        return missing(f"not tried: {error}")
    command = [sys.executable, "-c", _REGISTER, registry, str(path.resolve())]
    try:
        done = subprocess.run(
            [*command, OP_TYPE, PLUGIN_VERSION, DOMAIN],
            capture_output=True,
            text=True,
            timeout=REGISTRY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return missing(f"{registry}: {error}")
    if done.returncode == 0 and done.stdout.strip():
        return here(f"{OP_TYPE} {PLUGIN_VERSION} {done.stdout.strip()}")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = lines[-1] if lines else f"the process ended with code {done.returncode}"
    return missing(f"{registry} finds no {OP_TYPE} in {path}: {told}")


def _smaller(product: Product) -> tuple[Finding, ...]:
    """The runtimes that run engines which hold their plugin, where they are installed."""
    found = []
    for module in product.runtimes:
        packages = (
            f"{module}{end}" for end in ("", "_bindings", "_cu12_bindings", "_cu13_bindings")
        )
        version = None if module == product.module else version_of(packages)
        if version is not None:
            found.append(Finding(f"{product.title} runtime {module}", True, version, "", ""))
    return tuple(found)
