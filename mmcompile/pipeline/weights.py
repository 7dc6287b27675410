"""How weights are rounded: to nearest, or with error feedback from inputs sampled on disk."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from mmcompile.calib.collect import collect_token_rows
from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.token_rows import TokenRows, TokenRowWriter
from mmcompile.data.dataset import CalibrationData
from mmcompile.effort import DAMPING, WORK, Effort, Weights
from mmcompile.errors import UsageError
from mmcompile.model.sites import SiteGroup
from mmcompile.pipeline.run import Run
from mmcompile.policy.registry import rounds_with_feedback
from mmcompile.weights.pack import SampledInputs

InputsOf = Callable[[SiteGroup], SampledInputs | None]
"""Sampled inputs of a group; None where its weights are rounded to nearest."""


def no_inputs(sites: SiteGroup) -> None:
    """Rounds every group to nearest."""
    del sites


def weights_in_force(
    asked: Weights | None, effort: Effort, policy: str, data: CalibrationData | None
) -> tuple[Weights, str]:
    """How weights are rounded, and why where nobody asked.

    Error feedback is the default of policies that say so, from `--effort balanced` on. The others
    reproduce what others publish, which is rounding to nearest.

    Args:
        asked: by the user; None leaves it open.
        effort: how much computing there may be.
        policy: name of the plan's policy.
        data: the calibration data.

    Raises:
        UsageError: error feedback is asked for and there is no data.
    """
    if asked is Weights.GPTQ and data is None:
        reason = "error feedback needs inputs of the layers, and there is no calibration data"
        raise UsageError(
            "no-calibration-data", "--weights", reason, "give --calib, or --weights nearest"
        )
    if asked is not None:
        return asked, "asked for"
    if data is None:
        return Weights.NEAREST, "there is no calibration data"
    if not data.fit:
        return Weights.NEAREST, "the calibration data is random"
    if not rounds_with_feedback(policy):
        return Weights.NEAREST, f"the default of policy {policy}"
    if effort is Effort.FAST:
        return Weights.NEAREST, "the default of effort fast"
    return Weights.GPTQ, f"the default of policy {policy}"


def weights_of(run: Run, asked: Weights | None, policy: str) -> WeightInputs:
    """How the weights of a run are rounded, and the inputs for it.

    Args:
        run: the model and the data.
        asked: by the user; None leaves it open.
        policy: name of the plan's policy.

    Raises:
        UsageError: error feedback is asked for and there is no data.
    """
    method, reason = weights_in_force(asked, run.effort, policy, run.inputs.calibration)
    return WeightInputs(run, method, reason)


class WeightInputs:
    """Context manager for `SampledInputs` of groups; the files that hold them go with it.

    The rows are taken while the model is calibrated, where `writer` is handed to that; else the
    model runs over the data when `collect` or the first group asks for them.

    Args:
        run: the model, its calibration data, and how many rows are sampled; the effort `fast`
            samples as many as `balanced`.
        method: how weights are rounded.
        reason: why weights are rounded so.

    Attributes:
        method: as given.
        reason: as given.
    """

    def __init__(self, run: Run, method: Weights, reason: str = "") -> None:
        self.method = method
        self.reason = reason
        self._run = run
        feedback = method is Weights.GPTQ and run.prepared.groups
        self._data = run.inputs.calibration if feedback else None
        self._work = WORK[Effort.BALANCED if run.effort is Effort.FAST else run.effort]
        self._exit = contextlib.ExitStack()
        self._writer: TokenRowWriter | None = None

    def __enter__(self) -> Self:
        """Nothing yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the files."""
        self._writer = None
        self._exit.close()

    def writer(self) -> TokenRowWriter | None:
        """What takes the rows while the model runs; None where weights are rounded to nearest.

        Raises:
            EnvironmentProblem: the temporary folder takes no files.
        """
        if self._writer is None and self._data is not None:
            folder = tempfile.TemporaryDirectory(prefix="mmcompile-")
            self._writer = TokenRowWriter(
                tuple(dict.fromkeys(map(watched_tensor, self._run.prepared.groups))),
                self._data,
                self._work.rows(self._run.prepared.groups),
                Path(self._exit.enter_context(folder)),
            )
        return self._writer

    def collect(self) -> TokenRows | None:
        """Samples the inputs, unless that is done; None where weights are rounded to nearest.

        Raises:
            UnsupportedModelError: the model cannot run.
            EnvironmentProblem: the temporary folder's disk is full.
        """
        writer = self.writer()
        if writer is None or self._data is None:
            return None
        if not writer.finished:
            collect_token_rows(self._run.execution, self._data, writer)
        return writer.found

    def __call__(self, sites: SiteGroup) -> SampledInputs | None:
        """The sampled inputs of a group; None where weights are rounded to nearest."""
        rows = self.collect()
        if rows is None:
            return None
        seen, held_back = rows.split(watched_tensor(sites).key)
        thorough = self._work.is_thorough(self._run.prepared.groups)
        return SampledInputs(seen, held_back, self._work.dampings if thorough else (DAMPING,))
