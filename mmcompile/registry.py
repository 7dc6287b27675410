"""Named things that other packages may add to: policies, targets, back ends.

A package adds one by an entry point, a test or a script by `Registry.add`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from mmcompile.errors import EnvironmentProblem

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things by name, in the order in which they were added; those of entry points come last.

    Args:
        group: the entry points that add to it; they are read when somebody first asks.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._known: dict[str, T] = {}
        self._entered = False

    def add(self, name: str, thing: T) -> T:
        """Adds one, or replaces the one of that name; returns it."""
        self._known[name] = thing
        return thing

    def remove(self, name: str) -> None:
        """Takes one away."""
        del self._known[name]

    def __getitem__(self, name: str) -> T:
        """The one of that name."""
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._all())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all())

    def _all(self) -> dict[str, T]:
        """With what entry points add.

        Raises:
            EnvironmentProblem: a package's entry point cannot be loaded.
        """
        if not self._entered:
            self._entered = True
            for entry in importlib.metadata.entry_points(group=self._group):
                try:
                    self._known.setdefault(entry.name, entry.load())
                except Exception as error:  # whatever another package's import may raise
                    where = f"entry point {entry.name} = {entry.value}"
                    reason = f"it cannot be loaded: {error}"
                    remedy = "update or uninstall the package that it belongs to"
                    raise EnvironmentProblem("plugin-broken", where, reason, remedy) from error
        return self._known
