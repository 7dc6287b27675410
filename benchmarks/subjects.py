"""What formats and policies are measured on: a real model, its calibration inputs, its errors.

MiniLM, a sentence encoder: 1 − cosine similarity of the compiled model's output to the original's,
mean over paragraphs, of all token vectors of a paragraph as one ("tokens") and of the mean-pooled
sentence embedding ("embedding"). The paragraphs are those of WikiText-2's validation text where
../shared/data is at hand, else docstrings of Python's standard library (examples/minilm).
Calibration sees 32 paragraphs of the first articles, the measurement is made on 96 of later ones.

BabyLlama, a language model of characters: the difference of the mean negative log likelihood
(ΔNLL, nats per character) and perplexity on the three quarters of a TinyStories excerpt that
calibration has not seen. Needs ../shared/data.

All models run in ONNX Runtime on the CPU, weights and activations quantized.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import models
from mmcompile.calib.stats import ActivationStats
from mmcompile.data.dataset import CalibrationData, open_data
from mmcompile.data.options import DataOptions
from mmcompile.data.text import load_tokenizer
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

Feeds = list[dict[str, npt.NDArray[np.int64]]]
Figures = dict[str, float]
F64 = npt.NDArray[np.float64]
CALIBRATION_PARAGRAPHS = 32
PARAGRAPH_CHARACTERS = 200
"""Paragraphs of WikiText shorter than this are left out."""
TARGET = parse_target("sm_120")
"""What plans are made for, and priced on."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with the inputs that it is calibrated and measured on.

    Attributes:
        title: what it is, for the table.
        run: the model, with its calibration data.
        figures: figures of a compiled model on other inputs, by name; the first is its error.
        figure: the name of the error.
        inputs: sampled inputs of the layers, for error feedback.
    """

    title: str
    run: Run
    figures: Callable[[Path], Figures]
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

    def error(self, model: Path) -> float:
        """The error of a compiled model."""
        return self.figures(model)[self.figure]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose models and texts."""
    parser.add_argument("--only", choices=["minilm", "babyllama"])
    parser.add_argument("--text", type=Path, help="tokenized WikiText, one paragraph per line")
    parser.add_argument("--paragraphs", type=int, default=96, help="to measure on")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per paragraph")
    parser.add_argument("--minilm", type=Path, help="folder of examples/minilm/prepare.py")
    parser.add_argument("--babyllama", type=Path, help="folder of examples/babyllama/export.py")


def chosen(arguments: argparse.Namespace) -> Iterator[Subject]:
    """The models that were asked for and are at hand."""
    if arguments.only != "babyllama":
        yield minilm(arguments)
    if arguments.only != "minilm":
        folder = models.babyllama(arguments.babyllama)
        if folder is None:
            print("BabyLlama is left out: its files are not in ../shared/data")
        else:
            yield babyllama(folder)


def minilm(arguments: argparse.Namespace, model: Path | None = None) -> Subject:
    """MiniLM with paragraphs of text.

    Args:
        arguments: the options of `add_arguments`.
        model: the file to take instead of the example's; same inputs and outputs.
    """
    folder = models.minilm(arguments.minilm)
    model = model or folder / models.MODEL_FILE
    calibration, held_out, description = paragraphs(folder, arguments)
    reference = _hidden_states(model, held_out)

    def figures(other: Path) -> Figures:
        pairs = list(zip(reference, _hidden_states(other, held_out), strict=True))
        return {
            "1 − cosine": float(np.mean([distance(a.ravel(), b.ravel()) for a, b in pairs])),
            "embedding: 1 − cosine": float(
                np.mean([distance(a.mean(axis=0), b.mean(axis=0)) for a, b in pairs])
            ),
        }

    return subject(f"MiniLM, {description}", model, calibration, figures, "1 − cosine")


