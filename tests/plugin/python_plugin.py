"""A TensorRT plugin in Python that writes down what arrives; run by `test_trampolines.py`.

usage: python_plugin.py BINDINGS DRIVER

Prints one JSON object: `python`, what every method of the plugin was called with; `cpp`, what the
C++ driver got back from each, as its lines; `finder`, what TensorRT's logger finder says it is.
"""

# mypy: ignore-errors

import ctypes
import importlib
import json
import sys
from pathlib import Path

import numpy as np

bindings, driver_path = sys.argv[1:]
trt = importlib.import_module(bindings)
calls = {}


def describe(tensor):
    """Without the format: the lean and dispatch bindings have no type for it."""
    return [list(tensor.dims), int(tensor.type), float(tensor.scale)]


def describe_range(tensor):
    return [*describe(tensor.desc), list(tensor.min), list(tensor.max), list(tensor.opt)]


class PythonPlugin(
    trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime
):
    def __init__(self):
        for base in PythonPlugin.__bases__:
            base.__init__(self)
        self.plugin_name = "PythonPlugin"
        self.plugin_version = "7"
        self.plugin_namespace = "probe"
        self.num_outputs = 1
        self.timing_cache_id = "timing-id"
        self.metadata_string = "meta-data"
        self.format_combination_limit = 23

    def get_capability_interface(self, kind):
        calls.setdefault("capabilities", []).append(int(kind))
        return self

    def get_output_data_types(self, input_types):
        calls["types"] = [int(t) for t in input_types]
        return [trt.DataType.HALF]

    def get_output_shapes(self, inputs, shape_inputs, builder):
        calls["shapes"] = [[d.is_constant() for d in dims] for dims in inputs]
        calls["shape_inputs"] = len(shape_inputs)
        product = builder.operation(
            trt.DimensionOperation.PROD, inputs[0][0], builder.constant(1 << 40)
        )
        result = trt.DimsExprs(2)
        result[0] = product
        result[1] = inputs[1][1]
        return [result]

    def supports_format_combination(self, position, in_out, num_inputs):
        calls.setdefault("formats", []).append(
            [position, num_inputs, [describe_range(tensor) for tensor in in_out]]
        )
        return position != 1

    def configure_plugin(self, inputs, outputs):
        calls["configure"] = [[describe_range(t) for t in side] for side in (inputs, outputs)]

    def get_workspace_size(self, inputs, outputs):
        calls["workspace"] = [[describe_range(t) for t in side] for side in (inputs, outputs)]
        return 5_000_000_019

    def get_valid_tactics(self):
        return [1001, 1002, 5]

    def set_tactic(self, tactic):
        calls["tactic"] = tactic

    def on_shape_change(self, inputs, outputs):
        calls["shape"] = [[describe(t) for t in side] for side in (inputs, outputs)]

    def enqueue(self, input_desc, output_desc, inputs, outputs, workspace, stream):
        calls["enqueue"] = [
            [describe(t) for t in input_desc],
            [describe(t) for t in output_desc],
            list(inputs),
            list(outputs),
            workspace,
            stream,
        ]

    def attach_to_context(self, context):
        calls["attach"] = type(context).__name__
        return self.clone()

    def get_fields_to_serialize(self):
        # The C++ collection only points to these.
        self.stored = np.array([9, 8], np.int32)
        self.field = trt.PluginField("stored", self.stored, trt.PluginFieldType.INT32)
        self.fields = trt.PluginFieldCollection([self.field])
        self.collection = trt.PluginFieldCollection_(self.fields)
        return self.collection

    def clone(self):
        calls["clones"] = calls.get("clones", 0) + 1
        copy = PythonPlugin()
        copy.__dict__.update(self.__dict__)
        return copy


class PythonCreator(trt.IPluginCreatorV3One):
    def __init__(self):
        trt.IPluginCreatorV3One.__init__(self)
        self.name = "PythonPlugin"
        self.plugin_version = "7"
        self.plugin_namespace = "probe"
        self.field_names = trt.PluginFieldCollection(
            [trt.PluginField("integers", np.array([], np.int32), trt.PluginFieldType.INT32)]
        )

    def create_plugin(self, name, fields, phase):
        calls["create"] = [
            name,
            int(phase),
            # 10.15's bindings repeat the first value in the others' place.
            [[f.name, int(f.type), len(f.data), float(f.data[0])] for f in fields],
        ]
        return PythonPlugin()


LIBRARIES = ("/libnvinfer_lean.", "/libnvinfer_dispatch.", "/libtensorrt_rtx.")


def native_registry():
    """Address of the registry, and the TensorRT release whose interfaces it has.

    ctypes finds the library by its path. TensorRT-RTX 1.7 has the interfaces of TensorRT 11.
    """
    maps = Path("/proc/self/maps").read_text().split()
    path = next(word for word in maps if any(name in word for name in LIBRARIES))
    library = ctypes.CDLL(path)
    library.getPluginRegistry.restype = ctypes.c_void_p
    release = library.getInferLibVersion() // 10000
    return library.getPluginRegistry(), 11 if "_rtx" in path else release


def call(function):
    text = ctypes.create_string_buffer(1 << 16)
    function(text, ctypes.c_size_t(len(text)))
    return text.value.decode()


creator = PythonCreator()
trt.get_plugin_registry().register_creator(creator, "probe")
driver = ctypes.CDLL(driver_path)
address, major = native_registry()
lines = call(lambda *text: driver.drive(ctypes.c_void_p(address), major, *text)).splitlines()
trt.get_plugin_registry().load_library(driver_path)
finder = call(lambda *text: driver.describe_finder(major, *text))
json.dump({"python": calls, "cpp": lines, "major": major, "finder": finder}, sys.stdout)
