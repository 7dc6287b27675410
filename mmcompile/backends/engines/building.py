"""Builds an engine in this process: parsing, the checks before, the build, the check after.

What is asked and what comes back are plain data, so that a process of its own can do the same
(`isolation`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NoReturn

import msgspec

from mmcompile.backends.engines import api as trt
from mmcompile.backends.engines.device import Device
from mmcompile.backends.engines.interface import Interface, check_engine
from mmcompile.backends.engines.messages import Explanation, explain_build, explain_parser
from mmcompile.backends.engines.meta import BuildChoices
from mmcompile.backends.engines.product import Product
from mmcompile.cache import cache_folder, cache_key
from mmcompile.errors import EnvironmentProblem, UnsupportedModelError, UsageError
from mmcompile.output import disk_errors

_NOT_OURS = {"parser-error": UnsupportedModelError, "build-profile": UsageError}
"""Failures that are not the environment's, by code."""


class BuildRequest(msgspec.Struct, frozen=True, tag="build"):
    """An engine to build.

    Attributes:
        product: what builds it.
        model: the serialized ONNX model as the builder gets it, its weights outside.
        nodes: names of its nodes, in order.
        path: the file beside which the weights lie.
        library: the plugin library; None where no node asks for a plugin.
        creator: name, version and namespace of the plugin.
        target: the architecture, e.g. `sm_120`.
        device: the GPU that is here; None where there is none.
        choices: what the builder is told.
        interface: inputs and outputs that the engine has to have; None compares nothing.
        output: the file to write.
    """

    product: Product
    model: bytes
    nodes: tuple[str, ...]
    path: str
    library: str | None
    creator: tuple[str, str, str]
    target: str
    device: Device | None
    choices: BuildChoices
    interface: Interface | None
    output: str


class BuildAnswer(msgspec.Struct, frozen=True, tag="built"):
    """What was built: the builder's version, and inputs and outputs as it has them."""

    version: str
    interface: Interface


class LoadRequest(msgspec.Struct, frozen=True, tag="load"):
    """An engine to load, to see whether it can be, and what its inputs and outputs are.

    Attributes:
        product: what built it.
        path: the engine.
        library: the plugin library; None where the engine needs none or holds it.
        creator: name, version and namespace of the plugin.
        embedded: the engine holds code.
    """

    product: Product
    path: str
    library: str | None
    creator: tuple[str, str, str]
    embedded: bool


class LoadAnswer(msgspec.Struct, frozen=True, tag="loaded"):
    """Inputs and outputs of an engine that was loaded, and its inspector's JSON."""

    interface: Interface
    inspection: str


def build(request: BuildRequest) -> BuildAnswer:
    """Builds an engine and writes it.

    Raises:
        MMCompileError: with the ONNX node concerned, where TensorRT names one.
    """
    tensorrt = trt.load(request.product, echo=request.product.isolated)
    if request.library is not None:
        trt.load_plugin(tensorrt, Path(request.library), request.creator)
    network = trt.parse(tensorrt, request.model, Path(request.path))
    title = request.product.title
    if network.errors:
        found = explain_parser(network.errors, request.nodes, tensorrt.messages, title)
        _refuse(found, request.path)
    interface = network.interface()
    if request.interface is not None:
        check_engine(request.interface, interface, f"{title}'s network", ordered=True)
    if by_value := network.shape_inputs():
        reason = "the values of this input decide shapes, which profiles here cannot bound"
        place = f"input {by_value[0]}"
        remedy = "export the model so that shapes follow from its inputs' shapes"
        raise UnsupportedModelError("shape-input", place, reason, remedy)
    plan = _plan(tensorrt, network, request)
    with disk_errors(Path(request.output)):
        Path(request.output).write_bytes(plan)
    return BuildAnswer(tensorrt.version, interface)


def load(request: LoadRequest) -> LoadAnswer:
    """Loads an engine on the GPU that is here, and lets it go.

    Raises:
        EnvironmentProblem: the plugin or the engine is refused.
    """
    tensorrt = trt.load(request.product, echo=request.product.isolated)
    if request.library is not None:
        trt.load_plugin(tensorrt, Path(request.library), request.creator)
    plan = memoryview(Path(request.path).read_bytes())
    runtime, engine = trt.deserialize(tensorrt, plan, host_code=request.embedded)
    answer = LoadAnswer(trt.engine_interface(tensorrt, engine), trt.inspection(tensorrt, engine))
    del engine, runtime  # in this order: an engine must not outlive its runtime
    return answer


def _plan(tensorrt: trt.TensorRT, network: trt.Network, request: BuildRequest) -> memoryview:
    product, choices = request.product, request.choices
    library = request.library if choices.embed_plugin else None
    cache = _timing_cache(tensorrt, request)
    settings = trt.BuildSettings(
        profiles=choices.profiles,
        optimization_level=choices.optimization_level,
        workspace_bytes=choices.workspace_bytes,
        embedded_plugin=None if library is None else Path(library),
        version_compatible=library is not None and product.compatible,
        weight_streaming=choices.weight_streaming,
        architecture=request.target if product.ahead_of_time else None,
        timing_cache=None if cache is None else _read(cache),
    )
    before = len(tensorrt.messages)
    try:
        plan, measured = network.build(settings)
    except (ValueError, RuntimeError, MemoryError) as error:
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"out of memory {error}"
        tensorrt.messages.append(trt.Message(1, text))
        plan, measured = None, b""
    if plan is None or not len(plan):
        found = explain_build(tensorrt.messages[before:], request.nodes, product.title)
        _refuse(found, "engine")
    if cache is not None and measured:
        _keep(cache, measured)
    return plan


def _refuse(found: Explanation, where: object) -> NoReturn:
    place = f"node {found.node}" if found.node else where
    kind = _NOT_OURS.get(found.code, EnvironmentProblem)
    raise kind(found.code, place, found.reason, found.remedy)


def _timing_cache(tensorrt: trt.TensorRT, request: BuildRequest) -> Path | None:
    """Where measurements of this builder on this GPU lie; None where nothing is measured."""
    if request.product.ahead_of_time or request.device is None:
        return None
    device = request.device
    key = cache_key(request.product.backend, tensorrt.version, device.name, device.architecture)
    return cache_folder() / "timing" / f"{key}.cache"


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _keep(path: Path, measured: bytes) -> None:
    """Keeps what was measured; a cache that cannot be written costs time only."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(measured)
        partial.replace(path)
