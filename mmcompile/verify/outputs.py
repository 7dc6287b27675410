"""Original against compiled model, output by output and layer by layer, with polygraphy's runners.

Both models run one sample at a time, side by side, and only sums are kept. Layers keep the names
of their output tensors in the compiled model, so that they are compared by name; they are marked
as outputs in portions that fit a bound on memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from mmcompile.errors import UsageError
from mmcompile.graph import SourceModel
from mmcompile.progress import Progress
from mmcompile.session import Purpose, first_line, open_session
from mmcompile.verify.metrics import Agreement

Sample = Mapping[str, np.ndarray]
LAYER_BYTES = 256 << 20
"""Bound on the bytes of layer outputs that are in memory at a time."""


@dataclass(frozen=True)
class LayerSpec:
    """A layer to compare: its name, its output tensor and the tensor's last dimension."""

    name: str
    tensor: str
    channels: int


def compare_outputs(
    original: Path,
    compiled: Path,
    samples: Iterable[Sample],
    logits: frozenset[str],
    progress: Progress,
) -> dict[str, Agreement]:
    """Agreement of every model output over all samples, by output name.

    Args:
        original: the model as the user gave it.
        compiled: the rewritten model.
        samples: held-back inputs.
        logits: names of the outputs that are logits.
        progress: told after every sample.
    """
    found: dict[str, Agreement] = {}
    first = open_session(original, original.parent, Purpose.DEPLOYMENT)
    second = open_session(compiled, compiled.parent, Purpose.DEPLOYMENT)
    for expected, actual in _side_by_side(first, second, samples, progress, "verifying"):
        for name, reference in expected.items():
            agreement = found.setdefault(name, Agreement())
            if name not in actual:
                agreement.mismatch = "missing from the compiled model"
                continue
            agreement.add(reference, actual[name], logits=name in logits)
    return found


def compare_layers(
    original: SourceModel,
    compiled: SourceModel,
    layers: Sequence[LayerSpec],
    samples: Sequence[Sample],
    progress: Progress,
) -> dict[str, Agreement]:
    """Agreement of every layer's output within the whole model, in graph order, by layer name."""
    found: dict[str, Agreement] = {}
    tokens = max((_tokens(sample) for sample in samples), default=1)
    for portion in _portions(layers, tokens):
        tensors = [layer.tensor for layer in portion]
        first = open_session(_marked(original.proto, tensors), original.path.parent)
        second = open_session(_marked(compiled.proto, tensors), compiled.path.parent)
        title = f"comparing layers {portion[0].name} …"
        for expected, actual in _side_by_side(first, second, samples, progress, title):
            for layer in portion:
                agreement = found.setdefault(layer.name, Agreement())
                agreement.add(expected[layer.tensor], actual[layer.tensor])
    return found


def first_below(layers: Mapping[str, Agreement], cosine: float) -> str | None:
    """The first layer in graph order whose cosine similarity is below a bound or undefined."""
    for name, agreement in layers.items():
        if math.isnan(agreement.cosine_mean) or agreement.cosine_mean < cosine:
            return name
    return None


def _side_by_side(
    first: ort.InferenceSession,
    second: ort.InferenceSession,
    samples: Iterable[Sample],
    progress: Progress,
    title: str,
) -> Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.logger import G_LOGGER

    with ExitStack() as stack:
        stack.enter_context(G_LOGGER.verbosity(G_LOGGER.CRITICAL))
        runners = [
            stack.enter_context(OnnxrtRunner(session, name=name))
            for session, name in ((first, "original"), (second, "compiled"))
        ]
        for number, sample in enumerate(progress.track(samples, title)):
            try:
                results = [
                    {name: np.asarray(value) for name, value in runner.infer(dict(sample)).items()}
                    for runner in runners
                ]
            except Exception as error:  # polygraphy and the runtime raise classes of their own
                raise UsageError(
                    "sample-rejected",
                    f"verification sample {number}",
                    f"ONNX Runtime rejected it: {first_line(error)}",
                    "check the sample's shapes and values against the model's inputs",
                ) from error
            yield results[0], results[1]


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
