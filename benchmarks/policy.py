"""What the policies make of the same cost: error of two real models against tensor-core cost.

    python -m benchmarks.policy [--only minilm|babyllama] [--markdown]

At mean tensor-core costs of 1.1, 1.25, 1.5 and 2 (FP4 1, everything else 2): the policy `cost` with
the MX classes and with NVFP4 besides, MicroMix with its thresholds swept to that cost, and MicroMix
with E2M3 in place of E3M2; then the uniform formats, and the objective `decode` by weight bits.
Models, texts and figures are those of `benchmarks.accuracy`: MiniLM's mean 1 − cosine of all token
vectors of a paragraph, BabyLlama's difference of the mean negative log likelihood. Calibration and
measurement see different text. MicroMix's λ is swept on the calibration data alone.

docs/measurements/policy.md holds the tables that `--markdown` prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.accuracy import Feeds, negative_log_likelihood, paragraphs, run_all, similarity
from benchmarks.measure import environment, show
from mmcompile.calib.cost import CLASSES, NVFP4, Budget, FormatPair, Objective
from mmcompile.calib.data import CalibrationData, open_data
from mmcompile.calib.policy import COST, MICROMIX, UNIFORM, Policy, make_plan
from mmcompile.calib.stats import ActivationStats
from mmcompile.passes.find_linears import Selection
from mmcompile.pipeline.calibrate import calibrated
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.pipeline.prepare import Prepared, input_specs, prepare
from mmcompile.pipeline.sense import plan_by_cost
from mmcompile.plan import QuantPlan, dump_plan
from mmcompile.progress import Silent

COSTS = (1.1, 1.25, 1.5, 2.0)
BITS = (4.25, 4.5, 5.0, 6.0)
FACTORS = tuple(float(x) for x in np.geomspace(0.15, 14, 32))
"""The λ that MicroMix is tried with."""
MX_CLASSES = tuple(name for name in CLASSES if name != NVFP4)


@dataclass(frozen=True)
class Subject:
    """A model with the text that it is calibrated and measured on.

    Attributes:
        title: what it is, for the table.
        prepared: the model.
        data: the calibration data.
        error: the error of a compiled model on other text.
        figure: name of that error.
    """

    title: str
    prepared: Prepared
    data: CalibrationData
    error: Callable[[Path], float]
    figure: str


@dataclass(frozen=True)
class Row:
    """One line of the table: a policy, what was asked of it, and its plan."""

    name: str
    asked: str
    plan: QuantPlan
    seconds: float


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="tokenized WikiText, one paragraph per line")
    parser.add_argument("--paragraphs", type=int, default=96, help="to measure on")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per paragraph")
    parser.add_argument("--minilm", type=Path, help="folder of examples/minilm/prepare.py")
    parser.add_argument("--babyllama", type=Path, help="folder of examples/babyllama/export.py")
    parser.add_argument("--only", choices=["minilm", "babyllama"])
    parser.add_argument("--markdown", action="store_true", help="print the tables for docs")
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    for subject in subjects(arguments):
        measure(subject, arguments.markdown)


def subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    """The models that are at hand."""
    if arguments.only != "babyllama":
        yield minilm(arguments)
    if arguments.only != "minilm":
        folder = models.babyllama(arguments.babyllama)
        if folder is None:
            print("BabyLlama is left out: its files are not in ../shared/data")
        else:
            yield babyllama(folder)


def minilm(arguments: argparse.Namespace) -> Subject:
    """MiniLM with paragraphs of text."""
    folder = models.minilm(arguments.minilm)
    calibration, held_out, description = paragraphs(folder, arguments)
    output = "last_hidden_state"
    reference = run_all(folder / "model.onnx", held_out, output)

    def error(model: Path) -> float:
        return 1 - float(similarity(reference, run_all(model, held_out, output)).tokens.mean())

    return _subject(f"MiniLM, {description}", folder, calibration, error, "1 − cosine")


def babyllama(folder: Path) -> Subject:
    """BabyLlama with rows of a story."""
    seen, held_out = (
        np.load(folder / f"{name}.npz")["input_ids"] for name in ("calibration", "heldout")
    )
    exact = negative_log_likelihood(folder / "model.onnx", held_out)

    def error(model: Path) -> float:
        return negative_log_likelihood(model, held_out) - exact

    calibration: list[dict[str, npt.NDArray[np.int64]]]
    calibration = [{"input_ids": row[None, :-1]} for row in seen]
    title = f"BabyLlama, {len(seen)} rows to calibrate, {len(held_out)} others to measure"
    return _subject(title, folder, calibration, error, "ΔNLL")


def measure(subject: Subject, markdown: bool) -> None:
    """Prints the tables of a model."""
    lines = []
    for row in itertools.chain(by_cost(subject), uniform(subject), by_bits(subject)):
        error = subject.error(_compiled(subject, row.plan))
        bits = f"{row.plan.mean_weight_bits():.2f}"
        lines.append(
            [
                row.name,
                row.asked,
                f"{speed_cost(row.plan):.3f}",
                bits,
                f"{error:.4f}",
                f"{row.seconds:.1f}",
            ]
        )
        print(*lines[-1], flush=True)
    columns = ["policy", "asked", "cost", "bits", subject.figure, "planned in s"]
    show(subject.title, columns, lines, markdown=markdown)


def by_cost(subject: Subject) -> Iterator[Row]:
    """All policies at the same tensor-core costs."""
    swept = {size: list(micromix(subject, size)) for size in (128, 32)}
    for cost in COSTS:
        for size, plans in swept.items():
            plan = min(plans, key=lambda plan: abs(speed_cost(plan) - cost))
            name = f"micromix, λ {plan.parameters['lambda']:.3g}, runs of {size}"
            yield Row(name, f"cost {cost:g}", plan, 0.0)
            yield Row(f"{name}, E2M3", f"cost {cost:g}", with_e2m3(plan), 0.0)
        for classes, what in ((MX_CLASSES, "MX"), (CLASSES, "with NVFP4")):
            for size in (128, 32):
                policy = Policy(COST, granularity=size, target=Budget(speed=cost), classes=classes)
                yield _row(subject, f"cost, {what}, runs of {size}", f"cost {cost:g}", policy)
    budget = Budget(speed=1.25, bits=5.0 * _padding(subject))
    asked = f"cost 1.25, bits {budget.bits:.2f}"
    policy = Policy(COST, target=budget)
    yield _row(subject, "cost, with NVFP4, runs of 128", asked, policy)


def by_bits(subject: Subject) -> Iterator[Row]:
    """The objective `decode`: activations and weights apart, and its simplest case."""
    base = _in_mxfp8(subject)
    for weight in ("mxfp4", "mxfp6_e2m3"):
        pair = FormatPair("mxfp8", weight)
        yield Row(f"uniform A8 {weight}", f"bits {pair.bits:g}", _in_pair(base, pair), 0.0)
    for bits in BITS:
        budget = Budget(bits=bits * _padding(subject))
        policy = Policy(COST, objective=Objective.DECODE, target=budget)
        yield _row(subject, "cost, decode", f"bits {budget.bits:.2f}", policy)


def uniform(subject: Subject) -> Iterator[Row]:
    """One format for everything."""
    for name in ("mxfp4", "nvfp4", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp8"):
        yield _row(subject, f"uniform {UNIFORM[name]}", "–", Policy(name))


def micromix(subject: Subject, granularity: int) -> Iterator[QuantPlan]:
    """MicroMix with every λ, from one pass over the data."""
    policies = [Policy(MICROMIX, factor=f, granularity=granularity) for f in FACTORS]
    stats = _stats(subject, tuple(ratio for policy in policies for ratio in policy.ratios))
    prepared = subject.prepared
    for policy in policies:
        yield make_plan(prepared.groups, stats, policy, prepared.source, prepared.left_alone)


def with_e2m3(plan: QuantPlan) -> QuantPlan:
    """A plan with E2M3 wherever it has E3M2."""

    def exchanged(fmt: str) -> str:
        return "mxfp6_e2m3" if fmt == "mxfp6_e3m2" else fmt

    groups = []
    for group in plan.groups:
        segments = tuple(
            msgspec.structs.replace(
                segment,
                act_format=exchanged(segment.act_format),
                weight_format=exchanged(segment.weight_format),
                act_threshold=1.875 if "6" in segment.act_format else segment.act_threshold,
                weight_threshold=1.875 if "6" in segment.act_format else segment.weight_threshold,
            )
            for segment in group.segments
        )
        groups.append(msgspec.structs.replace(group, segments=segments))
    return msgspec.structs.replace(plan, groups=tuple(groups))


def speed_cost(plan: QuantPlan) -> float:
    """Mean tensor-core cost of a plan's multiplications, padding included."""
    spent = whole = 0.0
    for group in plan.groups:
        outputs = sum(group.out_channels)
        whole += outputs * group.padded_channels
        for segment in group.segments:
            pair = FormatPair(segment.act_format, segment.weight_format)
            spent += outputs * segment.channels * pair.speed
    return spent / whole


