"""Builds an engine from a compiled model: the checks before, the build, the checks after."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from mmcompile import __version__
from mmcompile.backends.engines import api as trt
from mmcompile.backends.engines.device import Device, read_device
from mmcompile.backends.engines.interface import check_engine
from mmcompile.backends.engines.messages import Explanation, explain_build, explain_parser
from mmcompile.backends.engines.meta import (
    ENGINE_FILE,
    FORMAT,
    META_FILE,
    BundleMeta,
    EngineMeta,
    check_file,
    describe_file,
    write_meta,
)
from mmcompile.cache import cache_folder, cache_key
from mmcompile.errors import EnvironmentProblem, MMCompileError, UnsupportedModelError, UsageError
from mmcompile.output import MODEL_FILE, disk_errors

_NOT_OURS = {"parser-error": UnsupportedModelError, "build-profile": UsageError}
"""Failures that are not the environment's, by code."""


@dataclass(frozen=True)
class Machine:
    """A machine that can build: TensorRT and the GPU."""

    tensorrt: trt.TensorRT
    device: Device


def find_machine(target: str) -> Machine:
    """This machine, if it can build for a target.

    Args:
        target: e.g. `sm_120`.

    Raises:
        EnvironmentProblem: TensorRT or the GPU is missing, of an unsupported release, or another
            GPU than the target.
    """
    tensorrt = trt.load()
    device = read_device()
    if device.architecture != target:
        raise EnvironmentProblem(
            "gpu-mismatch",
            "GPU",
            f"the model was compiled for {target}; here is {device.name} ({device.architecture})",
            f"build on a {target}, or compile with --gpu {device.architecture} --plan plan.json",
        )
    return Machine(tensorrt, device)


def build_engine(
    machine: Machine,
    bundle: Path,
    meta: BundleMeta,
    library: Path,
    output: Path,
    outputs: tuple[str, ...] = (),
) -> EngineMeta:
    """Builds the engine of a bundle and writes it with its description.

    Args:
        machine: TensorRT and the GPU.
        bundle: folder of the model.
        meta: what the bundle holds.
        library: the plugin library.
        output: folder that receives `engine.plan` and `engine.meta.json`: a staged one.
        outputs: further tensors to give out, for comparisons; such an engine is no drop-in.

    Returns:
        What was written into `engine.meta.json`.

    Raises:
        MMCompileError: with the ONNX node concerned, where TensorRT names one.
    """
    tensorrt = machine.tensorrt
    for file in meta.files:
        remedy = "copy the whole folder again, or compile the model again"
        check_file(bundle / file.name, file, "model", remedy, "bundle")
    plugin = meta.plugin
    trt.load_plugin(tensorrt, library, (plugin.name, plugin.version, plugin.namespace))
    model, nodes = _without_bodies(bundle / MODEL_FILE, outputs)
    network = trt.parse(tensorrt, model, bundle / MODEL_FILE)
    if network.errors:
        raise _failure(explain_parser(network.errors, nodes), bundle / MODEL_FILE)
    if not outputs:
        check_engine(meta.interface, network.interface(), "TensorRT network", ordered=True)
    if by_value := network.shape_inputs():
        reason = "the values of this input decide shapes, which profiles here cannot bound"
        where = f"input {by_value[0]}"
        remedy = "export the model so that shapes follow from its inputs' shapes"
        raise UnsupportedModelError("shape-input", where, reason, remedy)
    plan = _build(machine, network, meta, library, nodes)
    if outputs:
        meta = msgspec.structs.replace(meta, interface=network.interface())
    return _write(machine, plan, meta, library, output)


def _build(
    machine: Machine,
    network: trt.Network,
    meta: BundleMeta,
    library: Path,
    nodes: tuple[str, ...],
) -> memoryview:
    cache = _timing_cache(machine)
    choices = meta.choices
    settings = trt.BuildSettings(
        profiles=choices.profiles,
        optimization_level=choices.optimization_level,
        workspace_bytes=choices.workspace_bytes,
        embedded_plugin=library if choices.embed_plugin else None,
        timing_cache=cache.read_bytes() if cache.is_file() else b"",
    )
    messages = machine.tensorrt.messages
    before = len(messages)
    try:
        plan, measured = network.build(settings)
    except (ValueError, RuntimeError, MemoryError) as error:
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"out of memory {error}"
        messages.append(trt.Message(1, text))
        plan, measured = None, b""
    if plan is None or not len(plan):
        raise _failure(explain_build(messages[before:], nodes), "engine")
    if measured:
        _keep(cache, measured)
    return plan


def _write(
    machine: Machine,
    plan: memoryview,
    meta: BundleMeta,
    library: Path,
    output: Path,
) -> EngineMeta:
    path = output / ENGINE_FILE
    with disk_errors(path):
        path.write_bytes(plan)
        engine = describe_file(path)
        plugin = describe_file(library)
    host_code = meta.choices.embed_plugin
    runtime, engine_read = trt.deserialize(machine.tensorrt, plan, host_code=host_code)
    check_engine(meta.interface, trt.engine_interface(machine.tensorrt, engine_read), path)
    del engine_read, runtime  # in this order: an engine must not outlive its runtime
    described = EngineMeta(
        format=FORMAT,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        mmcompile=__version__,
        tensorrt=machine.tensorrt.version,
        device=machine.device,
        engine=engine,
        model_sha256=next(file.sha256 for file in meta.files if file.name == MODEL_FILE),
        plan_sha256=meta.plan_sha256,
        plugin=msgspec.structs.replace(meta.plugin, library=plugin),
        interface=meta.interface,
        choices=meta.choices,
    )
    write_meta(output / META_FILE, described)
    return described


def _without_bodies(path: Path, outputs: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
    """The model for TensorRT, without its weights, and its nodes' names.

    The functions that state what a MicroMixLinear means are left out: without the plugin,
    TensorRT would inline them and build an engine that is right and very slow.
    """
    model = onnx.load(path, load_external_data=False)
    del model.functions[:]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in outputs if name not in known
    )
    return model.SerializeToString(), tuple(node.name for node in model.graph.node)


def _failure(found: Explanation, where: object) -> MMCompileError:
    place = f"node {found.node}" if found.node else where
    kind = _NOT_OURS.get(found.code, EnvironmentProblem)
    return kind(found.code, place, found.reason, found.remedy)


def _timing_cache(machine: Machine) -> Path:
    key = cache_key(machine.tensorrt.version, machine.device.name, machine.device.architecture)
    return cache_folder() / "timing" / f"{key}.cache"


def _keep(path: Path, measured: bytes) -> None:
    """Keeps what was measured; a cache that cannot be written costs time only."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(measured)
        partial.replace(path)
