"""On five models that nobody tuned on, `cost` has .44 to .96 of MicroMix's error at its cost (docs/measurements/policy.md, "Models that nobody tuned on").

    python -m research.untuned [--seeds 3] [--only llama bert] [--weights nearest] [--markdown]

Exports of small language models with random weights and log-normal norm weights (tests/models.py),
random ids to calibrate and others to measure; weights and ids depend on the seed. MicroMix runs
with its published thresholds (λ 1), at granularity 32 and 128. The policy `cost` gets the
tensor-core cost of MicroMix's plan as its budget and runs of the same length; besides, the same
cost with half a bit per weight less. Errors are 1 − cosine of the worst output, ratios are to
MicroMix's error; all have their weights rounded alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.measure import environment
from benchmarks.plans import MX_CLASSES, planned, speed_cost, with_e2m3
from benchmarks.subjects import Feeds, Subject, distance, error_of, subject
from benchmarks.tables import command_line, show
from mmcompile.effort import Weights
from mmcompile.model.selection import Selection
from mmcompile.model.session import Purpose, open_session
from mmcompile.pipeline.prepare import input_specs, prepare
from mmcompile.plan import QuantPlan
from mmcompile.policy.budget import CLASSES, Budget
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from tests.models import SMALL_VOCABULARY

NAMES = ("llama", "qwen2", "qwen3", "bert", "gpt2")
SIZES = (32, 128)
FIGURE = "1 − cosine"
SAMPLES, TOKENS = 16, 64
"""Random inputs to calibrate, and as many others to measure."""
FEWER_BITS = 0.5
COMPARED = ("MicroMix", "MicroMix, E2M3", "cost, MX", "cost, with NVFP4", "cost, half a bit less")
"""What `plans` gives, in its order."""


@dataclass(frozen=True)
class Figures:
    """What the policies made of one model.

    Attributes:
        plans: one per entry of `COMPARED`.
        errors: of each plan.
    """

    plans: tuple[QuantPlan, ...]
    errors: tuple[float, ...]


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="models of each kind")
    parser.add_argument("--weights", type=Weights, choices=list(Weights), default=Weights.GPTQ)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    found: dict[tuple[str, int], list[Figures]] = {}
    for name in arguments.only:
        for seed in range(arguments.seeds):
            model = small(name, seed)
            for size in SIZES:
                figures = measure(model, size, arguments.weights)
                found.setdefault((name, size), []).append(figures)
                errors = ", ".join(f"{error:.4f}" for error in figures.errors)
                print(f"{name}, seed {seed}, runs of {size}: {errors}", flush=True)
    what = f"Random weights, {arguments.seeds} seeds, weights {arguments.weights}"
    show(
        f"{what}: {FIGURE} of the worst output, mean",
        ["model", "runs of", "cost", *COMPARED],
        [_error_cells(name, size, figures) for (name, size), figures in found.items()],
        markdown=arguments.markdown,
    )
    show(
        f"{what}: error relative to MicroMix's, geometric mean (least – most)",
        ["model", "runs of", "bits", "with half a bit less", *COMPARED[1:]],
        [_ratio_cells(name, size, figures) for (name, size), figures in found.items()],
        markdown=arguments.markdown,
    )


def small(name: str, seed: int) -> Subject:
    """A small model with random weights and random ids; both depend on the seed.

    Its error is 1 − cosine of a sample's output, mean over samples, of the worst output.
    """
    model = models.small(name, seed)
    inputs = [spec.name for spec in input_specs(prepare(model, Selection()).runnable)]
    generator = np.random.default_rng([seed, 1])

    def feeds() -> Feeds:
        found = []
        for _ in range(SAMPLES):
            ids = generator.integers(0, SMALL_VOCABULARY, (1, TOKENS), np.int64)
            known = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            found.append({name: known[name] for name in inputs})
        return found

    calibration, held_out = feeds(), feeds()
    reference = _outputs(model, held_out)

    def figures(other: Path) -> dict[str, float]:
        apart = [
            [distance(a, b) for a, b in zip(exact, actual, strict=True)]
            for exact, actual in zip(reference, _outputs(other, held_out), strict=True)
        ]
        return {FIGURE: float(np.mean(apart, axis=0).max())}

    return subject(name, model, calibration, figures, FIGURE)


def _outputs(model: Path, feeds: Feeds) -> list[list[np.ndarray]]:
    """Per feed, every output as float64[elements]."""
    session = open_session(model, model.parent, Purpose.DEPLOYMENT)
    return [[out.astype(np.float64).ravel() for out in session.run(None, feed)] for feed in feeds]


def measure(subject: Subject, size: int, weights: Weights) -> Figures:
    """Errors of all policies with runs of `size` channels."""
    compared = plans(subject, size)
    return Figures(compared, tuple(error_of(subject, plan, weights) for plan in compared))


def plans(subject: Subject, size: int) -> tuple[QuantPlan, ...]:
    """MicroMix's plan and the others at its cost, as `COMPARED` names them."""
    own = planned(subject, MicroMixPolicy(granularity=size))
    same = Budget(speed=speed_cost(own))
    fewer = Budget(speed=same.speed, bits=own.mean_weight_bits() - FEWER_BITS)

    def by_cost(classes: tuple[str, ...], target: Budget) -> QuantPlan:
        policy = CostPolicy(
            granularity=size, classes=classes, target_speed=target.speed, target_bits=target.bits
        )
        return planned(subject, policy)

    others = by_cost(MX_CLASSES, same), by_cost(CLASSES, same), by_cost(CLASSES, fewer)
    return own, with_e2m3(own), *others


def _error_cells(name: str, size: int, figures: Sequence[Figures]) -> list[str]:
    cost = np.mean([speed_cost(entry.plans[0]) for entry in figures])
    errors = np.mean([entry.errors for entry in figures], axis=0)
    return [name, str(size), f"{cost:.3f}", *(f"{error:.4f}" for error in errors)]


def _ratio_cells(name: str, size: int, figures: Sequence[Figures]) -> list[str]:
    bits = np.mean([[plan.mean_weight_bits() for plan in entry.plans] for entry in figures], axis=0)
    ratios = np.array([entry.errors[1:] for entry in figures])
    ratios /= np.array([entry.errors[:1] for entry in figures])
    middle = np.exp(np.log(ratios).mean(axis=0))
    cells = zip(middle, ratios.min(axis=0), ratios.max(axis=0), strict=True)
    return [
        name,
        str(size),
        f"{bits[0]:.2f}",
        f"{bits[-1]:.2f}",
        *(f"{mean:.2f} ({least:.2f} – {most:.2f})" for mean, least, most in cells),
    ]


if __name__ == "__main__":
    main()
