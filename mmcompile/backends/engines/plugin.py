"""Where the TensorRT plugin library is, and what it is called in TensorRT's registry."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmcompile.backends.engines.meta import FileMeta, PluginMeta
from mmcompile.errors import EnvironmentProblem
from mmcompile.libraries import MISSING, PLUGIN, remedy

LIBRARY = PLUGIN.file
_ELF = b"\x7fELF"


@dataclass(frozen=True)
class PluginLibrary:
    """A library, and the plugin that an engine asks of it.

    Attributes:
        path: the library.
        creator: name, version and namespace by which TensorRT's registry knows the plugin.
    """

    path: Path
    creator: tuple[str, str, str]


def find_plugin(folder: Path | None = None) -> Path:
    """The plugin library: $MMCOMPILE_PLUGIN, that of a bundle, the package's, the checkout's.

    Args:
        folder: of a bundle that may hold one.

    Raises:
        EnvironmentProblem: there is none, or what the variable names is none.
    """
    named = os.environ.get(PLUGIN.variable)
    if not named and folder is not None and _is_library(folder / LIBRARY):
        return folder / LIBRARY
    path = PLUGIN.find()
    if path is not None and _is_library(path):
        return path
    if path is not None:
        reason = f"{PLUGIN.variable} names it, but it is no shared library"
        if not named:
            reason = "it is no shared library"
        raise EnvironmentProblem("plugin-not-found", path, reason, remedy(PLUGIN))
    reason = f"the plugin library {LIBRARY} is {MISSING}"
    raise EnvironmentProblem("plugin-not-found", "TensorRT plugin", reason, remedy(PLUGIN))


def plugin_meta(library: FileMeta | None) -> PluginMeta:
    """The plugin that the nodes of this version of mmcompile ask for."""
    from mmcompile.ops import DOMAIN, LAYOUT_VERSION, OP_TYPE, PLUGIN_VERSION

    return PluginMeta(OP_TYPE, PLUGIN_VERSION, DOMAIN, LAYOUT_VERSION, library)


def plugin_creator() -> tuple[str, str, str]:
    """Name, version and namespace by which TensorRT's registry knows the plugin."""
    plugin = plugin_meta(None)
    return plugin.name, plugin.version, plugin.namespace


def _is_library(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_ELF)) == _ELF
    except OSError:
        return False
