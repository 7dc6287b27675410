"""Gradient rules of operators that move elements without picking: reshapes, joins, repeats."""

from __future__ import annotations

from collections.abc import Mapping

from mmcompile.calib.gradient.elementwise import unary
from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


def _reshape(step: Step, g: str) -> str:
    return step.emitter.reshape_like(g, step.raw(0))


def _transpose(step: Step, g: str) -> str:
    permutation = step.attribute("perm", None)
    if permutation is None:
        return step.op("Transpose", g)  # reverses all axes, and back
    inverse = sorted(range(len(permutation)), key=lambda axis: int(permutation[axis]))
    return step.op("Transpose", g, perm=inverse)


def _expand(step: Step, g: str) -> str:
    return step.emitter.unbroadcast(g, step.node.output[0], step.raw(0))


def _tile(step: Step, g: str) -> str:
    """Sums over the repeats: axis i of the output is [repeats i, size i], flattened."""
    column = step.emitter.integers(1)
    repeats = step.op("Unsqueeze", step.raw(1), column)
    sizes = step.op("Unsqueeze", step.emitter.shape(step.raw(0)), column)
    pairs = step.op("Concat", repeats, sizes, axis=1)
    apart = step.emitter.reshape(g, step.op("Reshape", pairs, step.emitter.integers(-1)))
    end = step.op("Mul", step.op("Size", step.raw(1)), step.emitter.integer(2))
    axes = step.op("Range", step.emitter.integer(0), end, step.emitter.integer(2))
    return step.op("ReduceSum", apart, axes, keepdims=0, noop_with_empty_axes=1)


def _concat(step: Step) -> Mapping[int, str]:
    axis: int = step.attribute("axis", 0)
    names = list(step.node.input)
    if len(names) == 1:
        return {0: step.gradient}
    sizes = [step.emitter.dimension(name, axis) for name in names]
    lengths = step.op("Concat", *sizes, axis=0)
    parts = step.emitter.append("Split", [step.gradient, lengths], len(names), axis=axis)
    return dict(enumerate(parts))


def _split(step: Step) -> Mapping[int, str]:
    step.only(0)
    if "" in step.node.output:
        raise NotDifferentiable("leaves outputs out")
    parts = [
        gradient or step.emitter.zeros(step.emitter.shape(name))
        for gradient, name in zip(step.gradients, step.node.output, strict=True)
    ]
    return {0: step.op("Concat", *parts, axis=step.attribute("axis", 0))}


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Expand": unary(_expand),
    "Flatten": unary(_reshape),
    "Reshape": unary(_reshape),
    "Split": _split,
    "Squeeze": unary(_reshape),
    "Tile": unary(_tile),
    "Transpose": unary(_transpose),
    "Unsqueeze": unary(_reshape),
}
"""By operator of the standard domain."""
