"""What a gradient rule is, and what it is told of the node that it differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from mmcompile.calib.gradient.emitter import Emitter


class NotDifferentiable(Exception):
    """A node whose variant a rule does not cover; the message ends "node 'n' (Op) ...".

    It never leaves the package: the gradients behind such a node are listed as missing.
    """


@dataclass(frozen=True)
class Step:
    """One node of the forward on the way back.

    Attributes:
        node: the node.
        emitter: writes the backward.
        gradients: gradients of the node's outputs; None where an output leads to no model output.
        wanted: positions of the inputs whose gradients are asked for.
        readers: operators that read the node's first output.
    """

    node: onnx.NodeProto
    emitter: Emitter
    gradients: tuple[str | None, ...]
    wanted: frozenset[int]
    readers: frozenset[str] = frozenset()

    @property
    def gradient(self) -> str:
        """Gradient of the first output.

        Raises:
            NotDifferentiable: the model's outputs hang on another output of the node.
        """
        if self.gradients[0] is None or any(self.gradients[1:]):
            raise NotDifferentiable("is differentiated only by its first output")
        return self.gradients[0]

    def only(self, *positions: int) -> None:
        """States which inputs the rule knows gradients of.

        Raises:
            NotDifferentiable: another one is asked for.
        """
        for position in sorted(self.wanted.difference(positions)):
            raise NotDifferentiable(f"has no gradient rule for its input {position}")

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.node.input) and bool(self.node.input[position])

    def raw(self, position: int) -> str:
        """Name of an input as the forward has it, for shapes and indices."""
        return str(self.node.input[position])

    def input(self, position: int) -> str:
        """An input in the backward's type."""
        return self.emitter.work(self.node.input[position])

    def output(self, position: int = 0) -> str:
        """An output of the forward in the backward's type."""
        return self.emitter.work(self.node.output[position])

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def integers(self, name: str, position: int) -> tuple[int, ...] | None:
        """Integers given as an attribute or as a constant input; None where neither is there.

        Raises:
            NotDifferentiable: the input is no constant.
        """
        values = self.attribute(name, None)
        if values is not None:
            return tuple(values)
        if not self.has(position):
            return None
        constant = self.emitter.facts.constant(self.raw(position))
        if constant is None:
            raise NotDifferentiable(f"takes its {name} from a tensor that is no constant")
        return tuple(int(value) for value in constant.reshape(-1))

    def rank(self, position: int) -> int | None:
        """Number of dimensions of an input, None where it is not known."""
        return self.emitter.facts.rank(self.node.input[position])

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Appends a node with one output; the output's name."""
        return self.emitter.op(op, *inputs, **attributes)

    def number(self, value: float) -> str:
        """A constant scalar of the backward's type."""
        return self.emitter.number(value)

    def product(self, *factors: str) -> str:
        """The product of several tensors, from left to right."""
        value = factors[0]
        for factor in factors[1:]:
            value = self.op("Mul", value, factor)
        return value


Rule = Callable[[Step], Mapping[int, str]]
"""Appends the nodes that turn `Step.gradients` into the gradients of the wanted inputs.

Returns them by input position; those of inputs that are not wanted may be among them. A rule
raises `NotDifferentiable` for a variant of its operator that it does not cover.
"""
