"""The sizes at which a model is benchmarked: batch × sequence, and the input shapes of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from mmcompile.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every input, by name."""


class Point(msgspec.Struct, frozen=True, order=True):
    """A size.

    Attributes:
        batch: sequences at a time.
        sequence: tokens of each; 1 stands for a decoding step.
    """

    batch: int
    sequence: int

    @property
    def rows(self) -> int:
        """M of every linear layer."""
        return self.batch * self.sequence

    @property
    def phase(self) -> str:
        """`decode` where each sequence has one token, else `prefill`."""
        return "decode" if self.sequence == 1 else "prefill"

    def __str__(self) -> str:
        """As users write it."""
        return f"{self.batch}x{self.sequence}"


DEFAULT_POINTS = (
    Point(1, 1),
    Point(8, 1),
    Point(64, 1),
    Point(1, 128),
    Point(1, 512),
    Point(1, 2048),
    Point(8, 2048),
)


def parse_point(text: str) -> Point:
    """A point from `8x512`; `8x1` is a decoding step of eight sequences.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([1-9]\d{0,6})[x×]([1-9]\d{0,6})", text.strip())
    if found is None:
        remedy = "write batch x sequence, such as 1x512, or 8x1 for decoding"
        raise UsageError("point-malformed", "--point", f"'{text}' is no size", remedy)
    return Point(int(found[1]), int(found[2]))


def input_shapes(inputs: Sequence[tuple[str, Sequence[int | str | None]]], point: Point) -> Shapes:
    """Shapes of a model's inputs at a point.

    Dimensions with a number keep it. A named one is the batch or the sequence if its name says so
    (`batch`; `seq`, `len`, `token`); else the first of an input is the batch, others the sequence.

    Args:
        inputs: name and dimensions of each input.
        point: the size.

    Raises:
        UsageError: an input holds earlier keys and values, whose length no point tells.
    """
    shapes = {}
    for name, dimensions in inputs:
        if re.search(r"past|cache", name) and any(not isinstance(d, int) for d in dimensions):
            reason = "it holds earlier keys and values; a point does not tell how many"
            remedy = "export the model without a cache, or with its sizes fixed"
            raise UsageError("bench-cache-input", f"input {name}", reason, remedy)
        shapes[name] = tuple(
            d if isinstance(d, int) else _size(d, index, point)
            for index, d in enumerate(dimensions)
        )
    return shapes


def _size(dimension: str | None, index: int, point: Point) -> int:
    name = (dimension or "").lower()
    if "batch" in name:
        return point.batch
    if re.search(r"seq|len|token", name):
        return point.sequence
    return point.batch if index == 0 else point.sequence
