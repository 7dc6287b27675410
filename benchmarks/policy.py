"""What the policies make of the same cost: error of two real models against tensor-core cost.

    python -m benchmarks.policy [--only minilm|babyllama] [--seeds 3] [--markdown]

At mean tensor-core costs of 1.1, 1.25, 1.5 and 2 (FP4 1, everything else 2): the policy `cost` with
the MX classes and with NVFP4 besides, MicroMix with its thresholds swept to that cost, and MicroMix
with E2M3 in place of E3M2; at 1.25 `cost` also with a second budget of bits, and at MicroMix's own
cost with half a bit less. Then the uniform formats, and the objective `decode` by weight bits.
Every plan is measured twice: weights rounded to nearest, and with error feedback (GPTQ). Models,
texts and errors are those of subjects.py; calibration and measurement see different text.
MicroMix's λ is swept on the calibration data alone. With --seeds, the plans of `cost` are those of
several seeds, and their errors the mean.

docs/measurements/policy.md holds the tables that `--markdown` prints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import models
from benchmarks.measure import environment
from benchmarks.plans import (
    MX_CLASSES,
    closest,
    in_pair,
    micromix,
    planned,
    speed_cost,
    with_e2m3,
)
from benchmarks.subjects import Subject, add_arguments, both_errors, chosen
from benchmarks.tables import command_line, show
from mmcompile.plan import QuantPlan
from mmcompile.policy.budget import CLASSES
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Policy
from mmcompile.policy.registry import make_policy
from mmcompile.policy.uniform import UNIFORM
from mmcompile.targets.target import FormatPair, Objective

COSTS = (1.1, 1.25, 1.5, 2.0)
BITS = (4.27, 4.5, 5.0, 6.0)
TWO_BUDGETS = 1.25
"""The cost at which `cost` is also asked for few bits."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a policy, what was asked of it, and its plans, one per seed."""

    name: str
    asked: str
    plans: tuple[QuantPlan, ...]


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_arguments(parser)
    parser.add_argument("--costs", type=float, nargs="*", default=COSTS, help="to compare at")
    parser.add_argument("--seeds", type=int, default=1, help="plans of cost to average over")
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    for subject in chosen(arguments):
        measure(subject, arguments.costs, arguments.seeds, arguments.markdown)


def measure(subject: Subject, costs: Sequence[float], seeds: int, markdown: bool) -> None:
    """Prints the table of a model."""
    lines = []
    rows = (by_cost(subject, costs, seeds), at_micromix(subject, seeds), uniform(subject))
    for row in itertools.chain(*rows, by_bits(subject, seeds)):
        errors = np.mean([both_errors(subject, plan) for plan in row.plans], axis=0)
        lines.append(
            [
                row.name,
                row.asked,
                f"{np.mean([speed_cost(plan) for plan in row.plans]):.3f}",
                f"{np.mean([plan.mean_weight_bits() for plan in row.plans]):.2f}",
                *(f"{error:.4f}" for error in errors),
            ]
        )
        print(*lines[-1], flush=True)
    figure = subject.figure
    columns = ["policy", "asked", "cost", "bits", f"{figure}, nearest", "GPTQ"]
    show(subject.title, columns, lines, markdown=markdown)


def by_cost(subject: Subject, costs: Sequence[float], seeds: int) -> Iterator[Row]:
    """All policies at the same tensor-core costs."""
    swept = {size: list(micromix(subject, size)) for size in (128, 32)}
    for cost in costs:
        for size, plans in swept.items():
            plan = closest(plans, cost)
            name = f"micromix, λ {plan.parameters['lambda']:.3g}, runs of {size}"
            yield Row(name, f"cost {cost:g}", (plan,))
            yield Row(f"{name}, E2M3", f"cost {cost:g}", (with_e2m3(plan),))
        for classes, what in ((MX_CLASSES, "MX"), (CLASSES, "with NVFP4")):
            for size in (128, 32) if cost == TWO_BUDGETS else (128,):
                policy = CostPolicy(granularity=size, target_speed=cost, classes=classes)
                name = f"cost, {what}, runs of {size}"
                yield _row(subject, name, f"cost {cost:g}", policy, seeds)
        if cost == TWO_BUDGETS:
            for classes, what, bits in ((MX_CLASSES, "MX", 5.25), (CLASSES, "with NVFP4", 5.0)):
                policy = CostPolicy(target_speed=cost, target_bits=bits, classes=classes)
                asked = f"cost {cost:g}, bits {bits:g}"
                yield _row(subject, f"cost, {what}, runs of 128", asked, policy, seeds)


def at_micromix(subject: Subject, seeds: int) -> Iterator[Row]:
    """MicroMix as published, and `cost` for its tensor-core cost and half a bit less."""
    plan = planned(subject, MicroMixPolicy())
    cost, bits = speed_cost(plan), plan.mean_weight_bits() - 0.5
    yield Row("micromix, λ 1, runs of 128", "–", (plan,))
    yield Row("micromix, λ 1, runs of 128, E2M3", "–", (with_e2m3(plan),))
    policy = CostPolicy(target_speed=cost, target_bits=bits)
    asked = f"cost {cost:.3f}, bits {bits:.2f}"
    yield _row(subject, "cost, with NVFP4, runs of 128", asked, policy, seeds)


def by_bits(subject: Subject, seeds: int) -> Iterator[Row]:
    """The objective `decode`: activations and weights apart, and its simplest case."""
    base = planned(subject, make_policy("mxfp8"))
    for weight in ("mxfp4", "mxfp6_e2m3"):
        pair = FormatPair("mxfp8", weight)
        yield Row(f"uniform A8 {weight}", f"bits {pair.bits:g}", (in_pair(base, pair),))
    for bits in BITS:
        policy = CostPolicy(objective=Objective.DECODE, target_bits=bits)
        yield _row(subject, "cost, decode", f"bits {bits:.2f}", policy, seeds)


def uniform(subject: Subject) -> Iterator[Row]:
    """One format for everything."""
    for name in ("mxfp4", "nvfp4", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp8"):
        yield _row(subject, f"uniform {UNIFORM[name]}", "–", make_policy(name), 1)


def _row(subject: Subject, name: str, asked: str, policy: Policy, seeds: int) -> Row:
    """The plans of a policy."""
    return Row(name, asked, tuple(planned(subject, policy, seed) for seed in range(seeds)))


if __name__ == "__main__":
    main()
