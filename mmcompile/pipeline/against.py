"""An engine against the compiled and the original model, on the GPU that the engine is for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.data.options import DataOptions
from mmcompile.errors import UsageError
from mmcompile.model.selection import Selection
from mmcompile.model.source import SourceModel, load_model
from mmcompile.pipeline.delivery import build_with_outputs
from mmcompile.pipeline.options import VerifyOptions
from mmcompile.pipeline.prepare import prepare
from mmcompile.pipeline.run import open_inputs
from mmcompile.pipeline.verification import (
    Found,
    check_demands,
    check_interface,
    layer_specs,
    logit_outputs,
    misses,
    summarize,
    take_samples,
)
from mmcompile.progress import Progress, Silent
from mmcompile.report.model import VerificationReport
from mmcompile.runtime import Engine
from mmcompile.verification.metrics import Agreement
from mmcompile.verification.outputs import LayerSpec, run_marked
from mmcompile.verification.runnable import runnable

Sample = Mapping[str, npt.NDArray[np.generic]]


def verify_engine(
    original: Path,
    compiled: Path,
    engine: Path,
    data: DataOptions,
    options: VerifyOptions,
    progress: Progress,
) -> tuple[VerificationReport, VerificationReport]:
    """Runs an engine, the compiled model and the original on the same inputs.

    Args:
        original: the ONNX model that was compiled.
        compiled: the compiled ONNX model.
        engine: its engine, with what lies beside it.
        data: `data.verification` names the inputs.
        options: `layers` also builds an engine that gives out every layer's output.
        progress: told after every sample.

    Returns:
        The engine against the compiled model, which tells whether the kernels are right, and
        against the original, which tells what quantization costs.

    Raises:
        EnvironmentProblem: no TensorRT, no GPU, or not those that the engine was built with.
        UsageError: there are no inputs, or the models do not belong together.
    """
    loaded = Engine(engine)
    prepared = prepare(original, Selection(heads=True))
    target = load_model(compiled)
    check_interface(prepared.source, target)
    inputs = open_inputs(prepared, data)
    check_demands(prepared, inputs.held_back, options)
    if prepared.is_bfloat16 or inputs.held_back is None:
        reason = "the original takes or gives bfloat16, which numpy has not"
        if not prepared.is_bfloat16:
            reason = "there are no inputs"
        remedy = "give --data, and models in float32 or float16"
        raise UsageError("engine-not-compared", "--against", reason, remedy)
    samples = take_samples(prepared, inputs.held_back, options.samples)
    logits = logit_outputs(prepared.source, options)
    names = [spec.name for spec in loaded.interface.outputs]
    answers = [loaded(sample) for sample in progress.track(samples, "running the engine")]
    layers = layer_specs(prepared, target) if options.layers else []
    inner = _inner_answers(engine.parent, layers, samples, loaded.meta.backend)
    where = f"{loaded.meta.builder} on {loaded.meta.gpu}"
    reports = []
    compared = runnable(target, rounded=True)
    for source, title in ((compared, "compiled"), (prepared.source, "original")):
        outputs = _agreement(source, names, samples, answers, logits, progress)
        tensors = _agreement(source, [x.tensor for x in layers], samples, inner, logits, Silent())
        found = Found(
            inputs.held_back.description,
            [f"the engine against the {title} model in ONNX Runtime"],
            len(samples),
            outputs,
            {layer.name: tensors[layer.tensor] for layer in layers},
        )
        report = summarize(prepared, options, found, passed=not misses(outputs, options.fail_below))
        reports.append(msgspec.structs.replace(report, measured_on=where))
    return reports[0], reports[1]


def _inner_answers(
    folder: Path, layers: Sequence[LayerSpec], samples: Sequence[Sample], backend: str
) -> list[dict[str, npt.NDArray[np.generic]]]:
    """The layers' outputs inside an engine built to give them out."""
    if not layers:
        return [{} for _ in samples]
    with tempfile.TemporaryDirectory() as scratch:
        tensors = tuple(layer.tensor for layer in layers)
        _, file = build_with_outputs(folder, tensors, Path(scratch), backend)
        probe = Engine(file)
        return [probe(sample) for sample in samples]


def _agreement(
    source: SourceModel,
    tensors: Sequence[str],
    samples: Sequence[Sample],
    answers: Sequence[Mapping[str, npt.NDArray[np.generic]]],
    logits: frozenset[str],
    progress: Progress,
) -> dict[str, Agreement]:
    """Agreement of the engine's tensors with those of a model in ONNX Runtime."""
    found = {name: Agreement() for name in tensors}
    if found:
        expected = run_marked(source, list(tensors), samples, progress)
        for reference, actual in zip(expected, answers, strict=True):
            for name, agreement in found.items():
                if name in actual:  # layers may answer in another type than they had
                    value = actual[name].astype(reference[name].dtype)
                    agreement.add(reference[name], value, logits=name in logits)
                else:
                    agreement.mismatch = "the engine does not give it out"
    return found
