"""Reverse-mode differentiation of an ONNX graph, as a transformation of the graph.

`differentiate` appends nodes that compute vector-Jacobian products: with an extra input v_i for
every floating-point output of the model, the gradients ∂(Σ_i v_i·output_i)/∂y of the tensors y
that are asked for. One ONNX Runtime session then evaluates forward and backward on any CPU; the
weights are the forward's own initializers, which stay mapped from their files.

Only nodes between the requested tensors and the outputs are differentiated. An operator without
a rule there costs the gradients behind it and no others; they are listed with the reason. Such a
gradient would lack a term, so it is not given even where other paths lead to the outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from mmcompile.calib.gradient.emitter import PREFIX, Emitter
from mmcompile.calib.gradient.expansion import expand
from mmcompile.calib.gradient.facts import TensorFacts, learn_facts
from mmcompile.calib.gradient.rule import NotDifferentiable, Step
from mmcompile.calib.gradient.table import STANDARD_DOMAINS, is_flat, rule_of
from mmcompile.calib.instrument import prune


@dataclass(frozen=True)
class GradientGraph:
    """A model whose outputs are gradients.

    Attributes:
        model: the skeleton of forward and backward; refers to the same weights.
        seeds: inputs for the weights v of the model's outputs, by output; same shapes, and the
            gradients' type.
        gradients: outputs by requested tensor, in the requested order; float32, or double in
            models that compute in double, and of the shape of that tensor.
        missing: why the other requested tensors have no gradient.
        kept: outputs that hand out tensors of the forward, by tensor.
    """

    model: onnx.ModelProto
    seeds: dict[str, str]
    gradients: dict[str, str]
    missing: dict[str, str]
    kept: dict[str, str]


def seed_name(output: str) -> str:
    """Name of the input that weights an output of the model."""
    return f"{PREFIX}.seed.{output}"


def gradient_name(tensor: str) -> str:
    """Name of the output that carries a tensor's gradient."""
    return f"{PREFIX}.of.{tensor}"


def kept_name(tensor: str) -> str:
    """Name of the output that carries a tensor of the forward."""
    return f"{PREFIX}.kept.{tensor}"


def differentiate(
    skeleton: onnx.ModelProto, wanted: Sequence[str], keep: Sequence[str] = ()
) -> GradientGraph:
    """The graph of the gradients of the model's outputs with respect to some tensors.

    Args:
        skeleton: the model, with or without its weights, at opset 15 or later; not changed.
        wanted: names of floating-point tensors of its main graph.
        keep: further tensors of it to have as outputs, such as the inputs of layers; what
            neither these nor the gradients need is not computed.
    """
    model = onnx.ModelProto()
    model.CopyFrom(expand(skeleton))
    graph = model.graph
    facts = learn_facts(model)
    opset = next(o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS)
    emitter = Emitter(graph, facts, opset)
    outputs = [value.name for value in graph.output if facts.may_be_float(value.name)]
    backward = _Backward(graph, emitter, wanted, outputs)
    backward.run()
    missing = {name: reason for name in wanted if (reason := backward.missing(name))}
    gradients = {name: gradient_name(name) for name in wanted if name not in missing}
    kept = {name: kept_name(name) for name in keep}
    copies = {kept[name]: name for name in keep}
    for name, output in gradients.items():
        total = backward.total(name)
        assert total is not None
        copies[output] = total
    for output, value in copies.items():
        graph.node.append(onnx.helper.make_node("Identity", [value], [output], name=output))
    seeds = {name: seed_name(name) for name in outputs}
    work = emitter.work_type
    graph.input.extend(_value(seed, work, facts, output) for output, seed in seeds.items())
    del graph.output[:]
    graph.output.extend(_value(output, work, facts, name) for name, output in gradients.items())
    for name, output in kept.items():
        graph.output.append(_value(output, facts.types.get(name), facts, name))
    prune(graph)
    return GradientGraph(model, seeds, gradients, missing, kept)


