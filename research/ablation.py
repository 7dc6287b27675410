"""Gradients carry the plan: without them MiniLM errs .0199 instead of .0146 (docs/measurements/policy.md, "Each step on and off").

Every step of the policy `cost` and of its weights is switched off in turn.

    python -m research.ablation [--only minilm|babyllama] [--seeds 3] [--markdown]

At a tensor-core cost of 1.25, with the MX classes at 5.25 bits and with NVFP4 besides at 5 bits,
runs of 128 channels. Steps of the plan are measured with weights rounded to nearest and with error
feedback, steps of the weights with the plan as it is. Models, texts and figures are those of
benchmarks/subjects.py; the means are over seeds of sampled rows and directions. Steps are switched off
by exchanging functions of the compiler for the length of a measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from benchmarks import models, plans
from benchmarks.measure import environment
from benchmarks.plans import MX_CLASSES, planned
from benchmarks.subjects import Subject, add_arguments, chosen, error_of
from benchmarks.tables import command_line, show
from mmcompile.calib.gradient_rows import GradientSamples
from mmcompile.effort import DAMPING, WORK, Effort, Weights
from mmcompile.plan import QuantPlan
from mmcompile.policy import class_order
from mmcompile.policy import cost_plan
from mmcompile.policy.budget import CLASSES, Budget, candidates
from mmcompile.policy.cost import CostPolicy
from mmcompile.targets.target import Objective
from mmcompile.weights import pack

BUDGETS = {"MX": (MX_CLASSES, Budget(1.25, 5.25)), "with NVFP4": (CLASSES, Budget(1.25, 5.0))}
F32 = npt.NDArray[np.float32]
Switch = Callable[[Subject], AbstractContextManager[object]]


@dataclass(frozen=True)
class Step:
    """A step that can be switched off.

    Attributes:
        name: what is done instead.
        off: switches it off while a plan is made, or while weights are rounded.
        options: of the policy, which switch it off.
    """

    name: str
    off: Switch = field(default=lambda _: contextlib.nullcontext())
    options: dict[str, Any] = field(default_factory=dict)


def _exchanged(module: object, name: str, replacement: object) -> Switch:
    return lambda _: mock.patch.object(module, name, replacement)


def _without_gradients(subject: Subject) -> AbstractContextManager[object]:
    missing = {group.name: "left out" for group in subject.prepared.groups}
    found = GradientSamples({}, missing)
    return mock.patch.object(plans, "sensed", return_value=found)


def _by_size_alone(
    rows: object, responses: object, order: npt.NDArray[np.int32], *_: object
) -> npt.NDArray[np.float64]:
    """Stands for the damage of single channels: their place by max |x|."""
    del rows, responses
    return np.arange(order.size, dtype=np.float64)


def _one_damping(subject: Subject) -> AbstractContextManager[object]:
    work = dataclasses.replace(WORK[Effort.BALANCED], dampings=(DAMPING,))
    return mock.patch.object(subject.inputs, "_work", work)


def _whole_step(weight: F32, gain: F32, quantized: F32, wanted: F32) -> F32:
    del quantized, wanted
    return weight + weight @ gain.T


OF_THE_PLAN = (
    Step("as it is"),
    Step("error of the layer's output instead of gradients", _without_gradients),
    Step(
        "whole layers instead of runs",
        _exchanged(cost_plan, "run_bounds", lambda size, _: np.array([0, size])),
    ),
    Step(
        "runs by max abs x instead of damage",
        _exchanged(cost_plan, "channel_damage", _by_size_alone),
    ),
    Step(
        "classes sorted by max abs x only",
        _exchanged(cost_plan, "candidate_keys", lambda t, _: class_order.candidate_keys(t, 2)[:1]),
    ),
    Step("orders chosen by any difference", _exchanged(class_order, "CLEAR", 0.0)),
    Step(
        "equal formats for activations and weights",
        _exchanged(
            cost_plan, "candidates", lambda _, classes: candidates(Objective.MEMORY, classes)
        ),
    ),
    Step("OCP's scale rule", options={"scale_rule": "ocp"}),
    Step("weight scales by rule instead of searched", options={"weight_scales": "rule"}),
    Step("runs of 32 channels", options={"granularity": 32}),
)
OF_THE_WEIGHTS = (
    Step("as it is"),
    Step("no correction", _exchanged(pack, "correction", lambda *_: None)),
    Step("the whole correction", _exchanged(pack, "corrected", _whole_step)),
    Step("one damping", _one_damping),
)


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_arguments(parser)
    parser.add_argument("--seeds", type=int, default=1, help="plans to average over")
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    for subject in chosen(arguments):
        measure(subject, arguments.seeds, arguments.markdown)


def measure(subject: Subject, seeds: int, markdown: bool) -> None:
    """Prints the tables of a model."""
    rows = []
    for step in OF_THE_PLAN:
        rows.append([step.name, *_cells(of_plan(subject, step, seeds))])
        print(*rows[-1], flush=True)
    columns = ["plan"]
    columns += [f"{what}, {weights}" for what in BUDGETS for weights in Weights]
    show(f"{subject.title}: {subject.figure}", columns, rows, markdown=markdown)
    rows = []
    for step in OF_THE_WEIGHTS:
        rows.append([step.name, *_cells(of_weights(subject, step, seeds))])
        print(*rows[-1], flush=True)
    show(f"{subject.title}: {subject.figure}", ["weights", *BUDGETS], rows, markdown=markdown)


def of_plan(subject: Subject, step: Step, seeds: int) -> Iterator[float]:
    """Mean errors without a step of the plan: per budget, both ways of rounding."""
    for what in BUDGETS:
        with step.off(subject):
            plans = list(_plans(subject, what, step, seeds))
        for weights in Weights:
            yield float(np.mean([error_of(subject, plan, weights) for plan in plans]))


def of_weights(subject: Subject, step: Step, seeds: int) -> Iterator[float]:
    """Mean errors without a step of error feedback: per budget."""
    for what in BUDGETS:
        plans = list(_plans(subject, what, step, seeds))
        with step.off(subject):
            yield float(np.mean([error_of(subject, plan, Weights.GPTQ) for plan in plans]))


def _plans(subject: Subject, what: str, step: Step, seeds: int) -> Iterator[QuantPlan]:
    classes, budget = BUDGETS[what]
    options = {"target_speed": budget.speed, "target_bits": budget.bits, **step.options}
    policy = CostPolicy(classes=classes, **options)
    for seed in range(seeds):
        plans._evidence.cache_clear()  # the compiler has been changed
        yield planned(subject, policy, seed)


def _cells(errors: Iterator[float]) -> list[str]:
    return [f"{error:.4f}" for error in errors]


if __name__ == "__main__":
    main()
