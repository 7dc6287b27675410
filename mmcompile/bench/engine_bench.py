"""What `mmcompile bench` does with engines: writes stock baselines, builds all with TensorRT."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from mmcompile import __version__
from mmcompile.backends.engines import api as trt
from mmcompile.backends.engines.interface import TensorSpec
from mmcompile.backends.engines.messages import explain_build, explain_parser
from mmcompile.backends.engines.options import BuildOptions
from mmcompile.backends.engines.plugin import find_plugin
from mmcompile.backends.engines.shapes import Profile, Span
from mmcompile.bench.engines import Bench, Rig, Tensor, Variant, bench_engines
from mmcompile.bench.kernel_bench import WITHOUT_GPU, check_gpu
from mmcompile.bench.points import Point, Shapes, input_shapes
from mmcompile.bench.results import EngineBench
from mmcompile.calib.instrument import watched_tensor
from mmcompile.cuda.machine import GpuMachine
from mmcompile.data.options import DataOptions
from mmcompile.effort import Weights
from mmcompile.errors import EnvironmentProblem, MMCompileError, UsageError
from mmcompile.model.passes.baselines import write_baseline
from mmcompile.model.selection import Selection
from mmcompile.ops import DOMAIN, OP_TYPE, PLUGIN_VERSION
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.evidence import calibrated
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.pipeline.prepare import input_specs
from mmcompile.pipeline.run import Run, Settings, start_run
from mmcompile.progress import Progress
from mmcompile.targets.table import TARGETS

WITHOUT_DATA = ("fp16", "mxfp8")
"""Baselines that need no statistics."""
WITH_DATA = ("fp16", "fp8", "mxfp8", "nvfp4")
MICROMIX = "MicroMix"
NAMES = {"fp16": "FP16", "fp8": "FP8", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}


@dataclass(frozen=True)
class EngineBenchOptions:
    """What is built and timed.

    Attributes:
        named: further variants: name and ONNX file, such as a compiled model.
        points: sizes.
        data: calibration data; without any, FP8, NVFP4 and MicroMix are left out.
        selection: which linears the baselines quantize.
        gpu: refuse to measure on another; None takes what is there.
        plan: the plan that MicroMix follows; None makes one from the data.
    """

    named: Sequence[tuple[str, Path]]
    points: Sequence[Point]
    data: DataOptions = field(default_factory=DataOptions)
    selection: Selection = field(default_factory=Selection)
    gpu: str | None = None
    plan: Path | None = None


def engine_bench(model: Path, options: EngineBenchOptions, progress: Progress) -> EngineBench:
    """Builds and times stock baselines of a model, MicroMix, and the models that are named.

    MicroMix is compiled from the FP16 baseline, so that all variants but the linears are alike.

    Args:
        model: the original.
        options: what is built and timed.
        progress: told how far it is.

    Raises:
        EnvironmentProblem: TensorRT or the GPU is missing; the remedy names `--modelled`.
        MMCompileError: the model or the data cannot be used.
    """
    named, points, data = options.named, options.points, options.data
    selection, plan = options.selection, options.plan
    tensorrt, machine = _machine(options.gpu)
    settings = Settings(TARGETS[0], selection, progress=progress)
    run = start_run(model, data, settings, hold_back_some=False)
    prepared = run.prepared
    inputs = [(spec.name, spec.shape) for spec in input_specs(prepared.source.proto)]
    shapes = {point: input_shapes(inputs, point) for point in points}
    builder = _Builder(tensorrt, machine, profile_of(inputs, list(shapes.values())))
    with tempfile.TemporaryDirectory(prefix="mmcompile-bench-") as folder:
        variants = [*_baselines(run, Path(folder), builder)]
        if (data.calibration or plan) is not None and MICROMIX not in dict(named):
            variants.append(_micromix(Path(folder), data, plan, selection, builder))
        variants += [Variant(name, path) for name, path in named]
        bench = Bench(
            model=str(model),
            points=points,
            shapes=shapes.__getitem__,
            nodes=[node.name for node in prepared.source.proto.graph.node],
            linears=[site.node for group in prepared.groups for site in group.sites],
            versions={"mmcompile": __version__, "TensorRT": tensorrt.version},
        )
        rig = Rig(builder.build, builder.open, machine, machine.facts)
        return bench_engines(bench, variants, rig, progress)


def _machine(gpu: str | None) -> tuple[trt.TensorRT, GpuMachine]:
    try:
        tensorrt = trt.load()
        machine = GpuMachine()
    except EnvironmentProblem as problem:
        raise EnvironmentProblem(
            problem.code, problem.where, problem.reason, f"{problem.remedy}; or {WITHOUT_GPU}"
        ) from None
    if gpu is not None:
        check_gpu(gpu, machine.facts)
    return tensorrt, machine


def profile_of(
    inputs: Sequence[tuple[str, Sequence[int | str | None]]], shapes: Sequence[Shapes]
) -> Profile:
    """One optimization profile that holds all points; tuned for the last."""
    profile: Profile = {}
    for name, dimensions in inputs:
        if all(isinstance(size, int) for size in dimensions):
            continue
        sizes = [point[name] for point in shapes]
        least = tuple(map(min, zip(*sizes, strict=True)))
        most = tuple(map(max, zip(*sizes, strict=True)))
        profile[name] = Span(least, sizes[-1], most)
    return profile


def _baselines(run: Run, folder: Path, builder: _Builder) -> Iterator[Variant]:
    """The stock variants; why one cannot be written is told when it is built, beside the others."""
    prepared, has_data = run.prepared, run.inputs.calibration is not None
    amax = _amax(run) if has_data else {}
    kinds = WITH_DATA if has_data else WITHOUT_DATA
    for kind in kinds:
        target = folder / kind
        target.mkdir()
        try:
            write_baseline(kind, prepared.source, prepared.groups, amax, target)
        except MMCompileError as error:
            builder.unwritten[NAMES[kind]] = error
        yield Variant(NAMES[kind], target / "model.onnx")


def _micromix(
    folder: Path, data: DataOptions, plan: Path | None, selection: Selection, builder: _Builder
) -> Variant:
    """The compiled FP16 baseline; how its weights are rounded makes no difference to its speed."""
    target = folder / MICROMIX
    options = CompileOptions(
        output=target,
        data=data,
        plan=plan,
        weights=Weights.NEAREST,
        selection=selection,
        verify=VerifyOptions(enabled=False),
        build=BuildOptions(engine=False),
        html=False,
    )
    try:
        compile_model(folder / "fp16" / "model.onnx", options)
    except MMCompileError as error:
        builder.unwritten[MICROMIX] = error
    return Variant(MICROMIX, target / "model.onnx")


def _amax(run: Run) -> Mapping[str, float]:
    stats, _ = calibrated(run, run.inputs.calibration, ())
    return {
        group.input: float(stats.tensors[watched_tensor(group).key].abs_max.max())
        for group in run.prepared.groups
    }


@dataclass(frozen=True)
class _Builder:
    """Builds and opens engines by TensorRT."""

    tensorrt: trt.TensorRT
    machine: GpuMachine
    profile: Profile
    unwritten: dict[str, MMCompileError] = field(default_factory=dict)

    def build(self, variant: Variant) -> bytes:
        """See `bench.engines.Build`."""
        if variant.name in self.unwritten:
            raise self.unwritten[variant.name]
        try:
            model = onnx.load(variant.model, load_external_data=False)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                "variant-unreadable", variant.model, reason, "name an ONNX file"
            ) from None
        if any(node.op_type == OP_TYPE for node in model.graph.node):
            library = variant.plugin or find_plugin(variant.model.parent)
            trt.load_plugin(self.tensorrt, library, (OP_TYPE, PLUGIN_VERSION, DOMAIN))
            del model.functions[:]  # or TensorRT inlines them where it does not find the plugin
        nodes = [node.name for node in model.graph.node]
        network = trt.parse(self.tensorrt, model.SerializeToString(), variant.model)
        if network.errors:
            found = explain_parser(network.errors, nodes)
            raise EnvironmentProblem(
                found.code, found.node or variant.model, found.reason, found.remedy
            )
        before = len(self.tensorrt.messages)
        profiles = (self.profile,) if self.profile else ()
        plan, _ = network.build(trt.BuildSettings(profiles=profiles))
        if plan is None:
            found = explain_build(self.tensorrt.messages[before:], nodes)
            raise EnvironmentProblem(
                found.code, found.node or variant.model, found.reason, found.remedy
            )
        return bytes(plan)

    def open(self, plan: bytes, variant: Variant) -> _Engine:
        """See `bench.engines.Open`."""
        del variant
        runtime, engine = trt.deserialize(self.tensorrt, memoryview(plan), host_code=False)
        return _Engine(self.tensorrt, self.machine, runtime, engine)


class _Engine:
    """An engine with its context, as `bench.engines.Engine` has it."""

    def __init__(
        self, tensorrt: trt.TensorRT, machine: GpuMachine, runtime: Any, engine: Any
    ) -> None:
        interface = trt.engine_interface(tensorrt, engine)
        self.inputs: Sequence[Tensor] = _tensors(interface.inputs)
        self.outputs: Sequence[Tensor] = _tensors(interface.outputs)
        self._tensorrt, self._machine = tensorrt, machine
        self._runtime, self._engine = runtime, engine  # which the context needs alive
        self._context = trt.Context(tensorrt, engine)

    def set_input(self, name: str, shape: tuple[int, ...], address: int) -> bool:
        """Gives an input's shape and device memory."""
        return self._context.set_input(name, shape, address)

    def set_output(self, name: str, address: int) -> bool:
        """Gives an output's device memory."""
        return self._context.set_output(name, address)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the coming call."""
        return self._context.shape(name)

    def enqueue(self, stream: int) -> bool:
        """Starts a call."""
        return self._context.enqueue(stream)

    def inspection(self) -> str:
        """The inspector's JSON."""
        return trt.inspection(self._tensorrt, self._engine)

    def profile(self, stream: int) -> Mapping[str, float]:
        """Seconds by layer of one run."""
        return self._context.profile(stream, self._machine.synchronize)


def _tensors(specs: Iterable[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.dtype) for spec in specs)
