"""Loading TensorRT, and plugin libraries into it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompile.backends.engines.api.names import NEWEST_MAJOR, OLDEST
from mmcompile.backends.engines.messages import Message, last_error
from mmcompile.errors import EnvironmentProblem

FULL = ("tensorrt",)
RUNTIMES = ("tensorrt", "tensorrt_lean", "tensorrt_dispatch")
"""Packages that can run an engine; the last two only version-compatible ones."""
_WARNING = 2
"""Severities: 0 internal error, 1 error, 2 warning; higher ones are for debugging TensorRT."""


@dataclass(frozen=True)
class TensorRT:
    """A loaded TensorRT.

    Attributes:
        module: its Python module.
        package: the module's name.
        version: e.g. `11.4.0.106`.
        logger: a TensorRT logger that fills `messages`.
        messages: the warnings and errors so far.
    """

    module: Any
    package: str
    version: str
    logger: Any
    messages: list[Message]


def load(packages: Sequence[str] = FULL) -> TensorRT:
    """Imports the first of the packages that is installed.

    Raises:
        EnvironmentProblem: there is none, it cannot be imported, or its release is not supported.
    """
    problems = []
    for package in packages:
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
        check_release(version)
        messages: list[Message] = []
        return TensorRT(module, package, version, _logger(module, messages), messages)
    reason = "; ".join(problems) or "TensorRT is not installed here"
    remedy = "pip install tensorrt (10.13 to 11.x)"
    raise EnvironmentProblem("tensorrt-missing", "TensorRT", reason, remedy)


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, e.g. (11, 4, 0, 106)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_release(version: str) -> None:
    """Refuses releases that mmcompile does not support.

    Raises:
        EnvironmentProblem: too old or too new.
    """
    numbers = release(version)
    if numbers >= OLDEST and numbers[0] <= NEWEST_MAJOR:
        return
    too = "old" if numbers < OLDEST else "new"
    reason = f"TensorRT {version} is too {too}; mmcompile supports 10.13 to {NEWEST_MAJOR}.x"
    remedy = f"pip install 'tensorrt>=10.13,<{NEWEST_MAJOR + 1}'"
    raise EnvironmentProblem(f"tensorrt-too-{too}", "TensorRT", reason, remedy)


def _logger(module: Any, messages: list[Message]) -> Any:
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
