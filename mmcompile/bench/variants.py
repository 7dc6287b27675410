"""The variants that `mmcompile bench` compares: stock baselines, MicroMix, and named models."""

from __future__ import annotations

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
from mmcompile.backends.engines.plugin import PluginLibrary, find_plugin, plugin_creator
from mmcompile.backends.engines.shapes import Profile, Span
from mmcompile.backends.protocol import Job, Timeable
from mmcompile.backends.registry import NOTHING
from mmcompile.bench.engines import Bench, Variant
from mmcompile.bench.points import Point, Shapes, input_shapes
from mmcompile.calib.instrument import watched_tensor
from mmcompile.data.options import DataOptions
from mmcompile.effort import Weights
from mmcompile.errors import MMCompileError, UsageError
from mmcompile.model.passes.baselines import KINDS
from mmcompile.model.selection import Selection
from mmcompile.ops import OP_TYPE
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.evidence import calibrated
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.pipeline.prepare import input_specs
from mmcompile.pipeline.run import Run, Settings, start_run
from mmcompile.progress import Progress
from mmcompile.targets.names import parse_target
from mmcompile.targets.table import DEFAULT_TARGET

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
        gpu: what MicroMix is compiled and engines are prepared for; refuse to measure on another;
            None takes what is there.
        backend: name of the back end that builds all.
    """

    points: Sequence[Point]
    named: Sequence[tuple[str, Path]] = ()
    data: DataOptions = field(default_factory=DataOptions)
    selection: Selection = field(default_factory=Selection)
    plan: Path | None = None
    gpu: str | None = None
    backend: str = AUTO


@dataclass(frozen=True)
class Workshop:
    """Builds the engines of variants by a back end.

    Attributes:
        builder: the back end.
        target: the architecture that it builds for, e.g. `sm_120`.
        folder: for the models that are written.
        profiles: what engines are built for.
        baselines: the stock variants' own back ends, by title.
        unwritten: why a variant has no model, by title.
    """

    builder: Timeable
    target: str
    folder: Path
    profiles: tuple[Profile, ...] = ()
    baselines: dict[str, Baseline] = field(default_factory=dict)
    unwritten: dict[str, MMCompileError] = field(default_factory=dict)

    def build(self, variant: Variant, folder: Path) -> Path:
        """Builds the engine of a variant into a folder.

        Raises:
            MMCompileError: it cannot be built; or why the variant has no model.
        """
        if variant.name in self.unwritten:
            raise self.unwritten[variant.name]
        try:
            model = onnx.load(variant.model, load_external_data=False)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                "variant-unreadable", variant.model, reason, "name an ONNX file"
            ) from None
        plugin = self.plugin(variant)
        backend = self.baselines.get(variant.name, self.builder)
        job = Job(
            model=backend.lower(model),
            path=variant.model,
            library=None if plugin is None else plugin.path,
            target=self.target,
            choices=BuildChoices(profiles=self.profiles),
            interface=None,
            folder=folder,
        )
        return backend.build(job).file

    def plugin(self, variant: Variant) -> PluginLibrary | None:
        """What the variant's engine needs to run; None where it is made of stock operators.

        Raises:
            EnvironmentProblem: it needs the plugin, and there is none.
        """
        if not variant.needs_plugin:
            return None
        return PluginLibrary(find_plugin(variant.model.parent), plugin_creator())


@dataclass(frozen=True)
class Lineup:
    """What is compared.

    Attributes:
        bench: what to time, and how.
        variants: the models, the reference first.
        work: builds their engines.
    """

    bench: Bench
    variants: Sequence[Variant]
    work: Workshop


def line_up(model: Path, options: EngineBenchOptions, work: Workshop, progress: Progress) -> Lineup:
    """Writes stock baselines of a model, compiles it, and adds the models that are named.

    MicroMix is compiled from the FP16 baseline, so that all variants but the linears are alike.

    Args:
        model: the original.
        options: what to compare.
        work: builds engines; its folder receives the models.
        progress: told how far it is.

    Raises:
        UsageError: two variants have one name.
        MMCompileError: the model or the data cannot be used.
    """
    target = parse_target(options.gpu or DEFAULT_TARGET)
    settings = Settings(target, options.selection, progress=progress)
    run = start_run(model, options.data, settings, hold_back_some=False)
    prepared = run.prepared
    inputs = [(spec.name, spec.shape) for spec in input_specs(prepared.source.proto)]
    shapes = {point: input_shapes(inputs, point) for point in options.points}
    profile = profile_of(inputs, list(shapes.values()))
    work = Workshop(work.builder, work.target, work.folder, (profile,) if profile else ())
    variants = [*_baselines(run, work)]
    has_plan = (options.data.calibration or options.plan) is not None
    if has_plan and MICROMIX not in dict(options.named):
        variants.append(_micromix(work, options))
    variants += [_variant(title, path) for title, path in options.named]
    names = [variant.name for variant in variants]
    if twice := next((name for name in names if names.count(name) > 1), None):
        remedy = "give every model a name of its own"
        raise UsageError("variant-twice", "--engine", f"two variants are called {twice}", remedy)
    bench = Bench(
        model=str(model),
        points=options.points,
        shapes=shapes.__getitem__,
        nodes=[node.name for node in prepared.source.proto.graph.node],
        linears=[site.node for group in prepared.groups for site in group.sites],
        versions={"mmcompile": __version__, work.builder.title: work.builder.version()},
    )
    return Lineup(bench, variants, work)


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


def _baselines(run: Run, work: Workshop) -> Iterator[Variant]:
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


def _micromix(work: Workshop, options: EngineBenchOptions) -> Variant:
    """The compiled FP16 baseline; how its weights are rounded makes no difference to its speed."""
    output = work.folder / MICROMIX
    fp16 = next(kind.name for kind in KINDS.values() if not kind.is_quantized)
    base = work.folder / fp16 / "model.onnx"
    compiling = CompileOptions(
        gpu=options.gpu or DEFAULT_TARGET,
        output=output,
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
    return _variant(MICROMIX, output / "model.onnx")


def _variant(name: str, model: Path) -> Variant:
    """A variant and what its graph asks for; building tells what it lacks."""
    try:
        proto = onnx.load(model, load_external_data=False)
    except (OSError, DecodeError):
        return Variant(name, model)
    needs_plugin = any(node.op_type == OP_TYPE for node in proto.graph.node)
    return Variant(name, model, needs_plugin, expected_by_graph(proto))


def _amax(run: Run) -> Mapping[str, float]:
    stats, _ = calibrated(run, run.inputs.calibration, ())
    return {
        group.input: float(stats.tensors[watched_tensor(group).key].abs_max.max())
        for group in run.prepared.groups
    }
