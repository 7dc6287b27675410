"""What policies are measured on: a model, the inputs it is calibrated with, and its error.

`minilm` and `babyllama` are the real models, `small` are exports with random weights. Calibration
and measurement see different inputs. `compiled` is the one place where a plan becomes a model.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.accuracy import Feeds, negative_log_likelihood, paragraphs, run_all, similarity
from mmcompile.calib.stats import ActivationStats
from mmcompile.data.dataset import CalibrationData, open_data
from mmcompile.data.options import DataOptions
from mmcompile.effort import Weights
from mmcompile.model.selection import Selection
from mmcompile.model.session import Purpose, open_session
from mmcompile.pipeline.evidence import calibrated
from mmcompile.pipeline.prepare import Prepared, input_specs, prepare
from mmcompile.pipeline.run import Inputs, Run, execution_of
from mmcompile.pipeline.trial import write_trial
from mmcompile.pipeline.weights import WeightInputs, no_inputs
from mmcompile.plan import QuantPlan
from mmcompile.targets.names import parse_target

TARGET = parse_target("sm_120")
"""What plans are made for, and priced on."""
SMALL_SAMPLES, SMALL_TOKENS = 16, 64
"""Random inputs of a small model, to calibrate and as many others to measure."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the inputs that it is calibrated and measured on.

    Attributes:
        title: what it is, for the table.
        run: the model, with its calibration data.
        error: the error of a compiled model on other inputs.
        figure: name of that error.
        inputs: sampled inputs of the layers, for error feedback.
    """

    title: str
    run: Run
    error: Callable[[Path], float]
    figure: str
    inputs: WeightInputs

    @property
    def prepared(self) -> Prepared:
        """The model."""
        return self.run.prepared

    @property
    def data(self) -> CalibrationData:
        """The calibration data."""
        assert self.run.inputs.calibration is not None
        return self.run.inputs.calibration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which text MiniLM reads and what is printed."""
    parser.add_argument("--text", type=Path, help="tokenized WikiText, one paragraph per line")
    parser.add_argument("--paragraphs", type=int, default=96, help="to measure on")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per paragraph")
    parser.add_argument("--minilm", type=Path, help="folder of examples/minilm/prepare.py")
    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every table has."""
    parser.add_argument("--markdown", action="store_true", help="print the tables for docs")


def minilm(arguments: argparse.Namespace, model: Path | None = None) -> Subject:
    """MiniLM with paragraphs of text.

    Args:
        arguments: the options of `add_arguments`.
        model: the file to take instead of the example's; same inputs and outputs.
    """
    folder = models.minilm(arguments.minilm)
    model = model or folder / "model.onnx"
    calibration, held_out, description = paragraphs(folder, arguments)
    output = "last_hidden_state"
    reference = run_all(model, held_out, output)

    def error(other: Path) -> float:
        return 1 - float(similarity(reference, run_all(other, held_out, output)).tokens.mean())

    return subject(f"MiniLM, {description}", model, calibration, error, "1 − cosine")


def babyllama(folder: Path) -> Subject:
    """BabyLlama with rows of a story."""
    seen, held_out = (
        np.load(folder / f"{name}.npz")["input_ids"] for name in ("calibration", "heldout")
    )
    exact = negative_log_likelihood(folder / "model.onnx", held_out)

    def error(model: Path) -> float:
        return negative_log_likelihood(model, held_out) - exact

    calibration: Feeds = [{"input_ids": row[None, :-1]} for row in seen]
    title = f"BabyLlama, {len(seen)} rows to calibrate, {len(held_out)} others to measure"
    return subject(title, folder / "model.onnx", calibration, error, "ΔNLL")


def small(name: str, seed: int) -> Subject:
    """A small model with random weights and random ids; both depend on the seed.

    Its error is 1 − cosine of a sample's output, mean over samples, of the worst output.
    """
    from tests.models import SMALL_VOCABULARY

    model = models.small(name, seed)
    inputs = [spec.name for spec in input_specs(prepare(model, Selection()).runnable)]
    generator = np.random.default_rng([seed, 1])

    def feeds() -> Feeds:
        found = []
        for _ in range(SMALL_SAMPLES):
            ids = generator.integers(0, SMALL_VOCABULARY, (1, SMALL_TOKENS), np.int64)
            known = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
            }
            found.append({name: known[name] for name in inputs})
        return found

    calibration, held_out = feeds(), feeds()
    reference = _outputs(model, held_out)

    def error(other: Path) -> float:
        pairs = zip(reference, _outputs(other, held_out), strict=True)
        apart = [
            [1 - _cosine(a, b) for a, b in zip(exact, actual, strict=True)]
            for exact, actual in pairs
        ]
        return float(np.mean(apart, axis=0).max())

    return subject(name, model, calibration, error, "1 − cosine")


def subject(
    title: str, model: Path, feeds: Feeds, error: Callable[[Path], float], figure: str
) -> Subject:
    """A model with feeds to calibrate it; see `Subject`."""
    prepared = prepare(model, Selection())
    data = open_data(feeds, input_specs(prepared.runnable), DataOptions(samples=None))
    data = dataclasses.replace(data, count=len(feeds))
    run = Run(prepared, Inputs(data, None, disjoint=True), TARGET, execution_of(prepared))
    return Subject(title, run, error, figure, WeightInputs(run, Weights.GPTQ))


def stats(measured: Subject, ratios: Sequence[float]) -> ActivationStats:
    """Calibration statistics, with the shares of values above some thresholds."""
    return calibrated(measured.run, measured.data, tuple(ratios))[0]


def error_of(measured: Subject, plan: QuantPlan, weights: Weights) -> float:
    """The error of the model that a plan makes."""
    return measured.error(compiled(measured, plan, weights))


def both_errors(measured: Subject, plan: QuantPlan) -> tuple[float, float]:
    """The error with weights rounded to nearest, and with error feedback."""
    return error_of(measured, plan, Weights.NEAREST), error_of(measured, plan, Weights.GPTQ)


def compiled(measured: Subject, plan: QuantPlan, weights: Weights) -> Path:
    """The model compiled by a plan; the next one of the same subject overwrites it.

    Args:
        measured: the model.
        plan: its plan.
        weights: how its weights become codes.
    """
    folder = models.WORK / "policy" / measured.prepared.source.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    decided = tuple(zip(measured.prepared.groups, plan.groups, strict=True))
    inputs = measured.inputs if weights is Weights.GPTQ else no_inputs
    return write_trial(measured.prepared, decided, folder, inputs)


def _outputs(model: Path, feeds: Feeds) -> list[list[npt.NDArray[np.float64]]]:
    """Per feed, every output as float64[elements]."""
    session = open_session(model, model.parent, Purpose.DEPLOYMENT)
    return [[out.astype(np.float64).ravel() for out in session.run(None, feed)] for feed in feeds]


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
