"""TensorRT's Python API, reached through this package only.

Thin: each function wraps a few calls and turns TensorRT's ways of failing (None, False, an error
log, an exception of pybind11) into errors with a remedy. The names used are listed in `names`.
Nothing of TensorRT is imported before `load` is called.
"""

from mmcompile.build.messages import Message
from mmcompile.build.tensorrt.library import (
    FULL,
    RUNTIMES,
    TensorRT,
    check_release,
    load,
    load_plugin,
    release,
)
from mmcompile.build.tensorrt.network import BuildSettings, Network, parse
from mmcompile.build.tensorrt.running import (
    Context,
    deserialize,
    engine_interface,
    engine_profiles,
    inspection,
)

__all__ = [
    "FULL",
    "RUNTIMES",
    "BuildSettings",
    "Context",
    "Message",
    "Network",
    "TensorRT",
    "check_release",
    "deserialize",
    "engine_interface",
    "engine_profiles",
    "inspection",
    "load",
    "load_plugin",
    "parse",
    "release",
]
