"""Original against compiled model, output by output and layer by layer, with polygraphy's runners.

Samples run one at a time, and only sums are kept. Layers keep the names of their output tensors
in the compiled model, so that they are compared by name; they are marked as outputs in portions
that fit a bound on memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from mmcompile.errors import UsageError
from mmcompile.model.session import first_line, open_session
from mmcompile.model.source import SourceModel
from mmcompile.progress import Progress, Silent
from mmcompile.verification.metrics import Agreement
from mmcompile.verification.unpacked import open_compiled

Sample = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
LAYER_BYTES = 256 << 20
"""Bound on the bytes of layer outputs that are in memory at a time."""
KEPT_BYTES = 256 << 20
"""Bound on the bytes of the original's outputs that wait for the compiled model."""


@dataclass(frozen=True)
class LayerSpec:
    """A layer to compare: its name, its output tensor and the tensor's last dimension."""

    name: str
    tensor: str
    channels: int


def compare_outputs(
    original: SourceModel,
    others: Sequence[SourceModel],
    samples: Sequence[Sample],
    logits: frozenset[str],
    progress: Progress,
) -> list[dict[str, Agreement]]:
    """Agreement of every model output over all samples, by output name, for every other model.

    The models run one after the other, so that only one is in memory; the original's outputs are
    kept for as many samples as `KEPT_BYTES` allows.

    Args:
        original: the model as the user gave it, or a version of it that this machine can run.
        others: compiled models, and other versions of the original.
        samples: held-back inputs.
        logits: names of the outputs that are logits.
        progress: told after every sample.
    """
    found: list[dict[str, Agreement]] = [{} for _ in others]
    done = 0
    while done < len(samples):
        rest = samples[done:]
        session = open_session(original.proto, original.folder)
        expected = _while_kept(_run(session, rest, progress, "running original"))
        del session
        for agreements, other in zip(found, others, strict=True):
            session = open_compiled(other, other.proto)
            outputs = _run(session, rest[: len(expected)], progress, "running")
            for reference, actual in zip(expected, outputs, strict=True):
                _add(agreements, reference, actual, logits)
            del session, outputs
        done += len(expected)
    return found


def compare_layers(
    original: SourceModel,
    compiled: SourceModel,
    layers: Sequence[LayerSpec],
    samples: Sequence[Sample],
    progress: Progress,
) -> dict[str, Agreement]:
    """Agreement of every layer's output within the whole model, in graph order, by layer name.

    A layer may answer in another type than it had, which is no disagreement.
    """
    found: dict[str, Agreement] = {}
    tokens = max((_tokens(sample) for sample in samples), default=1)
    for portion in _portions(layers, tokens):
        tensors = [layer.tensor for layer in portion]
        first = open_session(_marked(original.proto, tensors), original.folder)
        second = open_compiled(compiled, _marked(compiled.proto, tensors))
        title = f"comparing layers from {portion[0].name}"
        pairs = zip(
            _run(first, samples, Silent(), title),
            _run(second, samples, progress, title),
            strict=True,
        )
        for expected, actual in pairs:
            for layer in portion:
                agreement = found.setdefault(layer.name, Agreement())
                reference = expected[layer.tensor]
                agreement.add(reference, actual[layer.tensor].astype(reference.dtype))
    return found


def run_marked(
    model: SourceModel, tensors: Sequence[str], samples: Iterable[Sample], progress: Progress
) -> Iterator[Outputs]:
    """Values of the named tensors of an original or compiled model, sample by sample."""
    session = open_compiled(model, _marked(model.proto, tensors))
    return _run(session, samples, progress, f"running {model.path.name}")


def first_below(layers: Mapping[str, Agreement], cosine: float) -> str | None:
    """The first layer in graph order whose cosine similarity is below a bound or undefined."""
    for name, agreement in layers.items():
        if math.isnan(agreement.cosine_mean) or agreement.cosine_mean < cosine:
            return name
    return None


def _add(
    found: dict[str, Agreement], reference: Outputs, actual: Outputs, logits: frozenset[str]
) -> None:
    for name, value in reference.items():
        agreement = found.setdefault(name, Agreement())
        if name in actual:
            agreement.add(value, actual[name], logits=name in logits)
        else:
            agreement.mismatch = "missing from the compiled model"


def _while_kept(outputs: Iterator[Outputs]) -> list[Outputs]:
    """The first outputs, at least one, whose bytes stay within `KEPT_BYTES`."""
    kept: list[Outputs] = []
    size = 0
    for output in outputs:
        kept.append(output)
        size += sum(value.nbytes for value in output.values())
        if size > KEPT_BYTES:
            break
    return kept


def _run(
    session: ort.InferenceSession, samples: Iterable[Sample], progress: Progress, title: str
) -> Iterator[Outputs]:
    """All outputs of a model, sample by sample, through polygraphy's runner."""
    from polygraphy.logger import G_LOGGER

    from mmcompile.verification.runner import ArrayRunner

    with ArrayRunner(session) as runner:
        for number, sample in enumerate(progress.track(samples, title)):
            try:
                with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
                    outputs = runner.infer(dict(sample), check_inputs=False)
            except Exception as error:  # polygraphy and the runtime raise classes of their own
                raise UsageError(
                    "sample-rejected",
                    f"verification sample {number}",
                    f"ONNX Runtime rejected it: {first_line(error)}",
                    "check the sample's shapes and values against the model's inputs",
                ) from error
            yield {name: np.array(value) for name, value in outputs.items()}


def _portions(layers: Sequence[LayerSpec], tokens: int) -> Iterator[list[LayerSpec]]:
    portion: list[LayerSpec] = []
    size = 0
    for layer in layers:
        needed = 2 * 4 * tokens * layer.channels
        if portion and size + needed > LAYER_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(layer)
        size += needed
    if portion:
        yield portion


def _tokens(sample: Sample) -> int:
    return max((int(np.prod(value.shape[:2])) for value in sample.values()), default=1)


def _marked(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of a skeleton whose outputs are the named tensors."""
    marked = onnx.ModelProto()
    marked.CopyFrom(proto)
    del marked.graph.output[:]
    marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return marked
