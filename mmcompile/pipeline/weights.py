"""How weights are rounded: to nearest, or with error feedback from inputs sampled on disk."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from mmcompile.calib.collect import collect_token_rows
from mmcompile.calib.token_rows import TokenRows, TokenRowWriter
from mmcompile.data.dataset import CalibrationData
from mmcompile.effort import DAMPING, WORK, Effort, Weights
from mmcompile.errors import UsageError
from mmcompile.model.sites import SiteGroup
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.prepare import Prepared, input_specs
from mmcompile.plan import load_plan
from mmcompile.policy.options import COST, watched_tensor
from mmcompile.progress import Progress
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

    Error feedback is the default of the policy `cost` from `--effort balanced` on. The other
    policies reproduce what others publish, which is rounding to nearest.

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
    if policy != COST:
        return Weights.NEAREST, f"the default of policy {policy}"
    if effort is Effort.FAST:
        return Weights.NEAREST, "the default of effort fast"
    return Weights.GPTQ, f"the default of policy {COST}"


def weights_of(
    prepared: Prepared, data: CalibrationData | None, options: CompileOptions, progress: Progress
) -> WeightInputs:
    """How the weights of a compilation are rounded, and the inputs for it.

    Raises:
        UsageError: error feedback is asked for and there is no data, or the plan is unreadable.
    """
    policy = options.policy.name if options.plan is None else load_plan(options.plan).policy
    method, reason = weights_in_force(options.weights, options.effort, policy, data)
    seed = options.data.seed
    return WeightInputs(prepared, data, method, options.effort, seed, progress, reason)


class WeightInputs:
    """Context manager for `SampledInputs` of groups; the files that hold them go with it.

    The rows are taken while the model is calibrated, where `writer` is handed to that; else the
    model runs over the data when `collect` or the first group asks for them.

    Args:
        prepared: the model.
        data: the calibration data; there where `method` needs it.
        method: how weights are rounded.
        effort: how many rows are sampled; `fast` samples as many as `balanced`.
        seed: of the choice of rows.
        progress: told after every sample.
        reason: why weights are rounded so.

    Attributes:
        method: as given.
        reason: as given.
    """

    def __init__(
        self,
        prepared: Prepared,
        data: CalibrationData | None,
        method: Weights,
        effort: Effort,
        seed: int,
        progress: Progress,
        reason: str = "",
    ) -> None:
        self.method = method
        self.reason = reason
        self._prepared = prepared
        self._data = data if method is Weights.GPTQ and prepared.groups else None
        self._work = WORK[Effort.BALANCED if effort is Effort.FAST else effort]
        self._seed = seed
        self._progress = progress
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
                tuple(dict.fromkeys(map(watched_tensor, self._prepared.groups))),
                self._data,
                self._work.rows(self._prepared.groups),
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
            collect_token_rows(
                self._prepared.source,
                self._prepared.runnable,
                self._data,
                input_specs(self._prepared.runnable),
                writer,
                self._progress,
                self._seed,
            )
        return writer.found

    def __call__(self, sites: SiteGroup) -> SampledInputs | None:
        """The sampled inputs of a group; None where weights are rounded to nearest."""
        rows = self.collect()
        if rows is None:
            return None
        seen, held_back = rows.split(watched_tensor(sites).key)
        thorough = self._work.is_thorough(self._prepared.groups)
        return SampledInputs(seen, held_back, self._work.dampings if thorough else (DAMPING,))
