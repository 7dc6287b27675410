"""Two TensorRTs in one process, and the plugin library in both; run by `test_registry.py`.

usage: two_registries.py BINDINGS BINDINGS PLUGIN

Prints how many creators of ours each registry has, step by step, as JSON.
"""

# mypy: ignore-errors

import _ctypes
import ctypes
import importlib
import json
import sys

*names, plugin_path = sys.argv[1:]
first, second = (importlib.import_module(name).get_plugin_registry() for name in names)
steps = {}


def count(step):
    steps[step] = [
        sum(creator.name == "MicroMixLinear" for creator in registry.all_creators)
        for registry in (first, second)
    ]


library = ctypes.CDLL(plugin_path)
count("dlopen")
handles = [first.load_library(plugin_path)]
count("load in the first")
handles.append(second.load_library(plugin_path))
count("load in the second")
first.deregister_library(handles[0])
count("leave the first")
second.deregister_library(handles[1])
count("leave the second")
_ctypes.dlclose(library._handle)
json.dump(steps, sys.stdout)
