"""NVIDIA's builder TensorRT-RTX on one model; run by the tests in a process of its own.

usage: builder.py PLUGIN WAY MODEL PLAN

WAY says how the plugin library gets into the process: `load` (the registry's load_library) or
`dlopen` (it registers itself). Builds for SM120, without a GPU, in two profiles where the model
has dynamic dimensions. Prints one JSON object, and writes the plan where there is one.
"""

# mypy: ignore-errors

import ctypes
import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

plugin, way, model, plan_path = sys.argv[1:]
PROFILES = ((1, 1, 8), (1, 12, 16))
"""Smallest, optimal and largest size of every dynamic dimension."""


class Recorder(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []

    def log(self, severity, text):
        if int(severity) <= int(trt.ILogger.WARNING):
            self.lines.append([int(severity), text])


def interface(count, get):
    return [[get(i).name, get(i).dtype.name, list(get(i).shape)] for i in range(count)]


def dynamic_inputs(network):
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    return [tensor for tensor in inputs if -1 in tensor.shape]


logger = Recorder()
builder = trt.Builder(logger)
if way == "load":
    trt.get_plugin_registry().load_library(plugin)
else:
    ctypes.CDLL(plugin)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
report = {"parsed": parser.parse_from_file(model)}
report["errors"] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
report["inputs"] = interface(network.num_inputs, network.get_input)
report["outputs"] = interface(network.num_outputs, network.get_output)
layers = [network.get_layer(i) for i in range(network.num_layers)]
report["plugin_layers"] = [layer.name for layer in layers if layer.type.name == "PLUGIN_V3"]
if report["parsed"]:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    for sizes in PROFILES if dynamic_inputs(network) else ():
        profile = builder.create_optimization_profile()
        for tensor in dynamic_inputs(network):
            bounds = [[n if d < 0 else d for d in tensor.shape] for n in sizes]
            profile.set_shape(tensor.name, *bounds)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is not None:
        Path(plan_path).write_bytes(memoryview(plan))
report["log"] = logger.lines
json.dump(report, sys.stdout)
