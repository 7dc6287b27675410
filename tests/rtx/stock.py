"""Builds stock graphs, without a plugin, with TensorRT-RTX's real builder: no GPU, no driver."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

import onnx

PACKAGE = "tensorrt_rtx"
SMALL = (1, 2, 4), (1, 32, 64)
"""Smallest, best and largest size of an input's first dynamic dimension, and of all others."""


@functools.cache
def real_builder() -> ModuleType:
    """TensorRT-RTX itself, which tests/conftest.py hides from all others.

    Raises:
        ImportError: it is not installed.
    """
    hidden = sys.modules.pop(PACKAGE, ())
    try:
        return importlib.import_module(PACKAGE)
    finally:
        if hidden is None:
            sys.modules[PACKAGE] = hidden


def build_stock(model: onnx.ModelProto | Path, profiles: int = 1) -> bytes:
    """The engine of a model for SM120.

    Args:
        model: a model with its weights, or its file.
        profiles: optimization profiles, all alike.

    Raises:
        RuntimeError: with what TensorRT-RTX objects to.
    """
    trt = real_builder()
    said: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self):
            super().__init__()

        def log(self, severity, text):
            if int(severity) <= 1:
                said.append(text)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if isinstance(model, Path):
        good = parser.parse_from_file(str(model))
    else:
        good = parser.parse(model.SerializeToString())
    if not good:
        raise RuntimeError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for _ in range(profiles if any(-1 in tensor.shape for tensor in inputs) else 0):
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            profile.set_shape(tensor.name, *(_sized(tensor.shape, place) for place in range(3)))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("; ".join(said))
    return bytes(memoryview(plan))


def _sized(shape, place):
    """A shape with the smallest, best or largest size in the place of every dynamic one."""
    first, *_ = [axis for axis, size in enumerate(shape) if size == -1] or [-1]
    sizes = (SMALL[axis != first][place] if size == -1 else size for axis, size in enumerate(shape))
    return tuple(sizes)
