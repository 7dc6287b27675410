"""`Finding`: one thing that was looked for."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked for.

    Attributes:
        name: what.
        present: whether it is usable.
        found: version or place, or why it is not usable.
        cost: what cannot be done without it.
        remedy: how to get it.
        required: nothing works without it.
    """

    name: str
    present: bool
    found: str
    cost: str
    remedy: str
    required: bool = False


def looked_for(
    name: str, cost: str, remedy: str
) -> tuple[Callable[[str], Finding], Callable[[str], Finding]]:
    """Two functions that say what was found: it is there, and it is not or cannot be used."""
    here = functools.partial(Finding, name, True, cost=cost, remedy=remedy)
    missing = functools.partial(Finding, name, False, cost=cost, remedy=remedy)
    return here, missing
