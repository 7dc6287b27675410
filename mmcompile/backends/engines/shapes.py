"""Optimization profiles: which shapes an engine is built for.

The notation is polygraphy's, with the three shapes of a profile in one place:
`input_ids:[1x1,1x512,8x2048]` is smallest, optimal and largest; one shape alone is all three.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.errors import UsageError

BATCH = (1, 1, 8)
"""Sizes of a batch dimension that nobody has said anything about."""
LENGTH = (1, 128, 512)
"""Sizes of any other dynamic dimension without data to go by."""
_ENTRY = re.compile(r"(?P<name>\S.*?):\[(?P<shapes>[\dx,\[\] ]*)\](?:[ ,;]+|$)")
_REMEDY = "write NAME:[MIN,OPT,MAX], as in --shapes 'input_ids:[1x1,1x512,8x2048]'"

Shape: TypeAlias = tuple[int, ...]


class Span(msgspec.Struct, frozen=True):
    """Smallest, optimal and largest shape of an input."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether an engine that was built for this span takes the shape."""
        return len(shape) == len(self.min) and all(
            least <= size <= most
            for least, size, most in zip(self.min, shape, self.max, strict=True)
        )

    def __str__(self) -> str:
        """In the notation of `--shapes`."""
        return f"[{','.join('x'.join(map(str, s)) for s in (self.min, self.opt, self.max))}]"


Profile: TypeAlias = dict[str, Span]
"""A span for every input."""

Key: TypeAlias = str | tuple[str, int]
"""A dynamic dimension: its symbol, or the input and axis where it has none."""


def make_profiles(
    asked: Sequence[str], interface: Interface, observed: Mapping[str, Sequence[Shape]]
) -> tuple[Profile, ...]:
    """The profiles that were asked for, completed; or one from what is known of the model.

    Inputs that were not mentioned follow those that share symbolic dimensions with them, then the
    observed shapes, then `BATCH` and `LENGTH`.

    Args:
        asked: values of `--shapes`; an input that comes again starts the next profile.
        interface: the model's.
        observed: shapes of inputs, as in the calibration data; may be empty.

    Returns:
        At least one profile; none where no input is dynamic and nothing was asked for.

    Raises:
        UsageError: the notation or the shapes are wrong.
    """
    specs = {spec.name: spec for spec in interface.inputs}
    profiles = _parse(asked)
    if not profiles and any(spec.shape is None for spec in interface.inputs):
        return ()  # an error only for who builds: TensorRT asks for profiles then
    for profile in profiles:
        for name, span in profile.items():
            if name not in specs:
                raise _error(name, "the model has no such input", f"use {', '.join(specs)}")
            _check(specs[name], span)
    if not profiles and not interface.is_dynamic:
        return ()
    defaults = _defaults(interface, observed)
    return tuple(_complete(profile, interface, defaults) for profile in profiles or [{}])


def _parse(asked: Sequence[str]) -> list[Profile]:
    profiles: list[Profile] = []
    for text in map(str.strip, asked):
        position = 0
        while position < len(text):
            entry = _ENTRY.match(text, position)
            if entry is None:
                raise UsageError("shapes-syntax", f"--shapes {text}", "it is not clear", _REMEDY)
            position = entry.end()
            if not profiles or entry["name"] in profiles[-1]:
                profiles.append({})
            profiles[-1][entry["name"]] = _span(text, entry["shapes"])
    return profiles


