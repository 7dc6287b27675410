"""Gradient rules of reductions and cumulative sums.

Notation: x the input, y the output, g the gradient of y, both with the reduced axes kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmcompile.calib.gradient.elementwise import unary
from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


@dataclass(frozen=True)
class _Kept:
    """The parts of a reduction's gradient, with the reduced axes as ones.

    Attributes:
        g: gradient of the output.
        y: makes the output's node where a formula needs it.
        axes: the reduced axes; None for all.
    """

    g: str
    y: Callable[[], str]
    axes: tuple[int, ...] | None


def _reduction(formula: Callable[[Step, _Kept], str]) -> Rule:
    """The rule of a reduction, from its kept parts to what is broadcast to the input's shape."""

    def rule(step: Step) -> Mapping[int, str]:
        step.only(0)
        axes = step.integers("axes", 1)
        if not axes and step.attribute("noop_with_empty_axes", 0):
            raise NotDifferentiable("reduces nothing (noop_with_empty_axes)")
        kept = _Kept(
            _keep(step, step.gradient, axes), lambda: _keep(step, step.output(), axes), axes
        )
        gradient = formula(step, kept)
        return {0: step.op("Expand", gradient, step.emitter.shape(step.raw(0)))}

    return rule


def _keep(step: Step, value: str, axes: tuple[int, ...] | None) -> str:
    """A value of the output's shape with the reduced axes as ones."""
    if step.attribute("keepdims", 1) or not axes:
        return value  # without axes it is a scalar or all ones, which broadcasts either way
    return step.op("Unsqueeze", value, step.emitter.integers(*axes))


def _mean(step: Step, kept: _Kept) -> str:
    emitter = step.emitter
    count = step.op("Div", emitter.size(step.raw(0)), emitter.size(step.node.output[0]))
    return step.op("Div", kept.g, count)


def _extremum(step: Step, kept: _Kept) -> str:
    """Elements that attain the maximum or minimum share its gradient."""
    equal = step.op("Equal", step.input(0), kept.y())
    mask = step.op("Cast", equal, to=step.emitter.work_type)
    if kept.axes:
        count = step.emitter.reduce("ReduceSum", mask, kept.axes)
    else:
        count = step.op("ReduceSum", mask, keepdims=0)
    return step.op("Mul", mask, step.op("Div", kept.g, count))


def _norm(step: Step, kept: _Kept) -> str:
    """x/√Σx²."""
    return step.op("Mul", step.input(0), step.op("Div", kept.g, kept.y()))


def _log_sum_exp(step: Step, kept: _Kept) -> str:
    return step.op("Mul", kept.g, step.op("Exp", step.op("Sub", step.input(0), kept.y())))


def _square(step: Step, kept: _Kept) -> str:
    return step.product(kept.g, step.number(2), step.input(0))


def _magnitude(step: Step, kept: _Kept) -> str:
    return step.op("Mul", kept.g, step.op("Sign", step.input(0)))


def _cumulative(step: Step, g: str) -> str:
    """The cumulative sum from the other end."""
    return step.op(
        "CumSum",
        g,
        step.raw(1),
        reverse=1 - step.attribute("reverse", 0),
        exclusive=step.attribute("exclusive", 0),
    )


RULES: dict[str, Rule] = {
    "CumSum": unary(_cumulative),
    "ReduceL1": _reduction(_magnitude),
    "ReduceL2": _reduction(_norm),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _reduction(_extremum),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_extremum),
    "ReduceSum": _reduction(lambda _step, kept: kept.g),
    "ReduceSumSquare": _reduction(_square),
}
"""By operator of the standard domain."""
