"""Gradient rules of normalizations: softmax, layer norm, RMS norm.

Notation: x the input, y the output, g the gradient of y; ⟨·⟩ is the mean over the normalized
axes. Only gradients of the data are given, not those of scales and biases.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmcompile.calib.gradient.elementwise import unary
from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


def _softmax(step: Step, g: str) -> str:
    """It is y·(g − Σ y·g).

    A row that is masked throughout is 0/0. Models that expect such rows replace the NaN after
    the softmax, and so is it replaced here; otherwise it would spread to all tokens.
    """
    y = step.output()
    if "IsNaN" in step.readers:
        y = step.op("Where", step.op("IsNaN", y), step.number(0), y)
    product = step.op("Mul", y, g)
    total = step.emitter.reduce("ReduceSum", product, [step.attribute("axis", -1)])
    return step.op("Mul", y, step.op("Sub", g, total))


def _log_softmax(step: Step, g: str) -> str:
    """It is g − exp(y)·Σ g."""
    total = step.emitter.reduce("ReduceSum", g, [step.attribute("axis", -1)])
    return step.op("Sub", g, step.op("Mul", step.op("Exp", step.output()), total))


def _trailing_axes(step: Step) -> list[int]:
    """The axes from attribute `axis` to the last, counted from the end."""
    axis: int = step.attribute("axis", -1)
    if axis >= 0:
        rank = step.rank(0)
        if rank is None:
            raise NotDifferentiable("normalizes axes of a tensor whose rank is not known")
        axis -= rank
    return list(range(axis, 0))


def layer_norm(step: Step, x: str, g: str, axes: list[int], epsilon: float) -> str:
    """Gradient of n = (x − ⟨x⟩)·r, r = 1/√(⟨(x − ⟨x⟩)²⟩ + ε), where g is the gradient of n.

    It is r·(g − ⟨g⟩ − n·⟨g·n⟩).
    """
    reduce = step.emitter.reduce
    centred = step.op("Sub", x, reduce("ReduceMean", x, axes))
    r = _inverse_root(step, centred, axes, epsilon)
    n = step.op("Mul", centred, r)
    mean = reduce("ReduceMean", g, axes)
    along = step.op("Mul", n, reduce("ReduceMean", step.op("Mul", g, n), axes))
    return step.op("Mul", r, step.op("Sub", step.op("Sub", g, mean), along))


def rms_norm(step: Step, x: str, g: str, axes: list[int], epsilon: float) -> str:
    """Gradient of n = x·r, r = 1/√(⟨x²⟩ + ε), where g is the gradient of n: r·(g − n·⟨g·n⟩)."""
    r = _inverse_root(step, x, axes, epsilon)
    n = step.op("Mul", x, r)
    mean = step.emitter.reduce("ReduceMean", step.op("Mul", g, n), axes)
    return step.op("Mul", r, step.op("Sub", g, step.op("Mul", n, mean)))


def _inverse_root(step: Step, value: str, axes: list[int], epsilon: float) -> str:
    square = step.emitter.reduce("ReduceMean", step.op("Mul", value, value), axes)
    root = step.op("Sqrt", step.op("Add", square, step.number(epsilon)))
    return step.op("Reciprocal", root)


def _layer_normalization(step: Step, g: str) -> str:
    scaled = step.op("Mul", g, step.input(1)) if step.has(1) else g
    epsilon = step.attribute("epsilon", 1e-5)
    return layer_norm(step, step.input(0), scaled, _trailing_axes(step), epsilon)


def _rms_normalization(step: Step, g: str) -> str:
    scaled = step.op("Mul", g, step.input(1)) if step.has(1) else g
    epsilon = step.attribute("epsilon", 1e-5)
    return rms_norm(step, step.input(0), scaled, _trailing_axes(step), epsilon)


def _skip(step: Step) -> Mapping[int, str]:
    """Normalization of s = input + skip + bias over the last axis; output 3 is s itself."""
    simple = step.node.op_type == "SkipSimplifiedLayerNormalization"
    step.only(0, 1)
    if any(step.gradients[1:3]):
        raise NotDifferentiable("has a requested path through its mean or deviation")
    if not step.emitter.facts.same_shape(step.raw(0), step.raw(1)):
        raise NotDifferentiable("broadcasts its skip input")
    total = step.op("Add", step.input(0), step.input(1))
    bias = 3 if simple else 4
    if step.has(bias):
        total = step.op("Add", total, step.input(bias))
    gradient = step.gradients[3] if len(step.gradients) > 3 else None
    if step.gradients[0] is not None:
        scaled = step.op("Mul", step.gradients[0], step.input(2))
        normalize = rms_norm if simple else layer_norm
        inner = normalize(step, total, scaled, [-1], step.attribute("epsilon", 1e-5))
        gradient = step.op("Add", inner, gradient) if gradient else inner
    assert gradient is not None
    return {0: gradient, 1: gradient}


RULES: dict[str, Rule] = {
    "LayerNormalization": unary(_layer_normalization),
    "LogSoftmax": unary(_log_softmax),
    "RMSNormalization": unary(_rms_normalization),
    "SimplifiedLayerNormalization": unary(_rms_normalization),
    "Softmax": unary(_softmax),
}
"""By operator of the standard domain; the simplified one is ONNX Runtime's."""

MICROSOFT_RULES: dict[str, Rule] = {
    "SkipLayerNormalization": _skip,
    "SkipSimplifiedLayerNormalization": _skip,
}
"""By operator of `com.microsoft`, which ONNX Runtime's optimizer writes."""
