"""Plans of a run, and `max_error`: the smallest budget whose model stays within an error.

Every candidate of the search, which is by bisection, is packed into a temporary folder and run
beside the original, on samples of the calibration data: what is held back for verification takes
no part in the choice.
"""

from __future__ import annotations

import math

import msgspec

from mmcompile.errors import UsageError
from mmcompile.pipeline.run import Run
from mmcompile.pipeline.trial import TrialBench, worst_error
from mmcompile.pipeline.verification import take_samples
from mmcompile.pipeline.weights import InputsOf, no_inputs
from mmcompile.plan import QuantPlan
from mmcompile.policy.protocol import Budgeted, Evidence, Policy
from mmcompile.progress import Silent

SAMPLES = 8
"""Samples of the calibration data that a candidate is run on."""
STEPS = 6
"""Halvings of the range between the least and the largest budget."""


def planned(
    run: Run, policy: Policy, evidence: Evidence, inputs_of: InputsOf = no_inputs
) -> QuantPlan:
    """The plan of a policy, its budget searched where it asks for that.

    Args:
        run: the model and the calibration data.
        policy: how precision is assigned.
        evidence: what is known of the model.
        inputs_of: sampled inputs for error feedback, which a largest error is measured with.

    Raises:
        UsageError: no choice of formats meets the budget, or none the largest error allowed.
    """
    if isinstance(policy, Budgeted) and policy.max_error is not None:
        plan, _ = smallest_within(run, policy, evidence, inputs_of)
        return plan
    return policy.plan(evidence)


def smallest_within(
    run: Run, policy: Budgeted, evidence: Evidence, inputs_of: InputsOf = no_inputs
) -> tuple[QuantPlan, Budgeted]:
    """The plan of the smallest budget whose measured error is at most the policy's `max_error`.

    Returns:
        The plan, and the policy with that budget.

    Raises:
        UsageError: the largest budget errs more.
    """
    most = policy.max_error
    data, prepared = run.inputs.calibration, run.prepared
    assert most is not None and data is not None
    with TrialBench(prepared, inputs_of=inputs_of) as bench:
        reference = bench.reference(take_samples(prepared, data, SAMPLES), Silent())

        def measured(plan: QuantPlan) -> float:
            decided = tuple(zip(prepared.groups, plan.groups, strict=True))
            return worst_error(bench.agreements(decided, [reference])[0])

        chosen = policy.priced(math.inf)
        best = chosen.plan(evidence)
        error = measured(best)
        if error > most:
            reason = f"{error:.3g} with the largest budget, more than the {most:g} asked for"
            remedy = "allow more, or keep layers in full precision with --exclude"
            raise UsageError("error-unreachable", "--max-error", reason, remedy)
        low, high = policy.span(run.target)
        first = True
        for _ in run.progress.track(range(STEPS), "searching the budget", STEPS):
            # The least budget itself is tried first: it may do already.
            middle = low if first else (low + high) / 2
            candidate = policy.priced(middle)
            plan = possible(candidate, evidence)
            if plan is not None and measured(plan) <= most:
                best, chosen, high = plan, candidate, middle
                if first:
                    break
            else:
                low = middle
            first = False
    parameters = best.parameters | {"max_error": most}
    return msgspec.structs.replace(best, parameters=parameters), chosen


def possible(policy: Policy, evidence: Evidence) -> QuantPlan | None:
    """The plan, or None where padding makes the budget too small for any."""
    try:
        return policy.plan(evidence)
    except UsageError as error:
        if error.code != "budget-too-small":
            raise
        return None
