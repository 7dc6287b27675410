"""NVIDIA's registry with the plugin library in it; run by `test_registry.py`.

usage: registry_client.py BINDINGS PLUGIN DRIVER WAY

WAY says how the library gets into the process: `load` (the registry's load_library), `dlopen`
(registers itself), `both`, `close` (dlopen, then dlclose), `exit` (dlopen, then nothing).
Prints one JSON object.
"""

# mypy: ignore-errors

import _ctypes
import ctypes
import importlib
import json
import sys
from pathlib import Path

import numpy as np

bindings, plugin_path, driver_path, way = sys.argv[1:]
trt = importlib.import_module(bindings)
registry = trt.get_plugin_registry()
i32, i64, f32 = np.int32, np.int64, np.float32
GOOD = {
    "segment_channels": ([64, 32, 96], i32),
    "segment_act_formats": ([0, 4, 3], i32),
    "segment_weight_formats": ([0, 4, 1], i32),
    "segment_act_thresholds": ([1.75, 1.0, 2.0], f32),
    "act_tensor_scale": ([0.5], f32),
    "weight_tensor_scale": ([2.0**-100], f32),
    "layout_version": ([2], i32),
}


def changed(**changes):
    return list({**GOOD, **changes}.items())


CASES = {
    "good": list(GOOD.items()),
    "good-int64": [
        (name, (v, i64 if dtype is i32 else dtype)) for name, (v, dtype) in GOOD.items()
    ],
    "good-reversed": list(GOOD.items())[::-1],
    **{f"without-{name}": [item for item in GOOD.items() if item[0] != name] for name in GOOD},
    "empty": [],
    "extra": [*GOOD.items(), ("bits", ([4], i32))],
    "plugin-version": [*GOOD.items(), ("plugin_version", ([49], np.int8))],
    "workspace-in-build": [*GOOD.items(), ("workspace_bytes", ([4], i64))],
    "name-with-noise": [*GOOD.items(), ("\n%s%n" + "x" * 9999, ([4], i32))],
    "duplicate": [*GOOD.items(), ("layout_version", ([2], i32))],
    "channels-float": changed(segment_channels=([64.0, 32.0, 96.0], f32)),
    "channels-int8": changed(segment_channels=([64, 32, 96], np.int8)),
    "channels-empty": changed(segment_channels=([], i32)),
    "channels-odd": changed(segment_channels=([64, 33, 96], i32)),
    "channels-zero": changed(segment_channels=([64, 0, 96], i32)),
    "channels-negative": changed(segment_channels=([64, -32, 96], i32)),
    "channels-huge": changed(segment_channels=([64, 1 << 40, 96], i64)),
    "channels-sum-huge": changed(segment_channels=([2147483616] * 3, i32)),
    "segments-33": changed(segment_channels=([32] * 33, i32)),
    "segments-million": changed(segment_channels=([32] * 1_000_000, i32)),
    "formats-fewer": changed(segment_act_formats=([0, 4], i32)),
    "formats-more": changed(segment_weight_formats=([0, 4, 1, 1], i32)),
    "format-unknown": changed(segment_act_formats=([0, 4, 5], i32)),
    "format-negative": changed(segment_weight_formats=([0, 4, -1], i32)),
    "nvfp4-alone": changed(segment_weight_formats=([0, 0, 1], i32)),
    "threshold-low": changed(segment_act_thresholds=([1.75, 0.99, 2.0], f32)),
    "threshold-high": changed(segment_act_thresholds=([1.75, 2.01, 2.0], f32)),
    "threshold-nan": changed(segment_act_thresholds=([1.75, np.nan, 2.0], f32)),
    "thresholds-int": changed(segment_act_thresholds=([1, 1, 2], i32)),
    "scale-not-power": changed(act_tensor_scale=([0.75], f32)),
    "scale-zero": changed(act_tensor_scale=([0.0], f32)),
    "scale-negative": changed(act_tensor_scale=([-1.0], f32)),
    "scale-infinite": changed(weight_tensor_scale=([np.inf], f32)),
    "scale-small": changed(weight_tensor_scale=([2.0**-101], f32)),
    "scale-two": changed(weight_tensor_scale=([1.0, 1.0], f32)),
    "layout-1": changed(layout_version=([1], i32)),
    "layout-two": changed(layout_version=([2, 2], i32)),
}


class Recorder(trt.ILogger):
    """A logger behind NVIDIA's trampoline; `address` is that of its C++ object (pybind11)."""

    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, text):
        self.lines.append([int(severity), text])

    @property
    def address(self):
        return ctypes.c_void_p.from_address(id(self) + object.__basicsize__)


def collection(case):
    types = {i32: "INT32", i64: "INT64", f32: "FLOAT32", np.int8: "INT8"}
    arrays = [(name, np.array(values, dtype), types[dtype]) for name, (values, dtype) in case]
    fields = [trt.PluginField(n, a, getattr(trt.PluginFieldType, t)) for n, a, t in arrays]
    return trt.PluginFieldCollection(fields), arrays


def own_creators():
    return sum(c.name == "MicroMixLinear" for c in registry.all_creators)


def interface_shape():
    """The major TensorRT release whose interfaces it has; TensorRT-RTX 1.7 has those of 11."""
    return 11 if "rtx" in bindings else int(trt.__version__.split(".")[0])


def try_cases(creator, library):
    recorder = Recorder()
    driver = ctypes.CDLL(driver_path)
    driver.make_finder.restype = ctypes.c_void_p
    finder = driver.make_finder(interface_shape(), recorder.address)
    library.setLoggerFinder(ctypes.c_void_p(finder))
    results = {}

    def attempt(name, case, phase):
        recorder.lines.clear()
        fields, _arrays = collection(case)
        plugin = creator.create_plugin("a layer", fields, phase)
        results[name] = {"created": plugin is not None, "log": list(recorder.lines)}

    for name, case in CASES.items():
        attempt(name, case, trt.TensorRTPhase.BUILD)
    stored = [*GOOD.items(), ("workspace_bytes", ([4096], i64))]
    attempt("good-runtime", stored, trt.TensorRTPhase.RUNTIME)
    library.setLoggerFinder(None)
    return results


def look():
    """What the registry says of the plugin, and whether its creator makes one."""
    creator = registry.get_creator("MicroMixLinear", "1", "mmcompile")
    if creator is None:
        return {"count": own_creators()}
    fields, _arrays = collection(list(GOOD.items()))
    return {
        "count": own_creators(),
        "names": [creator.name, creator.plugin_version, creator.plugin_namespace],
        "fields": [[field.name, field.type.name] for field in creator.field_names],
        "created": creator.create_plugin("x", fields, trt.TensorRTPhase.BUILD) is not None,
        "refused": creator.create_plugin(
            "x", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD
        )
        is None,
    }


report = {"before": own_creators()}
if way == "load":
    handle = registry.load_library(plugin_path)
    report["loaded"] = look()
    library = ctypes.CDLL(plugin_path)
    creator = registry.get_creator("MicroMixLinear", "1", "mmcompile")
    report["cases"] = try_cases(creator, library)
    _ctypes.dlclose(library._handle)
else:
    library = ctypes.CDLL(plugin_path)
    report["opened"] = look()
    if way == "both":
        handle = registry.load_library(plugin_path)
        report["loaded"] = look()
    if way == "close":
        _ctypes.dlclose(library._handle)
if way in ("load", "both"):
    registry.deregister_library(handle)
report["after"] = own_creators()
report["mapped"] = Path(plugin_path).name in Path("/proc/self/maps").read_text()
json.dump(report, sys.stdout)
