"""Command-line options made of dataclasses of options, and back."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mmcompile.options import destination_of, field_types, flag_of, option_fields

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")
FILE = click.Path(path_type=Path)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several option decorators as one, in the order in which help shows them."""

    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def options_from(
    *kinds: type, leave_out: Iterable[str] = (), only: Iterable[str] = ()
) -> Callable[[Command], Command]:
    """Options of the fields of dataclasses; a name that several have becomes one option.

    Args:
        kinds: the dataclasses.
        leave_out: names of fields that the command does not have.
        only: names of the fields that it has; empty for all others.
    """
    made: dict[str, Callable[[Command], Command]] = {}
    for kind in kinds:
        hints = field_types(kind)
        for field in option_fields(kind):
            if field.name in leave_out or (only and field.name not in only):
                continue
            made.setdefault(destination_of(field), _option(field, hints[field.name]))
    return options(*made.values())


def taken(kind: Callable[..., T], values: Mapping[str, Any], fields: type | None = None) -> T:
    """A dataclass of options from a command's values.

    Args:
        kind: makes it.
        values: of the command; options that it does not have keep their defaults.
        fields: the dataclass that has the fields; None where `kind` is it.
    """
    owner = fields or typing.cast(type, kind)
    hints = field_types(owner)
    found = {}
    for field in option_fields(owner):
        value = values.get(destination_of(field))
        if value is not None:
            found[field.name] = _value(hints[field.name], value)
    return kind(**found)


def _option(field: dataclasses.Field[Any], kind: Any) -> Callable[[Command], Command]:
    """The command line's option of a field."""
    metadata, flag = field.metadata, flag_of(field)
    shared: dict[str, Any] = {"help": metadata["about"]}
    if field.default is not dataclasses.MISSING and not isinstance(field.default, tuple):
        default = field.default
        shared["default"] = default.value if isinstance(default, enum.Enum) else default
        shared["show_default"] = field.default is not None and kind is not bool
    if kind is bool:
        return click.option(flag, is_flag=True, **shared)
    if isinstance(field.default, tuple) and not field.default:
        shared["multiple"] = True
    if metadata["metavar"]:
        shared["metavar"] = metadata["metavar"]
    if metadata["choices"] and shared.get("default") is not None:
        shared["default"] = str(shared["default"])
    return click.option(flag, type=_click_type(kind, metadata), **shared)


def _click_type(kind: Any, metadata: Mapping[str, Any]) -> Any:
    """What click checks a value by."""
    least, most = metadata["span"]
    if metadata["choices"]:
        return click.Choice([str(choice) for choice in metadata["choices"]])
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return click.Choice([member.value for member in kind])
    if kind in (int, float) and (least, most) != (None, None):
        return click.IntRange(least, most) if kind is int else click.FloatRange(least, most)
    return FILE if kind is Path else kind if kind in (int, float) else str


def _value(kind: Any, value: Any) -> Any:
    """A value as the dataclass wants it."""
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts)
    if kind is int and isinstance(value, str):
        return int(value)
    return value
