"""Options as fields of dataclasses: what the Python API takes and the command line shows.

A field made by `option` carries its help, and the name that it has on the command line where that
is not its own. `mmcompile.cli.generated` makes the command line's options of such fields, so that
an option is written once.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any

from mmcompile.errors import UsageError


def option(
    default: Any,
    about: str,
    *,
    flag: str | None = None,
    metavar: str | None = None,
    span: tuple[float | None, float | None] = (None, None),
    choices: tuple[Any, ...] = (),
) -> Any:
    """A field of a dataclass of options.

    Args:
        default: its default, or a factory of it (a function without arguments).
        about: one or two sentences, for `--help`.
        flag: its name on the command line; None makes it of the field's.
        metavar: what the command line calls its value; None for the type's own.
        span: the least and the largest value allowed, of numbers.
        choices: the values allowed; those of an enumeration are known without.
    """
    metadata = {
        "about": about,
        "flag": flag,
        "metavar": metavar,
        "span": span,
        "choices": choices,
    }
    if callable(default) and not isinstance(default, enum.EnumMeta):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(field: dataclasses.Field[Any]) -> str:
    """An option as it is written on the command line, e.g. `--target-bits`."""
    return str(field.metadata["flag"] or "--" + field.name.replace("_", "-"))


def option_fields(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a dataclass that are options."""
    return tuple(field for field in dataclasses.fields(kind) if "about" in field.metadata)


def destination_of(field: dataclasses.Field[Any]) -> str:
    """The Python name of an option's value among those of a command, e.g. `target_bits`."""
    return flag_of(field).lstrip("-").replace("-", "_")


def field_types(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields by name, None taken out of unions with it."""
    return {name: _plain(hint) for name, hint in typing.get_type_hints(kind).items()}


def check_choices(options: Any) -> None:
    """Turns texts into the members of enumerations, and refuses what is no choice.

    For `__post_init__` of frozen dataclasses.

    Raises:
        UsageError: a value is none of those allowed; it names the option.
    """
    kinds = field_types(type(options))
    for field in option_fields(type(options)):
        kind, value = kinds[field.name], getattr(options, field.name)
        if value is None:
            continue
        choices: tuple[Any, ...] = field.metadata["choices"]
        if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
            choices = tuple(member.value for member in kind)
        if choices and value not in choices:
            listed = ", ".join(map(str, choices))
            reason, remedy = f"no '{value}'", f"use one of {listed}"
            raise UsageError("unknown-choice", flag_of(field), reason, remedy)
        if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
            object.__setattr__(options, field.name, kind(value))


def _plain(hint: Any) -> Any:
    """A type without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return parts[0] if len(parts) == 1 else hint
    return hint
