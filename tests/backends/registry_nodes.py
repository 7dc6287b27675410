"""Creates a plugin for every MicroMixLinear node of a bundle in NVIDIA's registry.

usage: registry_nodes.py BINDINGS BUNDLE

The fields are the node's own attributes, typed as the ONNX parser types them; the two that the
parser keeps for itself are left out. Prints one JSON object.
"""

# mypy: ignore-errors

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx

bindings, folder = sys.argv[1:]
trt = importlib.import_module(bindings)
registry = trt.get_plugin_registry()
handle = registry.load_library(str(Path(folder) / "libmmcompile_plugin.so"))
model = onnx.load(Path(folder) / "model.onnx", load_external_data=False)
kinds = {
    onnx.AttributeProto.INT: (np.int32, "INT32"),
    onnx.AttributeProto.INTS: (np.int32, "INT32"),
    onnx.AttributeProto.FLOAT: (np.float32, "FLOAT32"),
    onnx.AttributeProto.FLOATS: (np.float32, "FLOAT32"),
}


def fields_of(node, damaged=False):
    fields, arrays = [], []
    for attribute in node.attribute:
        if attribute.name in ("plugin_version", "plugin_namespace"):
            continue
        dtype, kind = kinds[attribute.type]
        value = onnx.helper.get_attribute_value(attribute)
        arrays.append(np.atleast_1d(np.array(value, dtype)))
        if damaged and attribute.name == "segment_channels":
            arrays[-1] = arrays[-1] + 1
        kind = getattr(trt.PluginFieldType, kind)
        fields.append(trt.PluginField(attribute.name, arrays[-1], kind))
    return trt.PluginFieldCollection(fields), arrays


report = {"loaded": handle is not None, "nodes": 0, "created": 0, "damaged": 0}
for node in model.graph.node:
    if node.op_type != "MicroMixLinear":
        continue
    report["nodes"] += 1
    texts = {a.name: a.s.decode() for a in node.attribute if a.type == onnx.AttributeProto.STRING}
    creator = registry.get_creator(node.op_type, texts["plugin_version"], texts["plugin_namespace"])
    fields, kept = fields_of(node)
    plugin = creator.create_plugin(node.name, fields, trt.TensorRTPhase.BUILD)
    report["created"] += plugin is not None
    fields, kept = fields_of(node, damaged=True)
    plugin = creator.create_plugin(node.name, fields, trt.TensorRTPhase.BUILD)
    report["damaged"] += plugin is not None
json.dump(report, sys.stdout)
