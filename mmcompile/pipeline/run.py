"""`Run`: what every stage of a run works on, made once from what the user asks."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from mmcompile.calib.execution import Execution
from mmcompile.data.dataset import CalibrationData, hold_back, open_data
from mmcompile.data.options import DataOptions, Source
from mmcompile.effort import Effort
from mmcompile.model.selection import Selection
from mmcompile.pipeline.prepare import Prepared, input_specs, prepare
from mmcompile.pipeline.stopwatch import Stopwatch
from mmcompile.progress import Progress, Silent
from mmcompile.targets.target import Target


@dataclass(frozen=True)
class Inputs:
    """The data of a run.

    Attributes:
        calibration: what statistics are taken from; None where a plan replaces them.
        held_back: what verification uses; None where there is none.
        disjoint: False where verification has to use what calibration saw.
    """

    calibration: CalibrationData | None
    held_back: CalibrationData | None
    disjoint: bool


@dataclass(frozen=True)
class Run:
    """A model, the data, and how much may be done with them.

    Attributes:
        prepared: the model.
        inputs: the data.
        target: the GPU that is compiled for.
        execution: how the model is run: its inputs, the seed, who is told of progress.
        effort: how much computing there may be.
        watch: told what stages take.
    """

    prepared: Prepared
    inputs: Inputs
    target: Target
    execution: Execution
    effort: Effort = Effort.BALANCED
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def progress(self) -> Progress:
        """Who is told how far stages are."""
        return self.execution.progress


def execution_of(prepared: Prepared, seed: int = 0, progress: Progress | None = None) -> Execution:
    """How a model is run."""
    specs = input_specs(prepared.runnable)
    return Execution(prepared.source, prepared.runnable, specs, seed, progress or Silent())


@dataclass(frozen=True)
class Settings:
    """What a run is made of besides the model and its data.

    Attributes:
        target: the GPU that is compiled for.
        selection: which linears to take.
        effort: how much computing there may be.
        progress: told how far stages are.
    """

    target: Target
    selection: Selection = field(default_factory=Selection)
    effort: Effort = Effort.BALANCED
    progress: Progress = field(default_factory=Silent)


def start_run(
    path: Path, data: DataOptions, settings: Settings, *, hold_back_some: bool = True
) -> Run:
    """Reads a model and opens its data.

    Args:
        path: the ONNX model.
        data: where inputs come from.
        settings: the rest.
        hold_back_some: without data for verification, keep part of the calibration data for it.

    Raises:
        MMCompileError: the model or the data cannot be used.
    """
    watch = Stopwatch()
    with watch.stage("load"):
        prepared = prepare(path, settings.selection)
        execution = execution_of(prepared, data.seed, settings.progress)
        inputs = open_inputs(prepared, data, hold_back_some=hold_back_some)
    return Run(prepared, inputs, settings.target, execution, settings.effort, watch)


def open_inputs(prepared: Prepared, options: DataOptions, *, hold_back_some: bool = True) -> Inputs:
    """Opens calibration and verification data and keeps them apart."""
    if options.calibration is None and options.verification is None:
        return Inputs(None, None, disjoint=True)
    specs = input_specs(prepared.runnable)

    def opened(source: Source) -> CalibrationData:
        data = open_data(source, specs, options)
        text = os.fsencode(data.description).decode("utf-8", "replace")
        return dataclasses.replace(data, description=text)  # for the plan, which is UTF-8

    if options.verification is not None:
        held = opened(options.verification)
        seen = None if options.calibration is None else opened(options.calibration)
        return Inputs(seen, held, disjoint=True)
    assert options.calibration is not None
    data = opened(options.calibration)
    if not hold_back_some:
        return Inputs(data, None, disjoint=True)
    seen, held_back = hold_back(data, options.hold_back)
    if held_back is None:
        return Inputs(data, data, disjoint=False)
    return Inputs(seen, held_back, disjoint=True)
