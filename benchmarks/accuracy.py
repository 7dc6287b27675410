"""Stock FP16, FP8, MXFP8 and NVFP4 beside uniform formats, MicroMix and the default policy.

    python -m benchmarks.accuracy [--only minilm|babyllama] [--markdown]

Models, texts and errors are those of subjects.py. The stock baselines are the graphs of
docs/baselines.md; they share calibration, linears and measurement with the rest, so that only the
numbers differ. "MB" is the size of model.onnx and its data, embeddings included, which baselines
keep in float16 and the others as they were; "bits" are those of the linears' weights, block scales
and padding included. Weights of uniform formats and of MicroMix are rounded to nearest.

Fails (exit code 1) where a format errs more than `MOST` allows on MiniLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models
from benchmarks.measure import environment
from benchmarks.plans import planned
from benchmarks.subjects import Subject, add_arguments, chosen, compiled, stats
from benchmarks.tables import command_line, show
from mmcompile.effort import Weights
from mmcompile.model.passes.baselines import write_baseline
from mmcompile.policy.choices import Thresholds
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.registry import make_policy

BASELINES = (
    ("FP16 baseline", "fp16", False),
    ("FP8 baseline", "fp8", False),
    ("FP8 baseline, weights per channel", "fp8", True),
    ("MXFP8 baseline (TRT operators)", "mxfp8", False),
    ("NVFP4 baseline (TRT operators)", "nvfp4", False),
)
UNIFORM = ("mxfp8", "mxfp6_e2m3", "mxfp6_e3m2", "nvfp4", "mxfp4")
POLICIES = (
    *((f"uniform {name}", make_policy(name), Weights.NEAREST) for name in UNIFORM),
    *(
        (f"MicroMix, thresholds `{kind}`", MicroMixPolicy(thresholds=kind), Weights.NEAREST)
        for kind in Thresholds
    ),
    ("cost (default)", CostPolicy(), Weights.GPTQ),
)
MOST = {"uniform mxfp8": 0.008, "uniform mxfp6_e2m3": 0.008, "uniform mxfp6_e3m2": 0.018}
LIMITED = "embedding: 1 − cosine"
"""The figure of MiniLM that `MOST` limits."""


@dataclass(frozen=True)
class Variant:
    """A variant of a model on disk.

    Attributes:
        name: what the table calls it.
        runnable: the file to run.
        bits: mean bits of a linear's weight.
        size: bytes of the model.
    """

    name: str
    runnable: Path
    bits: float
    size: int


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    faults = [
        fault for subject in chosen(arguments) for fault in measure(subject, arguments.markdown)
    ]
    if faults:
        raise SystemExit("\n".join(faults))


def measure(subject: Subject, markdown: bool) -> list[str]:
    """Prints the table of a model; what exceeds its limit."""
    rows, faults = [], []
    for variant in variants(subject):
        figures = subject.figures(variant.runnable)
        cells = [f"{value:.5f}" for value in figures.values()]
        rows.append([variant.name, f"{variant.bits:.2f}", f"{variant.size / 1e6:.2f}", *cells])
        print(*rows[-1], flush=True)
        if figures.get(LIMITED, 0.0) > MOST.get(variant.name, 1.0):
            faults.append(f"{variant.name}: {figures[LIMITED]:.4f} > {MOST[variant.name]}")
    show(subject.title, ["variant", "bits", "MB", *figures], rows, markdown=markdown)
    return faults


def variants(subject: Subject) -> Iterator[Variant]:
    """The original, all baselines and all policies; each is overwritten by the next."""
    source, groups = subject.prepared.source, subject.prepared.groups
    yield Variant("float32, the original", source.path, 32.0, source.size_bytes)
    tensors = stats(subject, ()).tensors
    amax = {name: float(tensor.abs_max.max()) for name, tensor in tensors.items()}
    folder = models.WORK / "baseline"
    for name, kind, per_channel in BASELINES:
        made = write_baseline(kind, source, groups, amax, folder, per_channel=per_channel)
        if made.left_alone:
            print(f"{name}: {len(made.left_alone)} linears left in float16")
        yield Variant(name, made.runnable, made.weight_bits, made.bytes)
    for name, policy, weights in POLICIES:
        plan = planned(subject, policy)
        model = compiled(subject, plan, weights)
        yield Variant(name, model, plan.mean_weight_bits(), models.weight_bytes(model))


if __name__ == "__main__":
    main()
