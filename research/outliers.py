"""Outliers can be injected without changing the function: MiniLM's outputs stay within 4e-7 (docs/measurements/policy.md, "Outliers injected").

Gives a model the activation outliers of large language models.

    python -m research.outliers inject MODEL OUT [--share 0.015] [--scale 20..60] [--seed 0]

Large models have a few channels whose activations, behind a norm, are tens of times larger than the
others'; small models lack them. Here some channels of every norm-fed input of quantizable linears
are multiplied by a factor, log-uniform in `--scale`, and the weights' rows of these channels are
divided by it:

    y = norm(x)·W = (norm(x)∘f)·(W/f)

1. A group of linears is norm-fed where a LayerNormalization or RMSNormalization (or one that an
   optimizer has fused), or its decomposed form with a scale per channel, leads to its input,
   perhaps through Reshape, Cast and Identity. Any other group is left alone with a reason.
2. A Mul by the constant f stands between the norm's output and the linears of the group. All
   others that read the norm's output, as a post-norm encoder's residual does, read it as before.
3. Each linear gets a weight of its own, so that one that shares its weight with an embedding may be
   injected, too. What nothing reads any more is gone.

The channels are chosen per group, the same for the same seed. Both models are then run in ONNX
Runtime: outputs may differ by 1e-5 of the largest value, which float32 rounding stays well below.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from mmcompile.data.dataset import RANDOM, open_data
from mmcompile.errors import (
    MMCompileError,
    UnsupportedModelError,
    UsageError,
    VerificationError,
)
from mmcompile.model.passes.constants import ConstantFinder
from mmcompile.model.selection import Selection
from mmcompile.model.session import open_session
from mmcompile.model.sites import LinearSite, SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.model.walk import all_graphs, all_nodes
from mmcompile.model.writer import ModelWriter
from mmcompile.pipeline.prepare import input_specs, prepare
from mmcompile.plan import LeftAlone

TOLERANCE = 1e-5
"""Largest difference of an output, relative to its largest value."""
NORMS = {
    "LayerNormalization": 1,
    "RMSNormalization": 1,
    "SimplifiedLayerNormalization": 1,
    "SkipLayerNormalization": 2,
    "SkipSimplifiedLayerNormalization": 2,
}
"""Norm operators and which of their inputs is the scale per channel."""
REASONS = {
    "not-norm-fed": "its input does not come from a norm with a scale per channel",
    "not-float32": "its weights are not float32, so that dividing them would change the function",
    "transposed-input": "its input is [K, M] (Gemm's transA)",
}
_SAME_CHANNELS = frozenset("Cast Identity Reshape".split())
"""Operators that a norm's output may pass; the number of channels is checked besides."""
_CHECKED_SAMPLES, _CHECKED_LENGTH = 4, 48
_LONGEST_CHAIN = 16


@dataclass(frozen=True)
class Injection:
    """What is asked for.

    Attributes:
        share: of a group's channels that become outliers; at least one channel does.
        least: smallest factor.
        most: largest factor.
        seed: of channels and factors.

    Raises:
        UsageError: the share or the factors make no sense.
    """

    share: float = 0.015
    least: float = 20.0
    most: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            reason = f"{self.share:g} is no share of the channels"
            raise UsageError("bad-share", "--share", reason, "give a number such as 0.015")
        if not 1 <= self.least <= self.most < 1e4:
            reason = f"{self.least:g}..{self.most:g} is no range of factors from 1 on"
            raise UsageError("bad-scale", "--scale", reason, "give a range such as 20..60")


