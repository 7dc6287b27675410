"""Progress of long stages, told through one small interface; the terminal bar is rich's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What a stage needs to tell how far it is."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Yields the items and counts them under a title."""
        ...


class Silent:
    """Shows nothing."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Yields the items."""
        del title, total
        yield from items


class Terminal:
    """A rich progress bar on standard error, gone when the stage ends."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Yields the items under a bar."""
        from rich.console import Console
        from rich.progress import track

        yield from track(
            items,
            description=title,
            total=total,
            console=Console(stderr=True),
            transient=True,
        )
