"""The table of gradient rules, and the operators through which no gradient flows."""

from __future__ import annotations

import onnx

from mmcompile.calib.gradient import (
    activations,
    elementwise,
    indexing,
    linear_algebra,
    normalization,
    reductions,
    shapes,
)
from mmcompile.calib.gradient.rule import Rule

STANDARD_DOMAINS = ("", "ai.onnx")

RULES: dict[tuple[str, str], Rule] = {
    (domain, name): rule
    for domain, rules in (
        ("", elementwise.RULES),
        ("", activations.RULES),
        ("", normalization.RULES),
        ("", reductions.RULES),
        ("", shapes.RULES),
        ("", indexing.RULES),
        ("", linear_algebra.RULES),
        ("com.microsoft", activations.MICROSOFT_RULES),
        ("com.microsoft", normalization.MICROSOFT_RULES),
    )
    for name, rule in rules.items()
}
"""Rules by domain and operator."""

FLAT = frozenset(
    """
    And ArgMax ArgMin BitShift Ceil ConstantOfShape Equal EyeLike Floor Greater GreaterOrEqual
    IsInf IsNaN Less LessOrEqual NonZero Not OneHot Or QuantizeLinear RandomNormalLike
    RandomUniformLike Range Round Shape Sign Size Xor
    """.split()
)
"""Operators whose outputs do not change with small changes of their inputs, or do so in jumps."""


def rule_of(node: onnx.NodeProto) -> Rule | None:
    """The node's rule, None where there is none."""
    return RULES.get((_domain(node), node.op_type))


def is_flat(node: onnx.NodeProto) -> bool:
    """Whether no gradient flows through the node at all."""
    return not _domain(node) and node.op_type in FLAT


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain in STANDARD_DOMAINS else node.domain