@dataclass(frozen=True)
class Outliers:
    """The outliers of one group.

    Attributes:
        group: its name.
        factors: float32[K], 1 for every channel that is none.
    """

    group: str
    factors: npt.NDArray[np.float32]

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels that are outliers, ascending."""
        return tuple(int(channel) for channel in np.flatnonzero(self.factors != 1))


@dataclass(frozen=True)
class Injected:
    """A model with outliers.

    Attributes:
        model: its file.
        outliers: what was injected, in graph order.
        left_alone: the linears that were left as they are, with reasons.
        difference: largest difference of an output, relative to its largest value.
    """

    model: Path
    outliers: tuple[Outliers, ...]
    left_alone: tuple[LeftAlone, ...]
    difference: float


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("inject", help="write a model with outliers")
    command.add_argument("model", type=Path, help="the .onnx file")
    command.add_argument("out", type=Path, help="folder to write model.onnx into")
    command.add_argument("--share", type=float, default=Injection.share, help="of the channels")
    command.add_argument("--scale", default="20..60", help="range of the factors")
    command.add_argument("--seed", type=int, default=Injection.seed)
    arguments = parser.parse_args()
    try:
        asked = Injection(arguments.share, *_range(arguments.scale), arguments.seed)
        found = inject(arguments.model, arguments.out, asked)
    except MMCompileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for entry in found.outliers:
        factors = ", ".join(f"{c} ×{entry.factors[c]:.1f}" for c in entry.channels)
        print(f"{entry.group}: channels {factors}")
    for left in found.left_alone:
        print(f"{left.node}: left alone, {left.reason}")
    print(f"{found.model}: outputs differ by {found.difference:.1e} of their largest value")
    return 0


def inject(model: Path, folder: Path, asked: Injection) -> Injected:
    """Writes `folder/model.onnx`, the model with outliers, and checks that it is the same function.

    Raises:
        UsageError: there is no such model, or `folder` is the model's own.
        UnsupportedModelError: the model cannot be read, does not run in ONNX Runtime, or has no
            norm-fed linears.
        VerificationError: the outputs differ by more than `TOLERANCE`.
    """
    prepared = prepare(model, Selection())
    source = prepared.source
    if folder.resolve() == source.folder.resolve():
        reason = "it is the folder of the model itself, whose files would be overwritten"
        raise UsageError("output-is-input", folder, reason, "give another folder")
    norms = NormSearch(source)
    chosen: list[tuple[SiteGroup, Outliers]] = []
    left: list[LeftAlone] = []
    for number, group in enumerate(prepared.groups):
        code = _rejection(group, norms)
        if code is None:
            factors = choose_factors(group.in_channels, asked, number)
            chosen.append((group, Outliers(group.name, factors)))
        else:
            left.extend(LeftAlone(site.node, code, REASONS[code]) for site in group.sites)
    if not chosen:
        reason = "no linear that would be quantized reads the output of a norm"
        remedy = "give a transformer with its norms"
        raise UnsupportedModelError("nothing-norm-fed", model, reason, remedy)
    folder.mkdir(parents=True, exist_ok=True)
    written = _write(source, chosen, folder)
    found = difference(source, written)
    if not found <= TOLERANCE:
        reason = f"its outputs differ by {found:.1e} of their largest value, not {TOLERANCE:g}"
        remedy = "give a smaller --scale, or another --seed"
        raise VerificationError("function-changed", written, reason, remedy)
    return Injected(written, tuple(entry for _, entry in chosen), tuple(left), found)


def choose_factors(channels: int, asked: Injection, group: int) -> npt.NDArray[np.float32]:
    """Factors of a group's channels, float32[channels]; the same for the same seed and group."""
    generator = np.random.default_rng([asked.seed, group])
    count = max(1, round(asked.share * channels))
    chosen = generator.choice(channels, count, replace=False)
    factors = np.ones(channels, np.float32)
    factors[chosen] = np.exp(generator.uniform(np.log(asked.least), np.log(asked.most), count))
    return factors


def difference(original: SourceModel, other: Path) -> float:
    """Largest difference of two models' outputs on random inputs, relative to the largest value.

    Returns:
        The maximum over floating-point outputs and samples of max |a − b| / max |a|; NaN or
        infinity where an output has them or differs in shape.
    """
    specs = input_specs(original.proto)
    data = open_data(
        RANDOM, specs, limit=_CHECKED_SAMPLES, seed=1, max_length=_CHECKED_LENGTH, tokenizer=None
    )
    before = open_session(original.proto, original.folder)
    after = open_session(other, other.parent)
    largest = 0.0
    for sample in data:
        outputs = zip(before.run(None, sample), after.run(None, sample), strict=True)
        for expected, actual in outputs:
            if expected.dtype.kind == "f":
                largest = float(np.maximum(largest, _relative(expected, actual)))  # keeps NaN
    return largest


class NormSearch:
    """Answers whether a tensor is the output of a norm; see rule 1 of the module."""

    def __init__(self, source: SourceModel) -> None:
        self._constants = ConstantFinder(source)
        self._producers = {name: node for node in source.proto.graph.node for name in node.output}

    def feeds(self, name: str, channels: int) -> bool:
        """Whether a norm over that many channels leads to the tensor."""
        name, node = self._behind(name)
        if node is None:
            return False
        scale = NORMS.get(node.op_type)
        if scale is not None:
            is_output = node.output[0] == name
            return is_output and self._is_vector(node.input[scale], channels)
        return self._is_decomposed(node, channels)

    def _is_decomposed(self, node: onnx.NodeProto, channels: int) -> bool:
        """Whether a node ends scale · (x / s) or scale · (x · 1/s), a bias added or not."""
        scaled = False
        for op_type in ("Add", "Mul"):
            rest = self._beside_vector(node, channels) if node.op_type == op_type else None
            if rest is not None:
                scaled = op_type == "Mul"
                _, inner = self._behind(rest)
                if inner is None:
                    return False
                node = inner
        factors = {"Div": node.input[1:], "Mul": node.input}.get(node.op_type, ())
        return scaled and any(self._is_deviation(name) for name in factors)

    def _is_deviation(self, name: str) -> bool:
        """Whether a tensor is the root of a mean, or one divided by it."""
        rooted = False
        for _ in range(_LONGEST_CHAIN):
            node = self._producers.get(name)
            if node is None:
                return False
            if node.op_type == "ReduceMean":
                return rooted
            rooted |= node.op_type in ("Sqrt", "Pow")
            variable = [value for value in node.input if value and not self._is_constant(value)]
            is_step = node.op_type in _SAME_CHANNELS or node.op_type in (
                "Sqrt Reciprocal Pow Div Add Max Clip".split()
            )
            if not is_step or len(variable) != 1:
                return False
            (name,) = variable
        return False

    def _behind(self, name: str) -> tuple[str, onnx.NodeProto | None]:
        """The tensor before operators that keep channels, and its producer."""
        node = self._producers.get(name)
        while node is not None and node.op_type in _SAME_CHANNELS:
            name = node.input[0]
            node = self._producers.get(name)
        return name, node

    def _beside_vector(self, node: onnx.NodeProto, channels: int) -> str | None:
        """The operand of an Add or Mul whose other operand is a constant per channel."""
        first, second = map(str, node.input)
        if self._is_vector(second, channels):
            return first
        return second if self._is_vector(first, channels) else None

    def _is_vector(self, name: str, channels: int) -> bool:
        if not self._is_constant(name):
            return False
        found = self._constants.source(name)
        if found is None:
            return False
        shape = found[0].shape
        return shape[-1:] == (channels,) and all(size == 1 for size in shape[:-1])

    def _is_constant(self, name: str) -> bool:
        return self._constants.is_constant(name)


