"""Last stage: the engine where this machine can build it, else the bundle and what is missing."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mmcompile.backends.engines.bundle import build_command, read_bundle, write_bundle
from mmcompile.backends.engines.engine import build_engine, find_machine
from mmcompile.backends.engines.interface import Interface
from mmcompile.backends.engines.meta import (
    ENGINE_FILE,
    BuildChoices,
    BundleMeta,
    EngineMeta,
)
from mmcompile.backends.engines.options import BuildOptions
from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.backends.engines.shapes import Shape, make_profiles
from mmcompile.backends.engines.triton import check_model_name, configuration, write_repository
from mmcompile.data.dataset import CalibrationData
from mmcompile.errors import EnvironmentProblem
from mmcompile.output import StagedOutput, disk_errors

OBSERVED = 64
"""Samples whose shapes decide the default profile."""


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


@dataclass(frozen=True)
class Order:
    """What a compilation asks of the engine.

    Attributes:
        options: how it is built, and whether there has to be one.
        target: e.g. `sm_120`.
        original: the model that was compiled.
    """

    options: BuildOptions
    target: str
    original: Path


def choose(
    interface: Interface, options: BuildOptions, data: CalibrationData | None
) -> BuildChoices:
    """What the builder will be told.

    Raises:
        UsageError: the shapes or the name for Triton are wrong.
        UnsupportedModelError: Triton cannot describe the model.
    """
    if options.triton is not None:
        check_model_name(options.triton)
        configuration(options.triton, interface)
    return BuildChoices(
        profiles=make_profiles(options.shapes, interface, _observed(data)),
        optimization_level=options.optimization_level,
        workspace_bytes=options.workspace_bytes,
        embed_plugin=options.embed_plugin,
    )


def deliver(
    stage: Path, output: Path, interface: Interface, choices: BuildChoices, order: Order
) -> Delivery:
    """Completes the staged files of a compilation.

    Args:
        stage: folder with the model and plan.json.
        output: where the files will be.
        interface: the model's.
        choices: what the builder is told.
        order: what was asked.

    Raises:
        MMCompileError: an engine was demanded or begun, and failed.
    """
    options, target = order.options, order.target
    meta, no_library = write_bundle(
        stage, interface, choices, target=target, original=order.original
    )
    finish = build_command(output)
    if options.engine is False:
        return Delivery(meta, None, "no engine was asked for (--no-engine)", finish)
    try:
        machine = find_machine(target)
        if no_library is not None:
            raise no_library
    except EnvironmentProblem as problem:
        if options.engine:
            raise
        missing = problem.reason
        if no_library is not None and no_library is not problem:
            missing += f"; {no_library.reason}: {no_library.remedy}"
        elif problem is no_library:
            missing += f": {no_library.remedy}"
        return Delivery(meta, None, missing, finish)
    built = build_engine(machine, stage, meta, stage / LIBRARY, stage)
    return Delivery(meta, built, "", finish)


def build_bundle(folder: Path, options: BuildOptions) -> tuple[EngineMeta, tuple[Path, ...]]:
    """Builds the engine of a bundle on this machine, into the same folder.

    Options that are given win over what the bundle says.

    Returns:
        The engine's description and the files written.

    Raises:
        MMCompileError: nothing was written, and an earlier engine is intact.
    """
    meta, library = read_bundle(folder)
    asked = meta.choices
    if options.triton is not None:
        check_model_name(options.triton)
    choices = BuildChoices(
        profiles=make_profiles(options.shapes, meta.interface, {})
        if options.shapes
        else asked.profiles,
        optimization_level=_first(options.optimization_level, asked.optimization_level),
        workspace_bytes=_first(options.workspace_bytes, asked.workspace_bytes),
        embed_plugin=options.embed_plugin or asked.embed_plugin,
    )
    meta = msgspec.structs.replace(meta, choices=choices)
    machine = find_machine(meta.target)
    with StagedOutput(folder) as stage:
        built = build_engine(machine, folder, meta, library, stage.folder)
        files = stage.commit()
    if options.triton is not None:
        files = (*files, write_repository(folder, meta, options.triton))
    return built, files


def build_with_outputs(folder: Path, tensors: Sequence[str], into: Path) -> tuple[EngineMeta, Path]:
    """Builds an engine of a bundle that also gives out inner tensors, for comparisons.

    Returns:
        Its description and its file.
    """
    meta, library = read_bundle(folder)
    machine = find_machine(meta.target)
    with disk_errors(into):
        library = Path(shutil.copy(library, into / LIBRARY))
    built = build_engine(machine, folder, meta, library, into, outputs=tuple(tensors))
    return built, into / ENGINE_FILE


def outcome_line(delivery: Delivery) -> str:
    """One line: what was built, or what is missing and how to finish."""
    if delivery.engine is not None:
        engine = delivery.engine
        return f"engine for {engine.device.name}, TensorRT {engine.tensorrt}"
    return f"no engine: {delivery.missing}; where TensorRT and the GPU are, run: {delivery.finish}"


def finish_triton(output: Path, delivery: Delivery, options: BuildOptions) -> tuple[Path, ...]:
    """Writes the Triton repository that was asked for; its folder, or nothing."""
    if options.triton is None:
        return ()
    return (write_repository(output, delivery.bundle, options.triton),)


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