def _span(text: str, body: str) -> Span:
    lists = re.findall(r"\[([^\[\]]*)\]", body)
    shapes = [re.split(r"[x,]", part) for part in lists] if lists else []
    if not lists:
        shapes = [part.split("x") for part in body.split(",")]
    try:
        sizes = [tuple(int(size) for size in shape if size.strip()) for shape in shapes]
    except ValueError:
        raise UsageError("shapes-syntax", f"--shapes {text}", "it is not clear", _REMEDY) from None
    if len(sizes) not in (1, 3):
        reason = f"there are {len(sizes)} shapes"
        raise UsageError("shapes-syntax", f"--shapes {text}", reason, _REMEDY)
    return Span(sizes[0], sizes[len(sizes) // 2], sizes[-1])


def _check(spec: TensorSpec, span: Span) -> None:
    declared = spec.shape or ()
    for shape in (span.min, span.opt, span.max):
        if len(shape) != len(declared):
            reason = f"{len(shape)} sizes are given, the model declares {spec}"
            raise _error(spec.name, reason, _REMEDY)
    for axis, size in enumerate(declared):
        least, best, most = span.min[axis], span.opt[axis], span.max[axis]
        if not 0 < least <= best <= most:
            reason = f"axis {axis} has {least}, {best}, {most}, which do not ascend from 1 on"
            raise _error(spec.name, reason, _REMEDY)
        if isinstance(size, int) and (least, most) != (size, size):
            reason = f"axis {axis} is fixed in the model: {spec}"
            raise _error(spec.name, reason, f"give {size} there, or export it dynamic")


def _complete(profile: Profile, interface: Interface, defaults: Mapping[Key, Shape]) -> Profile:
    bound: dict[Key, tuple[Shape, str]] = {}
    for spec in interface.inputs:
        if span := profile.get(spec.name):
            for axis, key in _dynamic(spec):
                sizes = (span.min[axis], span.opt[axis], span.max[axis])
                known, source = bound.setdefault(key, (sizes, spec.name))
                if known != sizes:
                    reason = f"'{key}' is {sizes} here and {known} in {source}"
                    raise _error(spec.name, reason, "give one dimension the same sizes everywhere")
    sizes_of = {**defaults, **{key: sizes for key, (sizes, _) in bound.items()}}
    return {
        spec.name: profile.get(spec.name) or _filled(spec, sizes_of) for spec in interface.inputs
    }


def _filled(spec: TensorSpec, sizes_of: Mapping[Key, Shape]) -> Span:
    keys = dict(_dynamic(spec))
    per_axis = [
        sizes_of[keys[axis]] if axis in keys else (int(size or 0),) * 3
        for axis, size in enumerate(spec.shape or ())
    ]
    least, best, most = (tuple(axis[i] for axis in per_axis) for i in range(3))
    return Span(least, best, most)


def _dynamic(spec: TensorSpec) -> list[tuple[int, Key]]:
    """The dynamic axes with their keys."""
    return [
        (axis, size if isinstance(size, str) else (spec.name, axis))
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    ]


def _defaults(interface: Interface, observed: Mapping[str, Sequence[Shape]]) -> dict[Key, Shape]:
    """Smallest, optimal and largest size of every dynamic dimension."""
    seen: dict[Key, list[int]] = {}
    batches: set[Key] = set()
    for spec in interface.inputs:
        for axis, key in _dynamic(spec):
            sizes = seen.setdefault(key, [])
            sizes.extend(shape[axis] for shape in observed.get(spec.name, ()) if axis < len(shape))
            # The first of several axes is the batch, as everywhere in this compiler.
            if axis == 0 and len(spec.shape or ()) > 1:
                batches.add(key)
    found: dict[Key, Shape] = {}
    for key, sizes in seen.items():
        least, best, most = BATCH if key in batches else LENGTH
        if sizes:
            best = max(1, round(statistics.median(sizes)))
            most = max(most, *sizes) if key in batches else max(1, *sizes)
        found[key] = (least, best, most)
    return found


def trtexec_shapes(profile: Mapping[str, Span]) -> list[str]:
    """A profile as trtexec's arguments, quoted for a shell."""
    return [
        shlex.quote(f"--{which}Shapes=" + ",".join(_each(profile, which, "{}:{}", "x")))
        for which in ("min", "opt", "max")
    ]


def polygraphy_shapes(profile: Mapping[str, Span]) -> list[str]:
    """A profile as polygraphy's arguments, quoted for a shell."""
    arguments = []
    for which in ("min", "opt", "max"):
        arguments.append(f"--trt-{which}-shapes")
        arguments += map(shlex.quote, _each(profile, which, "{}:[{}]", ","))
    return arguments


def _each(profile: Mapping[str, Span], which: str, form: str, join: str) -> Iterable[str]:
    for name, span in profile.items():
        yield form.format(name, join.join(map(str, getattr(span, which))))


def _error(name: str, reason: str, remedy: str) -> UsageError:
    return UsageError("shapes-mismatch", f"--shapes, input {name}", reason, remedy)
