"""Gradient rules of operators that pick elements: slices, gathers, padding.

A slice of step 1 goes back as padding. Everything else goes back in the way that is right for
any indices: the operator is applied to the numbers of the elements instead of the elements, and
the gradient is added up at the numbers that come out.
"""

from __future__ import annotations

from onnx import TensorProto

from mmcompile.calib.gradient.elementwise import unary
from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


def _scatter(step: Step, g: str, picked: str, *, repeats: bool = True) -> str:
    """Adds the elements of g up at their places in input 0.

    Args:
        step: the node.
        g: gradient of the output.
        picked: int64 numbers of the elements in the output, of its shape.
        repeats: whether a number can stand in `picked` twice.
    """
    emitter = step.emitter
    if repeats and emitter.opset < 16:
        raise NotDifferentiable("needs ScatterElements with an addition, which opset 15 lacks")
    flat = emitter.integers(-1)
    size = step.op("Reshape", step.op("Size", step.raw(0)), emitter.integers(1))
    places = step.op("Reshape", picked, flat)
    values = step.op("Reshape", g, flat)
    sums = {"reduction": "add"} if repeats else {}
    filled = step.op("ScatterElements", emitter.zeros(size), places, values, **sums)
    return emitter.reshape_like(filled, step.raw(0))


def _numbers(step: Step) -> str:
    """0, 1, 2, … in the shape of input 0."""
    emitter = step.emitter
    size = step.op("Size", step.raw(0))
    count = step.op("Range", emitter.integer(0), size, emitter.integer(1))
    return emitter.reshape_like(count, step.raw(0))


def _gather(step: Step, g: str) -> str:
    attributes = {"axis": step.attribute("axis", 0)}
    if step.node.op_type == "GatherND":
        attributes = {"batch_dims": step.attribute("batch_dims", 0)}
    picked = step.op(step.node.op_type, _numbers(step), step.raw(1), **attributes)
    return _scatter(step, g, picked)


def _slice(step: Step, g: str) -> str:
    constant = step.emitter.facts.constant
    steps = constant(step.raw(4)) if step.has(4) else None
    axes = constant(step.raw(3)) if step.has(3) else None
    if (step.has(4) and (steps is None or (steps != 1).any())) or axes is None:
        picked = step.op("Slice", _numbers(step), *step.node.input[1:])
        return _scatter(step, g, picked, repeats=False)
    return _padded_slice(step, g, [int(axis) for axis in axes])


def _padded_slice(step: Step, g: str, axes: list[int]) -> str:
    """Zeros before and behind the slice.

    How many is read off the slice of each axis' positions, because starts and ends may be
    negative or beyond the axis.
    """
    emitter, op = step.emitter, step.op
    shape = emitter.shape(step.raw(0))
    rank = op("Size", shape)
    before, behind, places = [], [], []
    for i, axis in enumerate(axes):
        size = emitter.dimension(step.raw(0), axis)
        end = op("Squeeze", size)
        positions = op("Range", emitter.integer(0), end, emitter.integer(1))
        start, stop = (_bound(step, position, i) for position in (1, 2))
        kept = op("Slice", positions, start, stop, emitter.integers(0))
        first = emitter.reduce("ReduceMin", op("Concat", kept, size, axis=0), [0])
        before.append(first)
        behind.append(op("Sub", op("Sub", size, first), op("Shape", kept)))
        places.append(op("Mod", emitter.integers(axis), rank))
    place = op("Concat", *places, axis=0)
    places_behind = op("Add", place, rank)
    twice = op("Reshape", op("Mul", rank, emitter.integer(2)), emitter.integers(1))
    pads = op(
        "ScatterElements",
        op("Expand", emitter.integers(0), twice),
        op("Concat", place, places_behind, axis=0),
        op("Concat", *before, *behind, axis=0),
    )
    return op("Pad", g, pads)


def _bound(step: Step, position: int, number: int) -> str:
    """int64[1]: one of the starts (input 1) or ends (input 2)."""
    picked = step.emitter.op("Gather", step.raw(position), step.emitter.integers(number), axis=0)
    return step.op("Cast", picked, to=TensorProto.INT64)


def _pad(step: Step, g: str) -> str:
    """Cuts the padding off: negative pads crop, positive ones of the gradient restore crops."""
    if step.attribute("mode", b"constant") != b"constant":
        raise NotDifferentiable("pads with copies of its input")
    cut = step.op("Neg", step.raw(1))
    axes = ("", step.raw(3)) if step.has(3) else ()
    return step.op("Pad", g, cut, *axes)


RULES: dict[str, Rule] = {
    "Gather": unary(_gather),
    "GatherElements": unary(_gather),
    "GatherND": unary(_gather),
    "Pad": unary(_pad),
    "Slice": unary(_slice),
}
"""By operator of the standard domain."""
