"""Last stage: the engine where this machine can build it, else the bundle and what is missing."""

from __future__ import annotations

import datetime as dt
import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx

from mmcompile import __version__
from mmcompile.backends.engines.bundle import (
    build_command,
    read_bundle,
    write_bundle,
    write_script,
)
from mmcompile.backends.engines.expectations import expected_by_graph
from mmcompile.backends.engines.interface import Interface, check_engine
from mmcompile.backends.engines.meta import (
    FORMAT,
    META_FILE,
    BuildChoices,
    BundleMeta,
    EngineMeta,
    check_file,
    describe_file,
    write_meta,
)
from mmcompile.backends.engines.options import AUTO, BuildOptions
from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.backends.engines.precision import check_precision, compare, realized_file
from mmcompile.backends.engines.shapes import Shape, make_profiles
from mmcompile.backends.engines.triton import check_model_name, configuration, write_repository
from mmcompile.backends.protocol import Backend, Job
from mmcompile.backends.registry import BACKENDS, Wanted, candidates, choose, find_backend
from mmcompile.data.dataset import CalibrationData
from mmcompile.errors import EnvironmentProblem
from mmcompile.output import MODEL_FILE, StagedOutput, disk_errors

OBSERVED = 64
"""Samples whose shapes decide the default profile."""


@dataclass(frozen=True)
class Handover:
    """What a compilation hands over, besides its files.

    Attributes:
        interface: the model's inputs and outputs.
        choices: what the builder is told.
        target: the architecture, e.g. `sm_120`.
        original: the model that was compiled.
    """

    interface: Interface
    choices: BuildChoices
    target: str
    original: Path


@dataclass(frozen=True)
class Delivery:
    """What became of the engine.

    Attributes:
        bundle: what the output folder holds.
        engine: what was built; None where nothing could be.
        missing: why not, in words; empty where an engine was built.
        finish: the command that builds it where nothing is missing.
    """

    bundle: BundleMeta
    engine: EngineMeta | None
    missing: str
    finish: str


def prepare_delivery(
    interface: Interface,
    options: BuildOptions,
    data: CalibrationData | None,
    target: str,
    original: Path,
) -> Handover:
    """Settles what the builder will be told, before there is anything to build.

    Args:
        interface: the model's inputs and outputs.
        options: what the user asks for.
        data: samples whose shapes decide the default profile.
        target: the architecture, e.g. `sm_120`.
        original: the model that is compiled.

    Raises:
        UsageError: the back end, the shapes or the name for Triton are wrong.
        UnsupportedModelError: Triton cannot describe the model.
        EnvironmentProblem: an engine is demanded that cannot be built here.
    """
    if options.triton is not None:
        check_model_name(options.triton)
        configuration(options.triton, interface)
    wanted = _wanted(options, target)
    candidates(wanted)
    if _is_demanded(options):
        choose(wanted).demand()
    choices = BuildChoices(
        profiles=make_profiles(options.shapes, interface, _observed(data)),
        optimization_level=options.optimization_level,
        workspace_bytes=options.workspace_bytes,
        embed_plugin=options.embed_plugin,
        weight_streaming=options.weight_streaming,
    )
    return Handover(interface, choices, target, original)


def deliver(stage: Path, output: Path, handover: Handover, options: BuildOptions) -> Delivery:
    """Completes the staged files of a compilation.

    Args:
        stage: folder with the model and plan.json.
        output: where the files will be.
        handover: what is handed over besides.
        options: which back end builds the engine, and whether there has to be one.

    Raises:
        MMCompileError: an engine was demanded or begun, and failed.
    """
    meta, no_library = write_bundle(
        stage,
        handover.interface,
        handover.choices,
        target=handover.target,
        original=handover.original,
    )
    write_script(stage, meta, [step for each in BACKENDS.values() for step in each.steps(meta)])
    finish = build_command(output)
    choice = choose(_wanted(options, meta.target, no_library))
    if choice.backend is None:
        if _is_demanded(options):
            choice.demand()
        more = "" if no_library is None else f": {no_library.remedy}"
        return Delivery(meta, None, choice.reasons + more, finish)
    library = None if no_library is not None else stage / LIBRARY
    built = _build(choice.backend, _Bundle(stage, meta, library), stage, options.allow_fallback)
    return Delivery(meta, built, "", finish)


def build_bundle(folder: Path, options: BuildOptions) -> tuple[EngineMeta, tuple[Path, ...]]:
    """Builds the engine of a bundle on this machine, into the same folder.

    Options that are given win over what the bundle says.

    Returns:
        The engine's description and the files written.

    Raises:
        MMCompileError: nothing was written, and an earlier engine is intact.
    """
    bundle, no_library = _read(folder)
    asked = bundle.meta.choices
    if options.triton is not None:
        check_model_name(options.triton)
    choices = BuildChoices(
        profiles=make_profiles(options.shapes, bundle.meta.interface, {})
        if options.shapes
        else asked.profiles,
        optimization_level=_first(options.optimization_level, asked.optimization_level),
        workspace_bytes=_first(options.workspace_bytes, asked.workspace_bytes),
        embed_plugin=options.embed_plugin or asked.embed_plugin,
        weight_streaming=options.weight_streaming or asked.weight_streaming,
    )
    meta = msgspec.structs.replace(bundle.meta, choices=choices)
    backend = choose(_wanted(options, meta.target, no_library)).demand()
    with StagedOutput(folder) as stage:
        whole = _Bundle(folder, meta, bundle.library)
        built = _build(backend, whole, stage.folder, options.allow_fallback)
        files = stage.commit()
    _remove_other_engines(folder, built)
    if options.triton is not None:
        engine = folder / built.engine.name
        files = (*files, write_repository(folder, meta, options.triton, engine))
    return built, files