def _value(name: str, kind: int | None, facts: TensorFacts, like: str) -> onnx.ValueInfoProto:
    """The declaration of an input or output with the shape of another tensor."""
    if kind is None:
        return onnx.ValueInfoProto(name=name)
    shape = facts.shapes.get(like)
    return onnx.ValueInfoProto(name=name, type=onnx.helper.make_tensor_type_proto(kind, shape))


class _Backward:
    """The reverse pass over one graph: gathers the terms of every tensor's gradient."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        emitter: Emitter,
        wanted: Iterable[str],
        outputs: Sequence[str],
    ) -> None:
        self._nodes = list(graph.node)
        self._emitter = emitter
        self._outputs = outputs
        self._known = {value.name for value in graph.input}
        self._known.update(tensor.name for tensor in graph.initializer)
        self._known.update(name for node in self._nodes for name in node.output)
        self._moving = self._reached(wanted)
        self._terms: dict[str, list[str]] = defaultdict(list)
        self._lost: dict[str, str] = {}
        self._readers: dict[str, set[str]] = defaultdict(set)
        for node in self._nodes:
            for name in node.input:
                self._readers[name].add(node.op_type)

    def run(self) -> None:
        """Appends the nodes of the backward, from the outputs to the wanted tensors."""
        for name in self._outputs:
            self._terms[name].append(seed_name(name))
        for node in reversed(self._nodes):
            # A node needs its outputs' totals only if something wanted lies before it.
            if is_flat(node) or not self._moving.intersection(_reads(node)):
                continue
            self._step(node)

    def total(self, name: str) -> str | None:
        """The gradient of a tensor as the sum of its terms; None where there are none."""
        terms = self._terms[name]
        while len(terms) > 1:
            terms[:2] = [self._emitter.op("Add", *terms[:2])]
        return terms[0] if terms else None

    def missing(self, name: str) -> str | None:
        """Why a wanted tensor has no gradient; None where it has one."""
        if name not in self._known:
            return "the graph has no such tensor"
        if not self._emitter.facts.may_be_float(name):
            return "it holds no floating-point numbers"
        if not self._outputs:
            return "the model has no floating-point output"
        if name in self._lost:
            return self._lost[name]
        return None if self._terms[name] else "no differentiable path leads to an output"

    def _reached(self, wanted: Iterable[str]) -> set[str]:
        """The tensors that change with the wanted ones, these among them."""
        moving = {name for name in wanted if self._emitter.facts.may_be_float(name)}
        for node in self._nodes:
            if not is_flat(node) and moving.intersection(_reads(node)):
                moving.update(filter(self._emitter.facts.may_be_float, node.output))
        moving.discard("")
        return moving

    def _step(self, node: onnx.NodeProto) -> None:
        lost = next((self._lost[name] for name in node.output if name in self._lost), None)
        moving = {name for name in _reads(node) if name in self._moving}
        if lost is None:
            if not any(self._terms[name] for name in node.output if name):
                return
            try:
                self._differentiate(node)
            except NotDifferentiable as error:
                lost = f"node '{node.name}' ({node.op_type}) {error}"
        if lost is not None:
            self._lost.update(dict.fromkeys(moving, lost))

    def _differentiate(self, node: onnx.NodeProto) -> None:
        rule = rule_of(node)
        if rule is None:
            raise NotDifferentiable("has no gradient rule")
        gradients = tuple(self.total(name) if name else None for name in node.output)
        positions = frozenset(i for i, name in enumerate(node.input) if name in self._moving)
        readers = frozenset(self._readers[node.output[0]])
        step = Step(node, self._emitter, gradients, positions, readers)
        for position, gradient in rule(step).items():
            if position in positions:
                self._terms[node.input[position]].append(gradient)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names of all tensors that a node reads, in bodies of loops and branches too."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in body.node:
                names |= _reads(inner)
            names.update(value.name for value in body.output)
    names.discard("")
    return names
