"""`--max-error`: the smallest budget whose compiled model stays within an error, by bisection.

Every candidate is packed into a temporary folder and run beside the original, on samples of the
calibration data: what is held back for verification takes no part in the choice.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmcompile.calib.cost import Budget, Objective
from mmcompile.calib.data import CalibrationData
from mmcompile.errors import UsageError
from mmcompile.graph import ModelWriter, load_model
from mmcompile.pack import pack_group
from mmcompile.passes.rewrite_linears import packed_names, rewrite_linears
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.verification import take_samples
from mmcompile.plan import QuantPlan
from mmcompile.progress import Progress, Silent
from mmcompile.verify.outputs import compare_outputs

SAMPLES = 8
"""Samples of the calibration data that a candidate is run on."""
STEPS = 6
"""Halvings of the range between the least and the largest budget."""
RANGES = {
    Objective.PREFILL: (1.0, 2.0),
    Objective.DECODE: (4.25, 8.25),
    Objective.MEMORY: (4.25, 8.25),
}
"""Least and largest budget: tensor-core cost, or bits per weight where nothing is padded."""

Planner = Callable[[Budget], QuantPlan]


def smallest_within(
    prepared: Prepared,
    data: CalibrationData,
    planned: Planner,
    objective: Objective,
    max_error: float,
    progress: Progress,
) -> QuantPlan:
    """The plan of the smallest budget whose measured error is at most `max_error`.

    Args:
        prepared: the model.
        data: the calibration data.
        planned: the plan of a budget; refuses budgets that are too small.
        objective: says what the budget counts.
        max_error: upper limit of 1 − mean cosine similarity, for every output.
        progress: told after every candidate.

    Raises:
        UsageError: MXFP8 throughout errs more, or the model cannot be run here.
    """
    if prepared.is_bfloat16:
        reason = "the model is bfloat16, which ONNX Runtime cannot run on the CPU"
        remedy = "give --target-speed or --target-bits instead"
        raise UsageError("max-error-unmeasured", "--max-error", reason, remedy)
    best = planned(_budget(objective, math.inf))
    error = measured_error(prepared, best, data)
    if error > max_error:
        reason = f"{error:.3g} with the largest budget, more than the {max_error:g} asked for"
        remedy = "allow more, or keep layers in full precision with --exclude"
        raise UsageError("error-unreachable", "--max-error", reason, remedy)
    low, high = RANGES[objective]
    first = True
    for _ in progress.track(range(STEPS), "searching the budget", STEPS):
        # The least budget itself is tried first: it may do already.
        middle = low if first else (low + high) / 2
        plan = _possible(planned, _budget(objective, middle))
        if plan is not None and measured_error(prepared, plan, data) <= max_error:
            best, high = plan, middle
            if first:
                break
        else:
            low = middle
        first = False
    return best


def measured_error(prepared: Prepared, plan: QuantPlan, data: CalibrationData) -> float:
    """1 − mean cosine similarity of the compiled model's worst output; infinite where it is NaN."""
    samples = take_samples(prepared, data, SAMPLES)
    with tempfile.TemporaryDirectory(prefix="mmcompile-") as folder:
        path = _write(prepared, plan, Path(folder))
        found = compare_outputs(prepared.source, load_model(path), samples, frozenset(), Silent())
    if any(agreement.mismatch for agreement in found.values()):
        return math.inf
    cosines = [agreement.cosine_mean for agreement in found.values()]
    return max((1 - c for c in cosines if not math.isnan(c)), default=0.0)


def _possible(planned: Planner, budget: Budget) -> QuantPlan | None:
    """The plan, or None where padding makes the budget too small for any."""
    try:
        return planned(budget)
    except UsageError as error:
        if error.code != "budget-too-small":
            raise
        return None


def _budget(objective: Objective, value: float) -> Budget:
    """A budget of the objective's kind; an infinite one is far beyond 8 bits everywhere."""
    value = min(value, 1e6)
    return Budget(speed=value) if objective is Objective.PREFILL else Budget(bits=value)


def _write(prepared: Prepared, plan: QuantPlan, folder: Path) -> Path:
    """Packs and writes the model of a plan; its file."""
    pairs = tuple(zip(prepared.groups, plan.groups, strict=True))
    rewritten = rewrite_linears(prepared.source.proto, pairs)
    done = set()
    with ModelWriter(folder) as writer:
        for sites, group in pairs:
            packed = pack_group(sites, group, prepared.source)
            for name, array in zip(packed_names(group.name), packed.constants(), strict=True):
                writer.add(name, array)
                done.add(name)
        for tensor in rewritten.graph.initializer:
            reference = prepared.source.weights.ref(tensor.name)
            if reference is not None and tensor.name not in done:
                writer.copy(reference)
        return writer.finish(rewritten)