def _rejection(group: SiteGroup, norms: NormSearch) -> str | None:
    """The reason code why a group is left alone, or None."""
    if group.transpose_input:
        return "transposed-input"
    if not norms.feeds(group.input, group.in_channels):
        return "not-norm-fed"
    if any(site.weight.elem_type != TensorProto.FLOAT for site in group.sites):
        return "not-float32"
    return None


def _write(source: SourceModel, chosen: Sequence[tuple[SiteGroup, Outliers]], folder: Path) -> Path:
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    nodes = {node.name: node for node in proto.graph.node}
    before: dict[str, onnx.NodeProto] = {}
    with ModelWriter(folder) as writer:
        for group, outliers in chosen:
            scaled, factors = f"{group.name}.outliers", f"{group.name}.outlier_factors"
            # The first site of a group comes first in the graph, which is in order.
            before[group.sites[0].node] = helper.make_node(
                "Mul", [group.input, factors], [scaled], scaled
            )
            _add(proto, writer, factors, outliers.factors)
            for site in group.sites:
                weight = f"{site.node}.outlier_weight"
                nodes[site.node].input[:2] = [scaled, weight]
                _add(proto, writer, weight, _divided(site, source, nodes[site.node], outliers))
        kept = list(_with_added(proto.graph.node, before))
        del proto.graph.node[:]
        proto.graph.node.extend(kept)
        _drop_unread(proto)
        for tensor in proto.graph.initializer:
            if reference := source.weights.ref(tensor.name):
                writer.copy(reference)
        return writer.finish(proto)


def _divided(
    site: LinearSite, source: SourceModel, node: onnx.NodeProto, outliers: Outliers
) -> npt.NDArray[np.float32]:
    """The weight divided by the factors of its input channels, as the node's operand has it."""
    weight = site.weight.read(source).astype(np.float32, copy=False)
    by_channel = weight if site.channels_first else weight.T
    divided = by_channel / outliers.factors[:, None]
    trans_b = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return np.ascontiguousarray(divided.T if trans_b else divided)


def _add(
    proto: onnx.ModelProto, writer: ModelWriter, name: str, value: npt.NDArray[np.float32]
) -> None:
    writer.add(name, value)
    proto.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=value.shape)


def _with_added(
    nodes: Sequence[onnx.NodeProto], before: dict[str, onnx.NodeProto]
) -> Iterator[onnx.NodeProto]:
    """The nodes, and before each that is named in `before` the one given there."""
    for node in nodes:
        if node.name in before:
            yield before[node.name]
        yield node


def _drop_unread(proto: onnx.ModelProto) -> None:
    """Removes weights that nothing reads any more, and the nodes that transformed them."""
    graph = proto.graph
    while True:
        read = {name for node in all_nodes(proto) for name in node.input}
        read.update(value.name for body in all_graphs(proto) for value in body.output)
        nodes = [node for node in graph.node if read.intersection(node.output)]
        if len(nodes) == len(graph.node):
            break
        del graph.node[:]
        graph.node.extend(nodes)
    read.update(value.name for value in graph.input)
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _relative(expected: npt.NDArray[np.float32], actual: npt.NDArray[np.float32]) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0))
    apart = float(np.abs(expected.astype(np.float64) - actual).max(initial=0))
    return apart / largest if largest else apart


def _range(text: str) -> tuple[float, float]:
    """The two ends of a range as `20..60`, or the same number twice for a single one."""
    least, dots, most = text.partition("..")
    try:
        return float(least), float(most if dots else least)
    except ValueError:
        reason = f"'{text}' is no range"
        raise UsageError("bad-scale", "--scale", reason, "give a range such as 20..60") from None


if __name__ == "__main__":
    sys.exit(main())
