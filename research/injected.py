"""With injected outliers, MiniLM at cost 1.25: `cost` .0146, MicroMix .0349, NVFP4 alone .0977 (docs/measurements/policy.md, "Outliers injected").

Policies on a model with the activation outliers of large ones: error at the same cost.

    python -m research.injected [--seeds 2] [--markdown]

MiniLM with outliers injected (outliers.py: the same function), once per seed: uniform
formats, MicroMix with its thresholds swept to a tensor-core cost of 1.25, the same with E2M3 in
place of E3M2, and the policy `cost` at 1, 1.25 and 2 (FP4 1, everything else 2). Texts and errors
are those of benchmarks/subjects.py; every seed is planned and calibrated anew, and every plan measured
with weights rounded to nearest and with error feedback (GPTQ).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks import models
from benchmarks.measure import environment
from research.outliers import Injection, inject
from benchmarks.plans import (
    MX_CLASSES,
    closest,
    micromix,
    planned,
    speed_cost,
    with_e2m3,
)
from benchmarks.subjects import Subject, add_arguments, both_errors, minilm
from benchmarks.tables import command_line, show
from mmcompile.plan import QuantPlan
from mmcompile.policy.budget import CLASSES
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.registry import make_policy
from mmcompile.policy.uniform import UNIFORM

COST_OF_MIXTURES = 1.25
COSTS = (1.0, COST_OF_MIXTURES, 2.0)
SIZES = (128, 32)


@dataclass(frozen=True)
class Figures:
    """What a policy made of one injection."""

    cost: float
    bits: float
    nearest: float
    feedback: float


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=2, help="injections to average over")
    parser.add_argument("--share", type=float, default=Injection.share, help="of the channels")
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    found: dict[str, list[Figures]] = {}
    for seed in range(arguments.seeds):
        subject = injected(arguments, seed)
        for name, plan in plans(subject):
            errors = both_errors(subject, plan)
            figures = Figures(speed_cost(plan), plan.mean_weight_bits(), *errors)
            found.setdefault(name, []).append(figures)
            print(f"seed {seed}, {name}:", *(f"{error:.4f}" for error in errors), flush=True)
    title = (
        f"{subject.title}; {100 * arguments.share:g} % of the norm-fed channels are outliers, "
        f"{arguments.seeds} seeds"
    )
    columns = ["policy", "cost", "bits"]
    columns += [f"{subject.figure}, nearest", "least", "most", "GPTQ", "least", "most"]
    rows = [_cells(name, figures) for name, figures in found.items()]
    show(title, columns, rows, markdown=arguments.markdown)


def injected(arguments: argparse.Namespace, seed: int) -> Subject:
    """MiniLM with the outliers of a seed."""
    folder = models.WORK / "outliers" / f"minilm-{seed}"
    original = models.minilm(arguments.minilm) / models.MODEL_FILE
    result = inject(original, folder, Injection(share=arguments.share, seed=seed))
    print(f"seed {seed}: outputs differ by {result.difference:.1e} of their largest value")
    return minilm(arguments, result.model)


def plans(subject: Subject) -> Iterator[tuple[str, QuantPlan]]:
    """What is compared, under names that do not depend on the seed."""
    for name in ("mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8"):
        yield f"uniform {UNIFORM[name]}", planned(subject, make_policy(name))
    for size in SIZES:
        plan = closest(micromix(subject, size), COST_OF_MIXTURES)
        name = f"micromix, runs of {size}, asked {COST_OF_MIXTURES:g}"
        yield name, plan
        yield f"{name}, E2M3", with_e2m3(plan)
    for cost in COSTS:
        for classes, what in ((MX_CLASSES, "MX"), (CLASSES, "with NVFP4")):
            policy = CostPolicy(target_speed=cost, classes=classes)
            yield f"cost, {what}, runs of 128, asked {cost:g}", planned(subject, policy)


def _cells(name: str, figures: list[Figures]) -> list[str]:
    nearest = [entry.nearest for entry in figures]
    feedback = [entry.feedback for entry in figures]
    return [
        name,
        f"{np.mean([entry.cost for entry in figures]):.3f}",
        f"{np.mean([entry.bits for entry in figures]):.2f}",
        *(f"{value:.4f}" for value in (np.mean(nearest), min(nearest), max(nearest))),
        *(f"{value:.4f}" for value in (np.mean(feedback), min(feedback), max(feedback))),
    ]


if __name__ == "__main__":
    main()
