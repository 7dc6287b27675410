"""Gradient rules of arithmetic and selection, element by element, with broadcasting.

Notation: y the output, g its gradient, x (or a, b) the inputs. Where an operand is broadcast, the
gradient is summed over the axes of the broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


def unary(formula: Callable[[Step, str], str]) -> Rule:
    """The rule of an operator with one input of the output's shape, from (step, g) to g_x."""

    def rule(step: Step) -> Mapping[int, str]:
        step.only(0)
        return {0: formula(step, step.gradient)}

    return rule


def _broadcast(formula: Callable[[Step, str, int], str]) -> Rule:
    """The rule of an operator with broadcasting, from (step, g, position) to that gradient."""

    def rule(step: Step) -> Mapping[int, str]:
        gradient = step.gradient
        return {i: shrink(step, formula(step, gradient, i), i) for i in sorted(step.wanted)}

    return rule


def shrink(step: Step, gradient: str, position: int) -> str:
    """A gradient of the first output's shape, summed to the shape of an input."""
    return step.emitter.unbroadcast(gradient, step.node.output[0], step.raw(position))


def _subtract(step: Step, g: str, position: int) -> str:
    return step.op("Neg", g) if position else g


def _multiply(step: Step, g: str, position: int) -> str:
    return step.op("Mul", g, step.input(1 - position))


def _divide(step: Step, g: str, position: int) -> str:
    """∂(a/b) = 1/b and −a/b² = −y/b."""
    quotient = step.op("Div", g, step.input(1))
    return step.op("Neg", step.op("Mul", quotient, step.output())) if position else quotient


def _power(step: Step, g: str, position: int) -> str:
    """p·a^(p−1) for an exponent that the requested tensors do not reach."""
    if position:
        raise NotDifferentiable("has a requested tensor in its exponent")
    constant = step.emitter.facts.constant(step.raw(1))
    if constant is not None and np.all(constant == 2):
        return step.product(g, step.number(2), step.input(0))
    if constant is not None and np.any(constant == 0):
        # 0·a^(−1) is NaN at a = 0, where the derivative of a constant is 0.
        raise NotDifferentiable("has an exponent of zero")
    exponent = step.input(1)
    reduced = step.op("Sub", exponent, step.number(1))
    return step.product(g, exponent, step.op("Pow", step.input(0), reduced))


def _where(step: Step, g: str, position: int) -> str:
    zero = step.number(0)
    values = (g, zero) if position == 1 else (zero, g)
    return step.op("Where", step.raw(0), *values)


def _where_rule(step: Step) -> Mapping[int, str]:
    step.only(1, 2)
    return _broadcast(_where)(step)


def _mean(step: Step, g: str, position: int) -> str:
    del position
    return step.op("Div", g, step.number(len(step.node.input)))


def _extremum(step: Step, g: str, position: int) -> str:
    """Max and Min: where several inputs attain the value, they share the gradient."""
    y = step.output()

    def attains(i: int) -> str:
        equal = step.op("Equal", step.input(i), y)
        return step.op("Cast", equal, to=step.emitter.work_type)

    masks = [attains(i) for i in range(len(step.node.input))]
    count = masks[0]
    for mask in masks[1:]:
        count = step.op("Add", count, mask)
    return step.op("Div", step.op("Mul", g, masks[position]), count)


def _clip(step: Step, g: str) -> str:
    """The gradient passes inside the bounds, the bounds included."""
    x = step.input(0)
    for position, comparison in ((1, "GreaterOrEqual"), (2, "LessOrEqual")):
        if step.has(position):
            inside = step.op(comparison, x, step.input(position))
            g = step.op("Where", inside, g, step.number(0))
    return g


def _slope(step: Step, g: str, position: int) -> str:
    """PRelu: y = x where x ≥ 0, slope·x elsewhere."""
    if position:
        raise NotDifferentiable("has a requested tensor in its slope")
    negative = step.op("Less", step.input(0), step.number(0))
    return step.op("Where", negative, step.op("Mul", g, step.input(1)), g)


def _through(_: Step, g: str) -> str:
    return g


def _dropout(step: Step, g: str) -> str:
    """Nothing is dropped, as in inference."""
    training = step.emitter.facts.constant(step.raw(2)) if step.has(2) else np.array(False)
    if training is None or training.any():
        raise NotDifferentiable("drops elements at random (training_mode)")
    return g


RULES: dict[str, Rule] = {
    "Abs": unary(lambda s, g: s.op("Mul", g, s.op("Sign", s.input(0)))),
    "Add": _broadcast(lambda _s, g, _i: g),
    "Cast": unary(_through),
    "CastLike": lambda step: {0: step.gradient},  # of input 1 only the type counts
    "Clip": unary(_clip),
    "Cos": unary(lambda s, g: s.op("Neg", s.op("Mul", g, s.op("Sin", s.input(0))))),
    "Div": _broadcast(_divide),
    "Dropout": unary(_dropout),
    "Exp": unary(lambda s, g: s.op("Mul", g, s.output())),
    "Identity": unary(_through),
    "Log": unary(lambda s, g: s.op("Div", g, s.input(0))),
    "Max": _broadcast(_extremum),
    "Mean": _broadcast(_mean),
    "Min": _broadcast(_extremum),
    "Mul": _broadcast(_multiply),
    "Neg": unary(lambda s, g: s.op("Neg", g)),
    "PRelu": _broadcast(_slope),
    "Pow": _broadcast(_power),
    "Reciprocal": unary(
        lambda s, g: s.op("Neg", s.product(g, s.output(), s.output())),
    ),
    "Sin": unary(lambda s, g: s.op("Mul", g, s.op("Cos", s.input(0)))),
    "Sqrt": unary(lambda s, g: s.op("Div", s.op("Mul", g, s.number(0.5)), s.output())),
    "Sub": _broadcast(_subtract),
    "Sum": _broadcast(lambda _s, g, _i: g),
    "Where": _where_rule,
}
"""By operator of the standard domain."""
