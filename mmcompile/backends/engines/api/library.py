"""Loading TensorRT, and plugin libraries into it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompile.backends.engines.messages import Message, last_error
from mmcompile.backends.engines.product import Product, importable, version_of
from mmcompile.errors import EnvironmentProblem

MISSING = "tensorrt-missing"
"""Code of the error that a product is not installed."""
_WARNING = 2
"""Severities: 0 internal error, 1 error, 2 warning; higher ones are for debugging TensorRT."""


@dataclass(frozen=True)
class TensorRT:
    """A loaded TensorRT.

    Attributes:
        product: which of NVIDIA's.
        module: its Python module.
        version: e.g. `11.4.0.106`.
        logger: a TensorRT logger that fills `messages`.
        messages: the warnings and errors so far.
    """

    product: Product
    module: Any
    version: str
    logger: Any
    messages: list[Message]

    @property
    def name(self) -> str:
        """Product and version."""
        return f"{self.product.title} {self.version}"


def installed_version(product: Product) -> str:
    """Version of a product that is installed; one that can end the process is not imported.

    Raises:
        EnvironmentProblem: it is not installed, cannot be imported, or its release is not
            supported.
    """
    version = version_of(product.distributions) if product.isolated else None
    if version is None:
        return load(product).version
    if not importable(product.module):
        raise _missing(product)
    check_release(product, version)
    return version


def load(product: Product, *, smaller: bool = False, echo: bool = False) -> TensorRT:
    """Imports a product.

    Args:
        product: the product.
        smaller: one of its smaller runtimes will do.
        echo: also print errors, for those who find the process dead.

    Raises:
        EnvironmentProblem: it is not installed, cannot be imported, or its release is not
            supported.
    """
    problems = []
    for package in product.runtimes if smaller else (product.module,):
        try:
            module = importlib.import_module(package)
            version = str(module.__version__)
        except ModuleNotFoundError as error:
            if error.name != package:
                problems.append(f"{package} is installed but lacks {error.name}")
            continue
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            problems.append(f"{package} cannot be imported: {error}")
            continue
        check_release(product, version)
        messages: list[Message] = []
        return TensorRT(product, module, version, _logger(module, messages, echo), messages)
    raise _missing(product, "; ".join(problems))


def _missing(product: Product, reason: str = "") -> EnvironmentProblem:
    reason = reason or f"{product.title} is not installed here"
    return EnvironmentProblem(MISSING, product.title, reason, product.install)


def check_release(product: Product, version: str) -> None:
    """Refuses releases that mmcompile does not support.

    Raises:
        EnvironmentProblem: too old or too new.
    """
    if age := product.age(version):
        title = product.title
        reason = f"{title} {version} is {age}; mmcompile supports {product.supported}"
        code = f"tensorrt-{age.replace(' ', '-')}"
        raise EnvironmentProblem(code, title, reason, product.install)


def _logger(module: Any, messages: list[Message], echo: bool) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors.

        TensorRT calls it from several threads and must not see an exception: appending to a list
        is atomic and raises none.
        """

        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= _WARNING:
                messages.append(Message(int(severity), text))
            if echo and int(severity) < _WARNING:
                os.write(2, f"{text}\n".encode(errors="replace"))

    return Logger()


def load_plugin(tensorrt: TensorRT, library: Path, creator: tuple[str, str, str]) -> None:
    """Loads a plugin library into TensorRT's registry, unless its plugin is there already.

    Args:
        tensorrt: the TensorRT.
        library: the shared library.
        creator: name, version and namespace of the plugin.

    Raises:
        EnvironmentProblem: it cannot be loaded, or does not hold the plugin.
    """
    registry = tensorrt.module.get_plugin_registry()
    if registry.get_creator(*creator) is not None:
        return
    handle, cause = None, None
    try:
        handle = registry.load_library(str(library))
    except (RuntimeError, ValueError, TypeError) as error:
        cause = str(error)
    if handle is None or registry.get_creator(*creator) is None:
        cause = cause or last_error(tensorrt.messages) or "TensorRT's registry does not take it"
        reason = f"the plugin library cannot be loaded: {cause}"
        remedy = "use the library of this mmcompile; `mmcompile doctor` looks at it"
        raise EnvironmentProblem("plugin-unloadable", library, reason, remedy)
