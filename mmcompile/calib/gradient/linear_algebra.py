"""Gradient rules of matrix products, convolutions and einsum.

A two-dimensional operand takes part transposed through Gemm's flags: a weight is neither copied
nor transposed in memory, which ONNX Runtime would do once for all when folding constants.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmcompile.calib.gradient.elementwise import shrink
from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


def _matmul(step: Step) -> Mapping[int, str]:
    """Y = A·B: g_A = g·Bᵀ and g_B = Aᵀ·g, summed over the axes of a broadcast."""
    ranks = step.rank(0), step.rank(1)
    if 1 in ranks:
        raise NotDifferentiable("multiplies a vector")
    gradients: dict[int, str] = {}
    if 0 in step.wanted:
        gradients[0] = _left(step, ranks[0], ranks[1])
    if 1 in step.wanted:
        gradients[1] = _right(step, ranks[0], ranks[1])
    return gradients


def _left(step: Step, left: int | None, right: int | None) -> str:
    if right != 2:
        product = _batched(step, step.gradient, step.input(1), right, "...mn,...kn->...mk")
        return _unbatched(step, product, 0)
    g = step.gradient if left == 2 else _rows(step, step.gradient, step.node.output[0])
    product = step.op("Gemm", g, step.input(1), transB=1)
    return product if left == 2 else step.emitter.reshape_like(product, step.raw(0))


def _right(step: Step, left: int | None, right: int | None) -> str:
    if right != 2:
        product = _batched(step, step.input(0), step.gradient, left, "...mk,...mn->...kn")
        return _unbatched(step, product, 1)
    a, g = step.input(0), step.gradient
    if left != 2:
        a, g = _rows(step, a, step.raw(0)), _rows(step, g, step.node.output[0])
    return step.op("Gemm", a, g, transA=1)


def _batched(step: Step, first: str, second: str, rank: int | None, equation: str) -> str:
    """A product of which the operand of the forward, of some rank, is transposed."""
    if rank is None:
        return step.op("Einsum", first, second, equation=equation)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    if equation.startswith("...mk"):
        return step.op("MatMul", step.op("Transpose", first, perm=swap), second)
    return step.op("MatMul", first, step.op("Transpose", second, perm=swap))


def _unbatched(step: Step, product: str, position: int) -> str:
    """Sums over the batch axes along which an operand was broadcast."""
    shapes = step.emitter.facts.shapes
    own, output = shapes.get(step.raw(position)), shapes.get(step.node.output[0])
    if own and output and None not in own[:-2] and own[:-2] == output[:-2]:
        return product
    return step.emitter.sum_to(product, step.emitter.shape(step.raw(position)))


def _rows(step: Step, value: str, shaped: str) -> str:
    """Reshape to [rows, last axis]; `shaped` is the forward's tensor of that shape."""
    return step.emitter.as_rows(value, step.emitter.dimension(shaped, -1))


def _gemm(step: Step) -> Mapping[int, str]:
    """Y = α·A′·B′ + β·C where ′ is a transposition or nothing."""
    g, alpha = step.gradient, step.attribute("alpha", 1.0)
    a_turned, b_turned = step.attribute("transA", 0), step.attribute("transB", 0)
    gradients: dict[int, str] = {}

    def product(first: str, second: str, a: int, b: int) -> str:
        return step.op("Gemm", first, second, alpha=alpha, transA=a, transB=b)

    if 0 in step.wanted:
        b = step.input(1)
        gradients[0] = product(b, g, b_turned, 1) if a_turned else product(g, b, 0, 1 - b_turned)
    if 1 in step.wanted:
        a = step.input(0)
        gradients[1] = product(g, a, 1, a_turned) if b_turned else product(a, g, 1 - a_turned, 0)
    if 2 in step.wanted:
        scaled = step.op("Mul", g, step.number(step.attribute("beta", 1.0)))
        gradients[2] = shrink(step, scaled, 2)
    return gradients


def _einsum(step: Step) -> Mapping[int, str]:
    """Each operand's gradient is an einsum of the output's gradient and the other operands."""
    equation = step.attribute("equation", b"").decode().replace(" ", "")
    if "->" not in equation or "..." in equation:
        raise NotDifferentiable(f"has an equation that is not covered: {equation}")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    gradients = {}
    for position in sorted(step.wanted):
        term = terms[position]
        others = [*terms[:position], *terms[position + 1 :]]
        if not set(term) <= set("".join([output, *others])) or len(set(term)) < len(term):
            raise NotDifferentiable(f"sums or repeats an index within an operand: {equation}")
        names = [step.input(i) for i in range(len(terms)) if i != position]
        back = f"{','.join([output, *others])}->{term}"
        value = step.op("Einsum", step.gradient, *names, equation=back)
        gradients[position] = step.emitter.sum_to(value, step.emitter.shape(step.raw(position)))
    return gradients


def _convolution(step: Step) -> Mapping[int, str]:
    """The transposed convolution, cut or filled up with zeros to the input's size.

    Without pads it yields the gradient of the padded input as far as any window reaches; one Pad
    takes the leading pads off and adds or removes what is missing at the end.
    """
    step.only(0)
    if step.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotDifferentiable("pads automatically")
    rank = step.rank(0)
    if rank is None:
        raise NotDifferentiable("convolves a tensor whose rank is not known")
    emitter, spatial = step.emitter, rank - 2
    names = ("strides", "dilations")
    given = {name: list(step.attribute(name, [1] * spatial)) for name in names}
    kernel = step.attribute("kernel_shape", None)
    if kernel is not None:
        given["kernel_shape"] = list(kernel)
    group = step.attribute("group", 1)
    full = step.op("ConvTranspose", step.gradient, step.input(1), group=group, **given)
    begin = [0, 0, *list(step.attribute("pads", [0] * 2 * spatial))[:spatial]]
    target = step.op("Add", emitter.shape(step.raw(0)), emitter.integers(*begin))
    end = step.op("Sub", target, step.op("Shape", full))
    start = emitter.integers(*(-pad for pad in begin))
    return {0: step.op("Pad", full, step.op("Concat", start, end, axis=0))}


RULES: dict[str, Rule] = {
    "Conv": _convolution,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""By operator of the standard domain."""
