"""A double of TensorRT's Python API that behaves as NVIDIA documents it, failures included.

TensorRT-RTX has the same one, and what is needed to build ahead of time besides.

`make` gives a fresh copy of this very module, so that its state lasts as long as one test.

Only the names of `mmcompile.backends.engines.api.names` exist in it (test_tensorrt_api.py checks
that), so that code which uses any other fails here. Engines run the ONNX model in ONNX Runtime, on
host memory that stands for the GPU's. What has no documentation (the wording of logs, for example)
was taken from public issues and is no proof of anything.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from tests.backends.double_parts import (
    MAGIC,
    NUMPY,
    ONNX_TYPES,
    PLUGIN,
    Faults,
    Member,
    Seen,
    enumeration,
)

__version__ = "11.4.0.106"
ARCHITECTURE = "sm_120"

faults, seen = Faults(), Seen()
creators: set[tuple[str, str, str]] = set()

DataType = enumeration("DataType", *ONNX_TYPES.values())
BuilderFlag = enumeration("BuilderFlag", "VERSION_COMPATIBLE", "WEIGHT_STREAMING")
LayerInformationFormat = enumeration("LayerInformationFormat", "JSON")
ComputeCapability = enumeration("ComputeCapability", "SM120", "SM121")
MemoryPoolType = enumeration("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = enumeration("ProfilingVerbosity", "DETAILED")
TensorIOMode = enumeration("TensorIOMode", "INPUT")


class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = Member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", 1)


class ILogger:
    def __init__(self):
        self.ready = True  # pybind11 objects fail later where this was not called


def log(logger, text):
    assert logger.ready
    logger.log(Member("Severity", "ERROR", 1), text)


class IPluginRegistry:
    def get_creator(self, name, version, plugin_namespace=""):
        return object() if (name, version, plugin_namespace) in creators else None

    def load_library(self, plugin_path):
        if faults.library or PLUGIN in creators or not Path(plugin_path).is_file():
            return None
        creators.add(PLUGIN)
        return object()


class ITensor:
    def __init__(self, value):
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = getattr(DataType, ONNX_TYPES.get(kind.elem_type, "FLOAT"))
        self.shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        self.is_shape_tensor = value.name.startswith("shape_of")


class INetworkDefinition:
    def __init__(self):
        self.model = None
        self.runnable = b""

    def _inputs(self):
        constants = {t.name for t in self.model.graph.initializer}
        inputs = [v for v in self.model.graph.input if v.name not in constants]
        return inputs[::-1] if faults.swap else inputs

    @property
    def num_inputs(self):
        return len(self._inputs())

    @property
    def num_outputs(self):
        return len(self.model.graph.output)

    def get_input(self, index):
        return ITensor(self._inputs()[index])

    def get_output(self, index):
        value = self.model.graph.output[index]
        if not value.type.tensor_type.elem_type:  # an inner tensor: its type follows from the graph
            inferred = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(self.runnable))
            inner = {v.name: v for v in (*inferred.graph.output, *inferred.graph.value_info)}
            value = inner[value.name]
        return ITensor(value)


class ParserError:
    def __init__(self, index, node, code, desc):
        self._values = index, node.name, node.op_type, code, desc

    def node(self):
        return self._values[0]

    def node_name(self):
        return self._values[1]

    def node_operator(self):
        return self._values[2]

    def code(self):
        return self._values[3]

    def desc(self):
        return self._values[4]


class OnnxParser:
    def __init__(self, network, _logger):
        self._network, self._errors = network, []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def parse(self, model, path=None):
        proto = onnx.ModelProto.FromString(model)
        seen.bodies = len(proto.functions)
        onnx.load_external_data_for_model(proto, str(Path(path).parent))
        for index, node in enumerate(proto.graph.node):
            if node.name == faults.node:
                text = "Assertion failed: dims.nbDims <= 8"
                self._errors.append(ParserError(index, node, "UNSUPPORTED_NODE", text))
            if node.domain == "mmcompile" and not proto.functions:
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                fields = ("plugin_version", "plugin_namespace")
                asked = (node.op_type, *(attributes[f].decode() for f in fields))
                if asked not in creators:
                    text = "Plugin not found, are the plugin name, version correct?"
                    self._errors.append(ParserError(index, node, "UNSUPPORTED_NODE", text))
        self._network.model = proto
        self._network.runnable = onnx.load(path).SerializeToString()
        return not self._errors


class IOptimizationProfile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, best, most):
        triples = list(zip(least, best, most, strict=True))
        if not all(0 <= a <= b <= c for a, b, c in triples):
            raise ValueError(f"Shape provided for min/opt/max of {name} is inconsistent.")
        self.shapes[name] = [list(least), list(best), list(most)]


class ITimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+measured"


class IBuilderConfig:
    def __init__(self):
        self.profiling_verbosity = None
        self.builder_optimization_level = 3
        self.plugins_to_serialize = []
        self.num_compute_capabilities = 0
        self._profiles, self._flags, self._cache = [], set(), None
        self._architecture = ARCHITECTURE

    def set_flag(self, flag):
        self._flags.add(str(flag))

    def set_compute_capability(self, compute_capability, index):
        assert index < self.num_compute_capabilities
        self._architecture = compute_capability.label.lower().replace("sm", "sm_")
        return True

    def set_memory_pool_limit(self, pool, size):
        assert str(pool) == "MemoryPoolType.WORKSPACE"
        seen.workspace = size

    def add_optimization_profile(self, profile):
        self._profiles.append(profile.shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, content):
        return ITimingCache(bytes(content))

    def set_timing_cache(self, cache, _ignore_mismatch):
        if faults.cache and cache.content:
            return False
        self._cache = cache
        seen.cache = cache.content
        return True

    def get_timing_cache(self):
        return self._cache


class Builder:
    def __init__(self, logger):
        if faults.builder:
            log(logger, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags=0):
        seen.flags = flags
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        seen.level = config.builder_optimization_level
        seen.plugins = list(config.plugins_to_serialize)
        if isinstance(faults.build, Exception):
            raise faults.build
        if faults.build is not None:
            for line in faults.build:
                log(self._logger, line)
            return None
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        dynamic = [t.name for t in inputs if -1 in t.shape]
        covered = all(name in shapes for shapes in config._profiles for name in dynamic)
        if dynamic and not (config._profiles and covered):
            text = f"Network has dynamic inputs {dynamic}, but no optimization profile defines"
            log(self._logger, f"4: [network.cpp::validate] {text} them")
            return None
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        names = [t.name for t in outputs]
        if faults.rename:
            names[0] += "_other"
        content = {
            "version": __version__,
            "architecture": config._architecture,
            "model": base64.b64encode(network.runnable).decode(),
            "profiles": config._profiles or [{t.name: [t.shape] * 3 for t in inputs}],
            "inputs": [[t.name, t.dtype.label, t.shape] for t in inputs],
            "outputs": [
                [name, t.dtype.label, t.shape] for name, t in zip(names, outputs, strict=True)
            ],
            "plugin": any(n.domain == "mmcompile" for n in network.model.graph.node),
            "streamed": "BuilderFlag.WEIGHT_STREAMING" in config._flags,
            "compatible": "BuilderFlag.VERSION_COMPATIBLE" in config._flags,
            "embedded": config.plugins_to_serialize,
        }
        return MAGIC + json.dumps(content).encode()


class Runtime:
    def __init__(self, logger):
        self.engine_host_code_allowed = False
        self._logger = logger

    def deserialize_cuda_engine(self, plan):
        data = bytes(plan)
        try:
            content = json.loads(data.removeprefix(MAGIC)) if data.startswith(MAGIC) else None
        except ValueError:
            content = None
        problem = None
        if content is None:
            problem = "1: [stdArchiveReader.cpp::checkMagic] Magic tag does not match"
        elif not content["compatible"] and content["version"] != __version__:
            problem = "6: The engine plan file is not compatible with this version of TensorRT"
        elif content["compatible"] and not self.engine_host_code_allowed:
            problem = "Cannot deserialize engine with lean runtime, host code is not allowed"
        elif content["architecture"] != ARCHITECTURE:
            problem = "The engine plan file is generated on an incompatible device"
        elif content["plugin"] and not content["embedded"] and PLUGIN not in creators:
            problem = "Cannot find plugin: MicroMixLinear, version: 1, namespace:mmcompile."
        if problem:
            log(self._logger, problem)
            return None
        return ICudaEngine(content, self._logger)


class ICudaEngine:
    def __init__(self, content, logger):
        self._content, self._logger = content, logger
        self._tensors = {n: (k, s) for n, k, s in content["inputs"] + content["outputs"]}
        self._input_names = [n for n, _, _ in content["inputs"]]

    @property
    def weight_streaming_budget_v2(self):
        return seen.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size):
        assert self._content["streamed"]
        seen.budget = size

    @property
    def num_io_tensors(self):
        return len(self._tensors)

    @property
    def num_optimization_profiles(self):
        return len(self._content["profiles"])

    def get_tensor_name(self, index):
        # Engines promise no order: outputs come last first, so that nobody relies on one.
        names = list(self._tensors)
        count = len(self._input_names)
        return (names[:count] + names[count:][::-1])[index]

    def get_tensor_mode(self, name):
        mode = TensorIOMode
        return mode.INPUT if name in self._input_names else object()

    def get_tensor_dtype(self, name):
        return getattr(DataType, self._tensors[name][0])

    def get_tensor_shape(self, name):
        return tuple(self._tensors[name][1])

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(s) for s in self._content["profiles"][profile_index][name]]

    def create_execution_context(self):
        if faults.context:
            log(self._logger, "2: [executionContext.cpp] OutOfMemory: requested 99 GiB")
            return None
        return IExecutionContext(self, self._content)

    def create_engine_inspector(self):
        return EngineInspector(self._content)


class EngineInspector:
    def __init__(self, content):
        self._content = content

    def get_engine_information(self, layer_information_format):
        assert str(layer_information_format) == "LayerInformationFormat.JSON"
        bindings = [name for name, _, _ in self._content["inputs"]]
        return json.dumps({"Layers": faults.layers, "Bindings": bindings})


class IProfiler:
    def __init__(self):
        self.ready = True


class IExecutionContext:
    def __init__(self, engine, content):
        self._engine, self._content, self._profile = engine, content, 0
        self._shapes, self._addresses, self._answers = {}, {}, None
        self.profiler = None

    def set_optimization_profile_async(self, profile_index, _stream_handle):
        self._profile = profile_index
        seen.profiles_set.append(profile_index)
        return True

    def set_input_shape(self, name, shape):
        bounds = self._content["profiles"][self._profile][name]
        inside = all(a <= s <= b for a, s, b in zip(bounds[0], shape, bounds[2], strict=True))
        if inside:
            self._shapes[name], self._answers = tuple(shape), None
        return inside

    def set_tensor_address(self, name, memory):
        assert memory
        self._addresses[name] = memory
        return True

    def infer_shapes(self):
        return [n for n in self._engine._input_names if n not in self._shapes]

    def get_tensor_shape(self, name):
        if name in self._shapes:
            return self._shapes[name]
        return self._run()[name].shape

    def execute_async_v3(self, _stream_handle):
        if faults.enqueue:
            log(self._engine._logger, "1: [genericReformat.cu] Cuda Runtime (illegal address)")
            return False
        for name, value in self._run().items():
            ctypes.memmove(self._addresses[name], value.ctypes.data, value.nbytes)
        if self.profiler is not None:
            assert self.profiler.ready
            self.profiler.report_layer_time("a layer", 0.5)
        self._answers = None
        return True

    def _run(self):
        if self._answers is None:
            self._answers = self._compute()
        return self._answers

    def _compute(self):
        feeds = {}
        for name, kind, _ in self._content["inputs"]:
            shape, dtype = self._shapes[name], np.dtype(NUMPY[kind])
            size = int(np.prod(shape)) * dtype.itemsize
            content = ctypes.string_at(self._addresses[name], size)
            feeds[name] = np.frombuffer(content, dtype).reshape(shape)
        model = onnx.ModelProto.FromString(base64.b64decode(self._content["model"]))
        names = [name for name, _, _ in self._content["outputs"]]
        known = {value.name for value in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in known
        )
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return dict(zip(names, session.run(names, feeds), strict=True))


_registry = IPluginRegistry()


def get_plugin_registry():
    return _registry


def init_libnvinfer_plugins(logger, namespace):
    return True


def make(
    version: str = __version__, architecture: str = ARCHITECTURE, name: str = "tensorrt"
) -> types.ModuleType:
    """A module of a release, on a GPU; its `faults` and `seen` belong to the tests."""
    spec = importlib.util.spec_from_file_location(name, __file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.__version__, module.ARCHITECTURE = version, architecture
    return module