def _in_mxfp8(subject: Subject) -> QuantPlan:
    prepared, policy = subject.prepared, Policy("mxfp8")
    stats = _stats(subject, policy.ratios)
    return make_plan(prepared.groups, stats, policy, prepared.source, prepared.left_alone)


def _padding(subject: Subject) -> float:
    """Bits of a weight, relative to what they are where no K is padded."""
    return _in_mxfp8(subject).mean_weight_bits() / FormatPair("mxfp8", "mxfp8").bits


def _in_pair(plan: QuantPlan, pair: FormatPair) -> QuantPlan:
    groups = tuple(
        msgspec.structs.replace(
            group,
            segments=tuple(
                msgspec.structs.replace(s, act_format=pair.act, weight_format=pair.weight)
                for s in group.segments
            ),
        )
        for group in plan.groups
    )
    return msgspec.structs.replace(plan, groups=groups)


def _row(subject: Subject, name: str, asked: str, policy: Policy) -> Row:
    """A plan and the seconds that it took, calibration statistics being at hand."""
    stats = _stats(subject, policy.ratios)
    prepared = subject.prepared
    start = time.perf_counter()
    if policy.name == COST:
        plan = plan_by_cost(prepared, subject.data, stats, policy, 0, Silent())
    else:
        plan = make_plan(prepared.groups, stats, policy, prepared.source, prepared.left_alone)
    return Row(name, asked, plan, time.perf_counter() - start)


def _stats(subject: Subject, ratios: Sequence[float]) -> ActivationStats:
    return calibrated(subject.prepared, subject.data, tuple(ratios), 0, Silent())[0]


def _subject(
    title: str, folder: Path, feeds: Feeds, error: Callable[[Path], float], figure: str
) -> Subject:
    prepared = prepare(folder / "model.onnx", Selection())
    data = open_data(
        feeds,
        input_specs(prepared.runnable),
        limit=None,
        seed=0,
        max_length=512,
        tokenizer=None,
    )
    return Subject(title, prepared, dataclasses.replace(data, count=len(feeds)), error, figure)


def _compiled(subject: Subject, plan: QuantPlan) -> Path:
    """The model compiled by a plan."""
    folder = models.WORK / "policy"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    file.write_text(dump_plan(plan), encoding="utf-8")
    options = CompileOptions(
        output=folder / "out", plan=file, verify=VerifyOptions(enabled=False), html=False
    )
    result = compile_model(subject.prepared.source.path, options)
    assert result.model is not None
    return result.model


if __name__ == "__main__":
    main()
