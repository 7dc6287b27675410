"""What quantization costs in accuracy on two real models, format by format and policy by policy.

    python -m benchmarks.accuracy [--text FILE] [--only minilm|babyllama]
    python -m benchmarks.accuracy --table    the stock baselines beside uniform formats and MicroMix

MiniLM, a sentence encoder: cosine similarity of the compiled model's output to the original's,
per paragraph over all token vectors ("tokens") and of the mean-pooled sentence embedding
("embedding"). The paragraphs are those of WikiText-2's validation text where ../shared/data is at
hand, else docstrings of Python's standard library (examples/minilm). Calibration sees 32
paragraphs of the first articles, the measurement is made on 96 paragraphs of later ones.

BabyLlama, a language model of characters: perplexity and the difference of the mean negative log
likelihood (ΔNLL, nats per character) on the three quarters of a TinyStories excerpt that
calibration has not seen. Needs ../shared/data.

Both models run in ONNX Runtime on the CPU, weights and activations quantized. "bits" are of the
weights, block scales and padding included; "element bits" are without the scales.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import models
from benchmarks.measure import environment
from benchmarks.tables import command_line, show
from mmcompile.data.text import load_tokenizer
from mmcompile.model.session import Purpose, open_session
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.options import CompileOptions, CompileResult, DataOptions, VerifyOptions
from mmcompile.plan import QuantPlan
from mmcompile.policy.options import MICROMIX, Policy
from mmcompile.policy.order import Order
from mmcompile.policy.split import Thresholds

Feeds = list[dict[str, npt.NDArray[np.int64]]]
CALIBRATION_PARAGRAPHS = 32
PARAGRAPH_CHARACTERS = 200
"""Paragraphs of WikiText shorter than this are left out."""
UNIFORM = ("mxfp8", "mxfp6_e2m3", "mxfp6_e3m2", "nvfp4", "mxfp4")
LEAST = {"mxfp8": 0.992, "mxfp6_e2m3": 0.992, "mxfp6_e3m2": 0.982}
"""Mean cosine similarity of the sentence embedding that must be reached."""


@dataclass(frozen=True)
class Case:
    """A policy under the name that the table shows."""

    name: str
    policy: Policy


@dataclass(frozen=True)
class Similarity:
    """Cosine similarities per paragraph."""

    tokens: npt.NDArray[np.float64]
    embedding: npt.NDArray[np.float64]


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--text", type=Path, help="tokenized WikiText, one paragraph per line")
    parser.add_argument("--paragraphs", type=int, default=96, help="to measure on")
    parser.add_argument("--max-length", type=int, default=128, help="tokens per paragraph")
    parser.add_argument("--minilm", type=Path, help="folder of examples/minilm/prepare.py")
    parser.add_argument("--babyllama", type=Path, help="folder of examples/babyllama/export.py")
    parser.add_argument("--only", choices=["minilm", "babyllama"])
    parser.add_argument(
        "--table", action="store_true", help="stock baselines, uniform formats and MicroMix only"
    )
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    tables = (measure_minilm, measure_babyllama)
    if arguments.table:
        from benchmarks import baseline_table

        tables = (baseline_table.minilm_table, baseline_table.babyllama_table)
    if arguments.only != "babyllama":
        tables[0](arguments)
    if arguments.only != "minilm":
        tables[1](arguments)


def cases() -> Iterator[Case]:
    """What is compared: formats, MicroMix in its settings, channel orders, scale rules."""
    for name in UNIFORM:
        yield Case(name, Policy(name))
    yield from micromix_cases()
    for order in (Order.RANDOM, Order.REVERSED):
        yield Case(f"micromix, {order} order", Policy(MICROMIX, order=order))
    for rule in ("ocp", "saturation_free"):
        for name in ("mxfp8", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "micromix"):
            yield Case(f"{name}, {rule}", Policy(name, scale_rule=rule))


def micromix_cases() -> Iterator[Case]:
    """MicroMix in its settings."""
    yield Case("micromix (code, 128)", Policy(MICROMIX))
    yield Case("micromix (code, 64)", Policy(MICROMIX, granularity=64))
    yield Case("micromix (code, 32)", Policy(MICROMIX, granularity=32))
    yield Case("micromix (paper, 128)", Policy(MICROMIX, thresholds=Thresholds.PAPER))
    yield Case("micromix (code, λ 1.5, 32)", Policy(MICROMIX, granularity=32, factor=1.5))


def measure_minilm(arguments: argparse.Namespace) -> None:
    """Prints the table of MiniLM."""
    folder = models.minilm(arguments.minilm)
    calibration, held_out, description = paragraphs(folder, arguments)
    reference = run_all(folder / "model.onnx", held_out, "last_hidden_state")
    rows = []
    for case in cases():
        result = compiled(folder / "model.onnx", case.policy, calibration)
        assert result.model is not None
        found = similarity(reference, run_all(result.model, held_out, "last_hidden_state"))
        least = LEAST.get(case.name, 0.0)
        if found.embedding.mean() < least:
            raise SystemExit(f"{case.name}: {found.embedding.mean():.4f} is below {least}")
        rows.append([case.name, *_bits(result.plan), *_cosines(found)])
    columns = ["policy", "bits", "element bits", "act bits"]
    for what in ("embedding", "tokens"):
        columns += [f"{what}: cosine", "least", "1 − cosine"]
    show(f"MiniLM, {description}", columns, rows, markdown=arguments.markdown)


def measure_babyllama(arguments: argparse.Namespace) -> None:
    """Prints the table of BabyLlama."""
    folder = models.babyllama(arguments.babyllama)
    if folder is None:
        print("BabyLlama is left out: its files are not in ../shared/data")
        return
    calibration, held_out = (
        np.load(folder / f"{name}.npz")["input_ids"] for name in ("calibration", "heldout")
    )
    exact = negative_log_likelihood(folder / "model.onnx", held_out)
    everything = np.concatenate([calibration, held_out])
    whole = negative_log_likelihood(folder / "model.onnx", everything)
    rows = [["fp32", "32.00", "32.00", "32.00", f"{np.exp(exact):.3f}", "0"]]
    feeds = [{"input_ids": row[None, :-1]} for row in calibration]
    for case in (*(Case(name, Policy(name)) for name in UNIFORM), *micromix_cases()):
        result = compiled(folder / "model.onnx", case.policy, feeds)
        assert result.model is not None
        loss = negative_log_likelihood(result.model, held_out)
        figures = [f"{np.exp(loss):.3f}", f"{loss - exact:+.4f}"]
        rows.append([case.name, *_bits(result.plan), *figures])
    title = (
        f"BabyLlama, {held_out.shape[0]} rows of {held_out.shape[1] - 1} characters; "
        f"fp32 on the whole excerpt: {np.exp(whole):.3f}"
    )
    columns = ["policy", "bits", "element bits", "act bits", "perplexity", "ΔNLL"]
    show(title, columns, rows, markdown=arguments.markdown)


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


def compiled(model: Path, policy: Policy, calibration: Feeds) -> CompileResult:
    """The model compiled under a policy; nothing is held back, as other data measures it."""
    options = CompileOptions(
        output=models.WORK / "accuracy",
        data=DataOptions(calibration=calibration, verification=calibration[:1], samples=None),
        policy=policy,
        verify=VerifyOptions(enabled=False),
        html=False,
    )
    return compile_model(model, options)


def run_all(model: Path, feeds: Feeds, output: str) -> list[npt.NDArray[np.float64]]:
    """The output of each feed, float64[tokens, channels]."""
    session = open_session(model, model.parent, Purpose.DEPLOYMENT)
    return [session.run([output], feed)[0][0].astype(np.float64) for feed in feeds]


def similarity(
    reference: list[npt.NDArray[np.float64]], actual: list[npt.NDArray[np.float64]]
) -> Similarity:
    """Cosine similarity of every paragraph."""
    pairs = list(zip(reference, actual, strict=True))
    tokens = [_cosine(a.ravel(), b.ravel()) for a, b in pairs]
    embedding = [_cosine(a.mean(axis=0), b.mean(axis=0)) for a, b in pairs]
    return Similarity(np.array(tokens), np.array(embedding))


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


def element_bits(plan: QuantPlan) -> float:
    """Mean bits of the weights' codes, padding included."""
    weights = sum(group.in_channels * sum(group.out_channels) for group in plan.groups)
    codes = sum(group.row_bytes * sum(group.out_channels) for group in plan.groups)
    return 8 * codes / weights


def act_bits(plan: QuantPlan) -> float:
    """Mean bits of an activation channel over all groups' inputs, scales included."""
    channels = sum(group.in_channels for group in plan.groups)
    return sum(group.act_bits() * group.in_channels for group in plan.groups) / channels


def _bits(plan: QuantPlan) -> list[str]:
    bits = (plan.mean_weight_bits(), element_bits(plan), act_bits(plan))
    return [f"{value:.2f}" for value in bits]


def _cosines(found: Similarity) -> list[str]:
    cells = []
    for values in (found.embedding, found.tokens):
        mean = float(values.mean())
        cells += [f"{mean:.4f}", f"{values.min():.4f}", f"{1 - mean:.4f}"]
    return cells


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _spread(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, evenly spread."""
    return texts[:: max(1, len(texts) // count)][:count]


if __name__ == "__main__":
    main()