def babyllama(folder: Path) -> Subject:
    """BabyLlama with rows of a story."""
    seen, held_out = (
        np.load(folder / f"{name}.npz")["input_ids"] for name in ("calibration", "heldout")
    )
    model = folder / models.MODEL_FILE
    exact = negative_log_likelihood(model, held_out)

    def figures(other: Path) -> Figures:
        loss = negative_log_likelihood(other, held_out)
        return {"ΔNLL": loss - exact, "perplexity": float(np.exp(loss))}

    calibration: Feeds = [{"input_ids": row[None, :-1]} for row in seen]
    title = f"BabyLlama, {len(seen)} rows to calibrate, {len(held_out)} others to measure"
    return subject(title, model, calibration, figures, "ΔNLL")


def subject(
    title: str, model: Path, feeds: Feeds, figures: Callable[[Path], Figures], figure: str
) -> Subject:
    """A model with feeds to calibrate it; see `Subject`."""
    prepared = prepare(model, Selection())
    data = open_data(feeds, input_specs(prepared.runnable), DataOptions(samples=None))
    data = dataclasses.replace(data, count=len(feeds))
    run = Run(prepared, Inputs(data, None, disjoint=True), TARGET, execution_of(prepared))
    return Subject(title, run, figures, figure, WeightInputs(run, Weights.GPTQ))


def paragraphs(folder: Path, arguments: argparse.Namespace) -> tuple[Feeds, Feeds, str]:
    """Calibration and evaluation paragraphs, from different articles or modules."""
    text = arguments.text or (models.WIKITEXT if models.WIKITEXT.is_file() else None)
    if text is not None:
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
        prose = [line for line in lines if len(line) >= PARAGRAPH_CHARACTERS and line[0] != "="]
        # The text is article after article: spread over its first quarter, and over the rest.
        border = len(prose) // 4
        seen = _spread(prose[:border], CALIBRATION_PARAGRAPHS)
        unseen = _spread(prose[border:], arguments.paragraphs)
        origin = "WikiText-2"
    else:
        seen, unseen = (
            _spread((folder / name).read_text(encoding="utf-8").splitlines(), count)
            for name, count in (
                ("calibration.txt", CALIBRATION_PARAGRAPHS),
                ("heldout.txt", arguments.paragraphs),
            )
        )
        origin = "standard library docstrings"
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(arguments.max_length)

    def feeds(texts: list[str]) -> Feeds:
        found = []
        for line in texts:
            ids = np.array([tokenizer.encode(line).ids], np.int64)
            zeros = np.zeros_like(ids)
            found.append({"input_ids": ids, "attention_mask": zeros + 1, "token_type_ids": zeros})
        return found

    description = (
        f"{origin}: {len(seen)} paragraphs to calibrate, {len(unseen)} others to measure, "
        f"at most {arguments.max_length} tokens"
    )
    return feeds(seen), feeds(unseen), description


def distance(a: F64, b: F64) -> float:
    """1 − cosine similarity of two vectors."""
    return 1 - float(a @ b / np.sqrt((a @ a) * (b @ b)))


def negative_log_likelihood(model: Path, input_ids: npt.NDArray[np.int64]) -> float:
    """Mean over all ids after each row's first, in nats."""
    session = open_session(model, model.parent, Purpose.DEPLOYMENT)
    total = 0.0
    for rows in np.array_split(input_ids, max(1, len(input_ids) // 16)):
        logits = session.run(None, {"input_ids": rows[:, :-1]})[0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        picked = np.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
        total += float((np.log(np.exp(logits).sum(axis=-1)) - picked).sum())
    return total / input_ids[:, 1:].size


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
    """The model compiled by a plan; the next one of the same subject overwrites it."""
    folder = models.WORK / "compiled" / measured.prepared.source.folder.name
    folder.mkdir(parents=True, exist_ok=True)
    decided = tuple(zip(measured.prepared.groups, plan.groups, strict=True))
    inputs = measured.inputs if weights is Weights.GPTQ else no_inputs
    return write_trial(measured.prepared, decided, folder, inputs)


def _hidden_states(model: Path, feeds: Feeds) -> list[F64]:
    """The last hidden state of each feed, float64[tokens, channels]."""
    session = open_session(model, model.parent, Purpose.DEPLOYMENT)
    output = ["last_hidden_state"]
    return [session.run(output, feed)[0][0].astype(np.float64) for feed in feeds]


def _spread(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, evenly spread."""
    return texts[:: max(1, len(texts) // count)][:count]
