"""Sorting channels matters, and so does the scale rule: MiniLM's embedding errs .0135 sorted, .0197 in random order; MXFP8 .0032 balanced, .0053 by OCP's rule (docs/measurements/accuracy.md, "Orders and scale rules").

    python -m research.orders_and_scales [--only minilm] [--markdown]

MicroMix with its channels sorted, in random and in reversed order, at coarser and finer runs; and
formats under the three rules for block exponents, weights by the same rule. Models and errors are
those of benchmarks/subjects.py, weights are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import models
from benchmarks.measure import environment
from benchmarks.plans import planned
from benchmarks.subjects import add_arguments, chosen, compiled
from benchmarks.tables import command_line, show
from mmcompile.effort import Weights
from mmcompile.policy.choices import Order
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Policy
from mmcompile.policy.registry import make_policy


def policies() -> Iterator[tuple[str, Policy]]:
    for granularity in (128, 64, 32):
        yield f"micromix, runs of {granularity}", MicroMixPolicy(granularity=granularity)
    yield "micromix, λ 1.5, runs of 32", MicroMixPolicy(granularity=32, factor=1.5)
    for order in (Order.RANDOM, Order.REVERSED):
        yield f"micromix, {order} order", MicroMixPolicy(order=order)
    for rule in ("balanced", "ocp", "saturation_free"):
        for name in ("mxfp8", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "micromix"):
            yield f"{name}, {rule}", make_policy(name, scale_rule=rule, weight_scales="rule")


def main() -> None:
    parser = command_line(__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    for subject in chosen(arguments):
        rows = []
        for name, policy in policies():
            plan = planned(subject, policy)
            figures = subject.figures(compiled(subject, plan, Weights.NEAREST))
            cells = [f"{value:.4f}" for value in figures.values()]
            rows.append([name, f"{plan.mean_weight_bits():.2f}", *cells])
            print(*rows[-1], flush=True)
        show(subject.title, ["policy", "bits", *figures], rows, markdown=arguments.markdown)


if __name__ == "__main__":
    main()
