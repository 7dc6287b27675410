"""TensorRT's Python API, reached through this package only.

Thin: each function wraps a few calls and turns TensorRT's ways of failing (None, False, an error
log, an exception of pybind11) into errors with a remedy. The names used are listed in `names`.
Nothing of TensorRT is imported before `load` is called.
"""

from mmcompile.backends.engines.api.library import (
    MISSING,
    TensorRT,
    installed_version,
    load,
    load_plugin,
)
from mmcompile.backends.engines.api.network import BuildSettings, Network, parse
from mmcompile.backends.engines.api.running import (
    Context,
    deserialize,
    engine_interface,
    engine_profiles,
    inspection,
    stream_weights,
)
from mmcompile.backends.engines.messages import Message

__all__ = [
    "MISSING",
    "BuildSettings",
    "Context",
    "Message",
    "Network",
    "TensorRT",
    "deserialize",
    "engine_interface",
    "engine_profiles",
    "inspection",
    "installed_version",
    "load",
    "load_plugin",
    "parse",
    "stream_weights",
]
