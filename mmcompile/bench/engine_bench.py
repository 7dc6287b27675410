"""What `mmcompile bench` does with engines: writes stock baselines, builds all by one back end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mmcompile import __version__
from mmcompile.backends.baselines import Baseline, baselines
from mmcompile.backends.engines.expectations import expected_by_graph
from mmcompile.backends.engines.meta import BuildChoices
from mmcompile.backends.engines.options import AUTO, BuildOptions
from mmcompile.backends.engines.plugin import find_plugin
from mmcompile.backends.engines.shapes import Profile, Span
from mmcompile.backends.protocol import Job, Timeable, TimedEngine
from mmcompile.backends.registry import NOTHING, Wanted, choose, installed
from mmcompile.bench.engines import Bench, Rig, Variant, bench_engines
from mmcompile.bench.kernel_bench import WITHOUT_GPU, check_gpu
from mmcompile.bench.points import Point, Shapes, input_shapes
from mmcompile.bench.results import EngineBench
from mmcompile.calib.instrument import watched_tensor
from mmcompile.cuda.machine import GpuMachine
from mmcompile.data.options import DataOptions
from mmcompile.effort import Weights
from mmcompile.errors import EnvironmentProblem, MMCompileError, UsageError
from mmcompile.model.passes.baselines import KINDS
from mmcompile.model.selection import Selection
from mmcompile.ops import OP_TYPE
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.evidence import calibrated
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.pipeline.prepare import input_specs
from mmcompile.pipeline.run import Run, Settings, start_run
from mmcompile.progress import Progress
from mmcompile.targets.table import TARGETS

MICROMIX = "MicroMix"


@dataclass(frozen=True)
class EngineBenchOptions:
    """What to build and time.

    Attributes:
        points: sizes.
        named: further variants: name and ONNX file, such as a compiled model.
        data: calibration data; without any, FP8, NVFP4 and MicroMix are left out.
        selection: which linears the baselines quantize.
        plan: the plan that MicroMix follows; None makes one from the data.
        gpu: refuse to measure on another; None takes what is there.
        backend: name of the back end that builds all.
    """

    points: Sequence[Point]
    named: Sequence[tuple[str, Path]] = ()
    data: DataOptions = field(default_factory=DataOptions)
    selection: Selection = field(default_factory=Selection)
    plan: Path | None = None
    gpu: str | None = None
    backend: str = AUTO


def engine_bench(model: Path, options: EngineBenchOptions, progress: Progress) -> EngineBench:
    """Builds and times stock baselines of a model, MicroMix, and the models that are named.

    MicroMix is compiled from the FP16 baseline, so that all variants but the linears are alike.

    Args:
        model: the original.
        options: what to build and time.
        progress: told how far it is.

    Raises:
        EnvironmentProblem: no back end can build here, or there is no GPU; the remedy names
            `--modelled`.
        UsageError: the back end's engines cannot be timed.
        MMCompileError: the model or the data cannot be used.
    """
    builder, machine = _open(options)
    settings = Settings(TARGETS[0], options.selection, progress=progress)
    run = start_run(model, options.data, settings, hold_back_some=False)
    prepared = run.prepared
    inputs = [(spec.name, spec.shape) for spec in input_specs(prepared.source.proto)]
    shapes = {point: input_shapes(inputs, point) for point in options.points}
    with tempfile.TemporaryDirectory(prefix="mmcompile-bench-") as name:
        folder = Path(name)
        profile = profile_of(inputs, list(shapes.values()))
        work = _Builder(builder, machine, (profile,) if profile else (), folder)
        variants = [*_baselines(run, work)]
        has_plan = (options.data.calibration or options.plan) is not None
        if has_plan and MICROMIX not in dict(options.named):
            variants.append(_micromix(work, options))
        variants += [_variant(title, path) for title, path in options.named]
        bench = Bench(
            model=str(model),
            points=options.points,
            shapes=shapes.__getitem__,
            nodes=[node.name for node in prepared.source.proto.graph.node],
            linears=[site.node for group in prepared.groups for site in group.sites],
            versions={"mmcompile": __version__, builder.title: builder.version()},
        )
        rig = Rig(work.build, work.open, machine, machine.facts)
        return bench_engines(bench, variants, rig, progress)


def _open(options: EngineBenchOptions) -> tuple[Timeable, GpuMachine]:
    """The back end and the GPU.

    Raises:
        EnvironmentProblem: one of them is missing.
        UsageError: it is another GPU than asked for, or the engines cannot be timed.
    """
    try:
        installed(options.backend).demand()
        machine = GpuMachine()
        target = f"sm_{machine.facts.architecture}"
        backend = choose(Wanted(options.backend, target)).demand()
    except EnvironmentProblem as problem:
        raise EnvironmentProblem(
            problem.code, problem.where, problem.reason, f"{problem.remedy}; or {WITHOUT_GPU}"
        ) from None
    if not isinstance(backend, Timeable):
        reason = f"engines by {backend.title} cannot be timed"
        raise UsageError("not-timeable", "--backend", reason, "choose another back end")
    if options.gpu is not None:
        check_gpu(options.gpu, machine.facts)
    return backend, machine


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


def _baselines(run: Run, work: _Builder) -> Iterator[Variant]:
    """The stock variants; why one cannot be written is told when it is built, beside the others."""
    prepared, has_data = run.prepared, run.inputs.calibration is not None
    amax = _amax(run) if has_data else {}
    for baseline in baselines(work.builder, data=has_data):
        folder = work.folder / baseline.name
        folder.mkdir()
        work.baselines[baseline.title] = baseline
        try:
            baseline.write(prepared.source, prepared.groups, amax, folder)
        except MMCompileError as error:
            work.unwritten[baseline.title] = error
        yield _variant(baseline.title, folder / "model.onnx")


def _micromix(work: _Builder, options: EngineBenchOptions) -> Variant:
    """The compiled FP16 baseline; how its weights are rounded makes no difference to its speed."""
    target = work.folder / MICROMIX
    fp16 = next(kind.name for kind in KINDS.values() if not kind.is_quantized)
    base = work.folder / fp16 / "model.onnx"
    compiling = CompileOptions(
        output=target,
        data=options.data,
        plan=options.plan,
        weights=Weights.NEAREST,
        selection=options.selection,
        verify=VerifyOptions(enabled=False),
        build=BuildOptions(backend=NOTHING),
        html=False,
    )
    try:
        compile_model(base, compiling)
    except MMCompileError as error:
        work.unwritten[MICROMIX] = error
    return _variant(MICROMIX, target / "model.onnx")


def _variant(name: str, model: Path) -> Variant:
    """A variant with the precision that its graph asks for; building tells what it lacks."""
    try:
        proto = onnx.load(model, load_external_data=False)
    except (OSError, DecodeError):
        return Variant(name, model)
    return Variant(name, model, expected=expected_by_graph(proto))


def _amax(run: Run) -> Mapping[str, float]:
    stats, _ = calibrated(run, run.inputs.calibration, ())
    return {
        group.input: float(stats.tensors[watched_tensor(group).key].abs_max.max())
        for group in run.prepared.groups
    }


@dataclass(frozen=True)
class _Builder:
    """Builds and opens engines by a back end.

    Attributes:
        builder: the back end.
        machine: the GPU.
        profiles: what engines are built for.
        folder: for everything that is written.
        baselines: the stock variants' own back ends, by title.
        unwritten: why a variant has no model, by title.
        libraries: the plugin libraries of those that need one, by title.
    """

    builder: Timeable
    machine: GpuMachine
    profiles: tuple[Profile, ...]
    folder: Path
    baselines: dict[str, Baseline] = field(default_factory=dict)
    unwritten: dict[str, MMCompileError] = field(default_factory=dict)
    libraries: dict[str, Path] = field(default_factory=dict)

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
            self.libraries[variant.name] = library
        backend = self._backend(variant)
        job = Job(
            model=backend.lower(model),
            path=variant.model,
            library=self.libraries.get(variant.name),
            target=f"sm_{self.machine.facts.architecture}",
            choices=BuildChoices(profiles=self.profiles),
            interface=None,
            folder=self.folder,
        )
        built = backend.build(job)
        plan = built.file.read_bytes()
        built.file.unlink()
        return plan

    def open(self, plan: bytes, variant: Variant) -> TimedEngine:
        """See `bench.engines.Open`."""
        library = self.libraries.get(variant.name)
        return self._backend(variant).timed(plan, library, self.machine)

    def _backend(self, variant: Variant) -> Timeable:
        return self.baselines.get(variant.name, self.builder)