def build_with_outputs(
    folder: Path, tensors: Sequence[str], into: Path, backend: str
) -> tuple[EngineMeta, Path]:
    """Builds an engine of a bundle that also gives out inner tensors, for comparisons.

    Args:
        folder: of the bundle.
        tensors: names of the tensors.
        into: receives the engine and what it needs.
        backend: name of the back end.

    Returns:
        Its description and its file.
    """
    bundle, no_library = _read(folder)
    chosen = choose(Wanted(backend, bundle.meta.target, library=no_library)).demand()
    if bundle.library is not None:
        with disk_errors(into):
            shutil.copy(bundle.library, into / LIBRARY)
    built = _build(chosen, bundle, into, allow_fallback=True, outputs=tuple(tensors))
    return built, into / built.engine.name


def outcome_line(delivery: Delivery) -> str:
    """One line: what was built, or what is missing and how to finish."""
    if delivery.engine is not None:
        return str(delivery.engine)
    return f"no engine: {delivery.missing}; where one can be built, run: {delivery.finish}"


def finish_triton(output: Path, delivery: Delivery, options: BuildOptions) -> tuple[Path, ...]:
    """Writes the Triton repository that was asked for; its folder, or nothing."""
    if options.triton is None:
        return ()
    engine = None if delivery.engine is None else output / delivery.engine.engine.name
    return (write_repository(output, delivery.bundle, options.triton, engine),)


def engine_files() -> frozenset[str]:
    """Names of all files that building can leave in an output folder."""
    return frozenset({META_FILE, *(each.file for each in BACKENDS.values() if each.file)})


@dataclass(frozen=True)
class _Bundle:
    """A bundle's folder, its description, and the plugin library where there is one."""

    folder: Path
    meta: BundleMeta
    library: Path | None


def _read(folder: Path) -> tuple[_Bundle, EnvironmentProblem | None]:
    """A bundle, and why there is no plugin library where there is none."""
    meta, library = read_bundle(folder)
    if isinstance(library, EnvironmentProblem):
        return _Bundle(folder, meta, None), library
    return _Bundle(folder, meta, library), None


def _build(
    backend: Backend,
    bundle: _Bundle,
    into: Path,
    allow_fallback: bool,
    outputs: tuple[str, ...] = (),
) -> EngineMeta:
    """Builds, checks and describes an engine.

    Args:
        backend: what builds it.
        bundle: what it is built of.
        into: receives the engine and `engine.meta.json`.
        allow_fallback: accept layers that have lost their precision.
        outputs: further tensors to give out; such an engine is no drop-in.

    Raises:
        MMCompileError: it cannot be built, or is not what the model asks for.
    """
    meta = bundle.meta
    for file in meta.files:
        remedy = "copy the whole folder again, or compile the model again"
        check_file(bundle.folder / file.name, file, "model", remedy, "bundle")
    path = bundle.folder / MODEL_FILE
    model = onnx.load(path, load_external_data=False)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in outputs if name not in known
    )
    job = Job(
        model=backend.lower(model),
        path=path,
        library=bundle.library,
        target=meta.target,
        choices=meta.choices,
        interface=None if outputs else meta.interface,
        folder=into,
    )
    built = backend.build(job)
    loaded = backend.check(job, built)
    interface = built.interface if outputs else meta.interface
    if loaded is not None:
        check_engine(interface, loaded.interface, built.file)
    expected = expected_by_graph(job.model)
    with disk_errors(built.file):
        inspection = "" if loaded is None else loaded.inspection
        precision = compare(expected, realized_file(built.file, inspection, expected))
    check_precision(precision, built.file.name, allow_fallback=allow_fallback)
    with disk_errors(built.file):
        library = None if bundle.library is None else describe_file(bundle.library)
        described = EngineMeta(
            format=FORMAT,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            mmcompile=__version__,
            backend=backend.name,
            product=backend.title,
            version=built.version,
            target=meta.target,
            device=built.device,
            loaded=loaded is not None,
            engine=describe_file(built.file),
            model_sha256=next(file.sha256 for file in meta.files if file.name == MODEL_FILE),
            plan_sha256=meta.plan_sha256,
            plugin=msgspec.structs.replace(meta.plugin, library=library),
            interface=interface,
            choices=meta.choices,
            precision=precision,
        )
    write_meta(into / META_FILE, described)
    return described


def _remove_other_engines(folder: Path, built: EngineMeta) -> None:
    """Removes an engine that another back end has left, whose description is gone."""
    with disk_errors(folder):
        for name in engine_files() - {META_FILE, built.engine.name}:
            (folder / name).unlink(missing_ok=True)


def _wanted(
    options: BuildOptions, target: str, no_library: EnvironmentProblem | None = None
) -> Wanted:
    return Wanted(options.backend, target, options.triton is not None, no_library)


def _is_demanded(options: BuildOptions) -> bool:
    """Whether no engine is an error: it was asked for, or its back end was named."""
    named = options.backend != AUTO and find_backend(options.backend).file is not None
    return options.required or named


def _observed(data: CalibrationData | None) -> dict[str, list[Shape]]:
    """Shapes of the inputs, as the data has them."""
    shapes: dict[str, list[Shape]] = {}
    if data is not None:
        for sample in itertools.islice(data, OBSERVED):
            for name, value in sample.items():
                shapes.setdefault(name, []).append(tuple(value.shape))
    return shapes


def _first(value: int | None, other: int | None) -> int | None:
    return other if value is None else value
