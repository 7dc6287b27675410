"""`--max-error`: the smallest budget whose compiled model stays within an error, by bisection.

Every candidate is packed into a temporary folder and run beside the original, on samples of the
calibration data: what is held back for verification takes no part in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mmcompile.data.dataset import CalibrationData
from mmcompile.errors import UsageError
from mmcompile.pipeline.prepare import Prepared
from mmcompile.pipeline.trial import TrialBench, worst_error
from mmcompile.pipeline.verification import take_samples
from mmcompile.pipeline.weights import InputsOf, no_inputs
from mmcompile.plan import QuantPlan
from mmcompile.policy.pairs import Budget, Objective
from mmcompile.progress import Progress, Silent

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
    inputs_of: InputsOf = no_inputs,
) -> QuantPlan:
    """The plan of the smallest budget whose measured error is at most `max_error`.

    Args:
        prepared: the model.
        data: the calibration data.
        planned: the plan of a budget; refuses budgets that are too small.
        objective: says what the budget counts.
        max_error: upper limit of 1 − mean cosine similarity, for every output.
        progress: told after every candidate.
        inputs_of: sampled inputs for error feedback.

    Raises:
        UsageError: MXFP8 throughout errs more.
    """
    with TrialBench(prepared, inputs_of=inputs_of) as bench:
        reference = bench.reference(take_samples(prepared, data, SAMPLES), Silent())

        def measured(plan: QuantPlan) -> float:
            decided = tuple(zip(prepared.groups, plan.groups, strict=True))
            return worst_error(bench.agreements(decided, [reference])[0])

        best = planned(_budget(objective, math.inf))
        error = measured(best)
        if error > max_error:
            reason = f"{error:.3g} with the largest budget, more than the {max_error:g} asked for"
            remedy = "allow more, or keep layers in full precision with --exclude"
            raise UsageError("error-unreachable", "--max-error", reason, remedy)
        low, high = RANGES[objective]
        first = True
        for _ in progress.track(range(STEPS), "searching the budget", STEPS):
            # The least budget itself is tried first: it may do already.
            middle = low if first else (low + high) / 2
            plan = possible(planned, _budget(objective, middle))
            if plan is not None and measured(plan) <= max_error:
                best, high = plan, middle
                if first:
                    break
            else:
                low = middle
            first = False
        return best


def possible(planned: Planner, budget: Budget) -> QuantPlan | None:
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
