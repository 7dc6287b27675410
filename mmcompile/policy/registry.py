"""Which policies there are, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mmcompile.errors import UsageError
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Policy
from mmcompile.policy.uniform import UNIFORM, UniformPolicy
from mmcompile.registry import Registry

PolicyKind = Callable[..., Policy]
"""Makes a policy of its options: its dataclass, or that with some options set."""

POLICIES: Registry[PolicyKind] = Registry("mmcompile.policies")
DEFAULT = CostPolicy.NAME
POLICIES.add(CostPolicy.NAME, CostPolicy)
POLICIES.add(MicroMixPolicy.NAME, MicroMixPolicy)
for _name in UNIFORM:
    POLICIES.add(_name, functools.partial(UniformPolicy, name=_name))


def make_policy(name: str, **options: Any) -> Policy:
    """A policy by its name.

    Raises:
        UsageError: there is none of that name, or an option is impossible.
    """
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise UsageError("unknown-choice", "--policy", f"no '{name}'", f"use one of {known}")
    return POLICIES[name](**options)


def options_of(kind: PolicyKind) -> type:
    """The dataclass that has a kind's options."""
    made: Any = kind.func if isinstance(kind, functools.partial) else kind
    return made  # type: ignore[no-any-return]


def rounds_with_feedback(name: str) -> bool:
    """Whether plans of a policy have their weights rounded with error feedback by default.

    False for policies that are not known here, whose plans may come from elsewhere.
    """
    return name in POLICIES and bool(getattr(options_of(POLICIES[name]), "feedback", False))
