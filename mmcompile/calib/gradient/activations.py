"""Gradient rules of activation functions.

Notation: x the input, y the output, g the gradient of y. Functions that are not here but have a
definition in the ONNX standard (Mish, HardSwish, Celu, …) are expanded into their definition.
"""

from __future__ import annotations

import math

from mmcompile.calib.gradient.elementwise import unary
from mmcompile.calib.gradient.rule import NotDifferentiable, Rule, Step


def _where_positive(step: Step, positive: str, other: str) -> str:
    above = step.op("Greater", step.input(0), step.number(0))
    return step.op("Where", above, positive, other)


def _sigmoid(step: Step, g: str) -> str:
    """y·(1 − y)."""
    y = step.output()
    return step.product(g, y, step.op("Sub", step.number(1), y))


def _tanh(step: Step, g: str) -> str:
    """1 − y²."""
    y = step.output()
    return step.op("Mul", g, step.op("Sub", step.number(1), step.op("Mul", y, y)))


def _erf(step: Step, g: str) -> str:
    """2/√π · exp(−x²)."""
    x = step.input(0)
    bell = step.op("Exp", step.op("Neg", step.op("Mul", x, x)))
    return step.product(g, step.number(2 / math.sqrt(math.pi)), bell)


def _gelu(step: Step, g: str) -> str:
    if step.attribute("approximate", b"none") == b"tanh":
        return _gelu_tanh(step, g)
    return _gelu_exact(step, g)


def _gelu_exact(step: Step, g: str) -> str:
    """For y = x·Φ(x): Φ(x) + x·φ(x), Φ and φ the standard normal distribution and density."""
    x = step.input(0)
    erf = step.op("Erf", step.op("Mul", x, step.number(math.sqrt(0.5))))
    cdf = step.op("Mul", step.op("Add", erf, step.number(1)), step.number(0.5))
    bell = step.op("Exp", step.product(x, x, step.number(-0.5)))
    density = step.op("Mul", bell, step.number(1 / math.sqrt(2 * math.pi)))
    return step.op("Mul", g, step.op("Add", cdf, step.op("Mul", x, density)))


def _gelu_tanh(step: Step, g: str) -> str:
    """For y = x/2·(1 + t), t = tanh u, u = √(2/π)·(x + c·x³), c = 0.044715.

    It is (1 + t)/2 + x/2·(1 − t²)·√(2/π)·(1 + 3c·x²).
    """
    x, c, root = step.input(0), 0.044715, math.sqrt(2 / math.pi)
    square = step.op("Mul", x, x)

    def polynomial(factor: float) -> str:
        """√(2/π)·(1 + factor·x²)."""
        inner = step.op("Add", step.op("Mul", square, step.number(factor)), step.number(1))
        return step.op("Mul", inner, step.number(root))

    t = step.op("Tanh", step.op("Mul", x, polynomial(c)))
    one = step.number(1)
    tail = step.op("Sub", one, step.op("Mul", t, t))
    second = step.product(x, tail, polynomial(3 * c))
    both = step.op("Add", step.op("Add", one, t), second)
    return step.product(g, both, step.number(0.5))


def swish(step: Step, g: str, alpha: float) -> str:
    """For y = x·s, s = σ(αx): s + αx·s·(1 − s) = s·(1 + αx·(1 − s))."""
    x = step.input(0)
    scaled = x if alpha == 1 else step.op("Mul", x, step.number(alpha))
    s = step.op("Sigmoid", scaled)
    inner = step.op("Mul", scaled, step.op("Sub", step.number(1), s))
    return step.product(g, s, step.op("Add", inner, step.number(1)))


def _softplus(step: Step, g: str) -> str:
    return step.op("Mul", g, step.op("Sigmoid", step.input(0)))


def _softsign(step: Step, g: str) -> str:
    """For y = x/(1 + |x|): (1 + |x|)^(−2)."""
    denominator = step.op("Add", step.op("Abs", step.input(0)), step.number(1))
    return step.op("Div", step.op("Div", g, denominator), denominator)


def _relu(step: Step, g: str) -> str:
    return _where_positive(step, g, step.number(0))


def _leaky_relu(step: Step, g: str) -> str:
    return _where_positive(step, g, step.op("Mul", g, step.number(step.attribute("alpha", 0.01))))


def _hard_sigmoid(step: Step, g: str) -> str:
    """For y = min(1, max(0, αx + β)): α between the bounds."""
    y, zero = step.output(), step.number(0)
    inside = step.op("And", step.op("Greater", y, zero), step.op("Less", y, step.number(1)))
    scaled = step.op("Mul", g, step.number(step.attribute("alpha", 0.2)))
    return step.op("Where", inside, scaled, zero)


def _elu(step: Step, g: str) -> str:
    """For y = α·(exp x − 1) below zero: y + α there."""
    below = step.op("Add", step.output(), step.number(step.attribute("alpha", 1.0)))
    return _where_positive(step, g, step.op("Mul", g, below))


RULES: dict[str, Rule] = {
    "Elu": unary(_elu),
    "Erf": unary(_erf),
    "Gelu": unary(_gelu),
    "HardSigmoid": unary(_hard_sigmoid),
    "LeakyRelu": unary(_leaky_relu),
    "Relu": unary(_relu),
    "Sigmoid": unary(_sigmoid),
    "Softplus": unary(_softplus),
    "Softsign": unary(_softsign),
    "Swish": unary(lambda s, g: swish(s, g, s.attribute("alpha", 1.0))),
    "Tanh": unary(_tanh),
}
"""By operator of the standard domain."""


def _fast_gelu(step: Step, g: str) -> str:
    if step.has(1):
        raise NotDifferentiable("adds a bias before it")
    return _gelu_tanh(step, g)


MICROSOFT_RULES: dict[str, Rule] = {
    "FastGelu": unary(_fast_gelu),
    "Gelu": unary(_gelu_exact),
    "QuickGelu": unary(lambda s, g: swish(s, g, s.attribute("alpha", 1.702))),
}
"""By operator of `com.microsoft`, which ONNX Runtime's optimizer writes."""
