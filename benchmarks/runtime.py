"""What the rewritten model costs in ONNX Runtime on the CPU, where the nodes run as functions.

    python -m benchmarks.runtime [--minilm FOLDER] [--rounds 15]

Emulating quantization on a CPU is slower than the float model; this measures by how much, since
verification runs both. Latency: the original and the compiled MiniLM take turns, a ratio is the
median over the turns. Loading: each in a process of its own, the seconds until a session is open,
and the memory that the process holds with it, after one run and at its peak.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from benchmarks import models
from benchmarks.measure import (
    MIB,
    ProcessFigures,
    environment,
    interleaved,
    median_ratio,
    process_memory,
    run_process,
)
from benchmarks.tables import command_line, show
from mmcompile.data.options import DataOptions
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.policy.registry import make_policy

GOAL = 2.0
"""The compiled model is to take at most this many times the original's time."""
POINTS = ((1, 16), (1, 64), (1, 128), (8, 64), (8, 128), (32, 128))
"""Batch and sequence lengths."""
POLICIES = ("micromix", "mxfp8", "nvfp4")


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--minilm", type=Path, help="folder of examples/minilm/prepare.py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--load-rounds", type=int, default=5)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        report_load(arguments.load)
        return
    models.use_work_folder()
    print(environment())
    folder = models.minilm(arguments.minilm)
    found = {"original": folder / models.MODEL_FILE}
    for policy in POLICIES:
        found[policy] = compiled(folder, policy)
    _show_latency(found, arguments.rounds, arguments.markdown)
    _show_loading(found, arguments.load_rounds, arguments.markdown)


def compiled(folder: Path, policy: str) -> Path:
    """MiniLM compiled under a policy."""
    options = CompileOptions(
        output=models.WORK / "runtime" / policy,
        data=DataOptions(
            calibration=folder / "calibration.txt",
            tokenizer=folder / "tokenizer.json",
            samples=32,
            max_length=128,
        ),
        policy=make_policy(policy),
        verify=VerifyOptions(enabled=False),
        html=False,
    )
    result = compile_model(folder / models.MODEL_FILE, options)
    assert result.model is not None
    return result.model


def feed(batch: int, length: int) -> dict[str, npt.NDArray[np.int64]]:
    """Random tokens, nothing masked."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length), np.int64)
    zeros = np.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": zeros + 1, "token_type_ids": zeros}


def open_model(model: Path) -> ort.InferenceSession:
    """A session with the runtime's defaults."""
    return ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])


def report_load(model: Path) -> None:
    """Loads a model and prints as JSON how long that took and the memory before and after."""
    before = process_memory()["VmRSS"]
    start = time.perf_counter()
    session = open_model(model)
    seconds = time.perf_counter() - start
    loaded = process_memory()["VmRSS"]
    session.run(None, feed(1, 64))
    found = {
        "seconds": seconds,
        "session_bytes": loaded - before,
        "after_run_bytes": process_memory()["VmRSS"] - before,
    }
    print(json.dumps(found))


def _show_latency(found: dict[str, Path], rounds: int, markdown: bool) -> None:
    sessions = {name: open_model(path) for name, path in found.items()}
    rows = []
    for batch, length in POINTS:
        inputs = feed(batch, length)
        times = interleaved(
            {
                name: functools.partial(session.run, None, inputs)
                for name, session in sessions.items()
            },
            rounds,
            warm_up=2,
        )
        cells = [f"{batch} × {length}", f"{1e3 * times['original'].median:.1f}"]
        for name in list(found)[1:]:
            cells += [
                f"{1e3 * times[name].median:.1f}",
                f"{median_ratio(times[name], times['original']):.2f}×",
            ]
        rows.append(cells)
    columns = ["batch × tokens", "original ms"]
    for name in list(found)[1:]:
        columns += [f"{name} ms", "ratio"]
    title = f"Latency in ONNX Runtime, medians of {rounds} rounds; goal {GOAL}×"
    show(title, columns, rows, markdown=markdown)


def _show_loading(found: dict[str, Path], rounds: int, markdown: bool) -> None:
    runs: dict[str, list[tuple[ProcessFigures, dict[str, float]]]] = {}
    for _ in range(rounds):
        for name, path in found.items():
            figures = run_process(
                [sys.executable, "-m", "benchmarks.runtime", "--load", path],
                {"PYTHONPATH": str(models.ROOT)},
            )
            runs.setdefault(name, []).append((figures, json.loads(figures.output)))
    rows = []
    for name, measured in runs.items():
        medians = {
            key: statistics.median(values[key] for _, values in measured) for key in measured[0][1]
        }
        peak = statistics.median(figures.peak for figures, _ in measured)
        rows.append(
            [
                name,
                f"{models.weight_bytes(found[name]) / MIB:.1f}",
                f"{medians['seconds']:.2f}",
                f"{medians['session_bytes'] / MIB:.0f}",
                f"{medians['after_run_bytes'] / MIB:.0f}",
                f"{peak / MIB:.0f}",
            ]
        )
    columns = ["model", "files MiB", "load s", "session MiB", "after a run MiB", "peak MiB"]
    show(f"Loading, medians of {rounds} processes", columns, rows, markdown=markdown)


if __name__ == "__main__":
    main()
