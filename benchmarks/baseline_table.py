"""One table of all variants of a model: stock baselines, uniform formats, MicroMix.

    python -m benchmarks.accuracy --table

Baselines are the graphs of docs/baselines.md; they share calibration statistics, the choice of
linears and the measurement with MicroMix. All of them run in ONNX Runtime on the CPU. "MB" is the
size of model.onnx and model.onnx.data, embeddings included, which baselines keep in float16 and
MicroMix keeps as they were; "bits" are those of the linears' weights, block scales included.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import accuracy, models
from benchmarks.tables import show
from mmcompile.model.passes.baselines import write_baseline
from mmcompile.model.passes.find_linears import Selection
from mmcompile.pipeline.calibrate import calibrated, open_inputs
from mmcompile.pipeline.options import DataOptions
from mmcompile.pipeline.prepare import prepare
from mmcompile.policy.options import MICROMIX, Policy
from mmcompile.policy.split import Thresholds
from mmcompile.progress import Silent

BASELINES = (
    ("FP16 baseline", "fp16", False),
    ("FP8 baseline", "fp8", False),
    ("FP8 baseline, weights per channel", "fp8", True),
    ("MXFP8 baseline (TRT operators)", "mxfp8", False),
    ("NVFP4 baseline (TRT operators)", "nvfp4", False),
)
POLICIES = (
    *((f"uniform {name}", Policy(name)) for name in accuracy.UNIFORM),
    ("MicroMix, thresholds `code`", Policy(MICROMIX, thresholds=Thresholds.CODE)),
    ("MicroMix, thresholds `paper`", Policy(MICROMIX, thresholds=Thresholds.PAPER)),
)


@dataclass(frozen=True)
class Variant:
    """A variant of a model on disk.

    Attributes:
        name: what the table calls it.
        model: the file to run.
        bits: mean bits of a linear's weight.
        size: bytes of the model.
    """

    name: str
    model: Path
    bits: float
    size: int


def variants(model: Path, calibration: accuracy.Feeds) -> Iterator[Variant]:
    """The original, all baselines and all policies; each is overwritten by the next."""
    data = DataOptions(calibration=calibration, verification=calibration[:1], samples=None)
    prepared = prepare(model, Selection())
    yield Variant("float32, the original", model, 32.0, prepared.source.size_bytes)
    inputs = open_inputs(prepared, data)
    stats, _ = calibrated(prepared, inputs.calibration, (), 0, Silent())
    amax = {name: float(tensor.abs_max.max()) for name, tensor in stats.tensors.items()}
    folder = models.WORK / "baseline"
    for name, kind, per_channel in BASELINES:
        made = write_baseline(
            kind, prepared.source, prepared.groups, amax, folder, per_channel=per_channel
        )
        if made.left_alone:
            print(f"{name}: {len(made.left_alone)} linears left in float16")
        yield Variant(name, made.runnable, made.weight_bits, made.bytes)
    for name, policy in POLICIES:
        result = accuracy.compiled(model, policy, calibration)
        assert result.model is not None
        files = [result.model, result.model.with_name("model.onnx.data")]
        size = sum(file.stat().st_size for file in files)
        yield Variant(name, result.model, result.plan.mean_weight_bits(), size)


def minilm_table(arguments: argparse.Namespace) -> None:
    """Prints MiniLM's table."""
    folder = models.minilm(arguments.minilm)
    calibration, held_out, description = accuracy.paragraphs(folder, arguments)
    reference = accuracy.run_all(folder / "model.onnx", held_out, "last_hidden_state")
    rows = []
    for variant in variants(folder / "model.onnx", calibration):
        outputs = accuracy.run_all(variant.model, held_out, "last_hidden_state")
        found = accuracy.similarity(reference, outputs)
        means = [float(values.mean()) for values in (found.embedding, found.tokens)]
        cells = [cell for mean in means for cell in (f"{mean:.5f}", f"{1 - mean:.5f}")]
        rows.append([variant.name, f"{variant.bits:.2f}", _megabytes(variant), *cells])
    columns = ["variant", "bits", "MB", "embedding: cosine", "1 − cosine"]
    columns += ["tokens: cosine", "1 − cosine"]
    show(f"MiniLM, {description}", columns, rows, markdown=arguments.markdown)


def babyllama_table(arguments: argparse.Namespace) -> None:
    """Prints BabyLlama's table."""
    folder = models.babyllama(arguments.babyllama)
    if folder is None:
        print("BabyLlama is left out: its files are not in ../shared/data")
        return
    calibration, held_out = (
        np.load(folder / f"{name}.npz")["input_ids"] for name in ("calibration", "heldout")
    )
    feeds = [{"input_ids": row[None, :-1]} for row in calibration]
    exact = accuracy.negative_log_likelihood(folder / "model.onnx", held_out)
    rows = []
    for variant in variants(folder / "model.onnx", feeds):
        loss = accuracy.negative_log_likelihood(variant.model, held_out)
        cells = [f"{np.exp(loss):.3f}", f"{loss - exact:+.4f}"]
        rows.append([variant.name, f"{variant.bits:.2f}", _megabytes(variant), *cells])
    title = f"BabyLlama, {held_out.shape[0]} rows of {held_out.shape[1] - 1} characters"
    columns = ["variant", "bits", "MB", "perplexity", "ΔNLL"]
    show(title, columns, rows, markdown=arguments.markdown)


def _megabytes(variant: Variant) -> str:
    return f"{variant.size / 1e6:.2f}"
