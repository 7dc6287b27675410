"""`--config`: defaults for a command's options from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mmcompile.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

_REMEDY = 'write options as in policy = "mxfp8", html = false, exclude = ["*head*"]'


def config_option(command: Command) -> Command:
    """The option; what the command line says wins over the file."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with defaults for these options, by their long names.",
    )(command)


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOML's and UTF-8's errors are ValueErrors
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError("config-unreadable", path, reason, _REMEDY) from error
    options = {
        name.removeprefix("--"): option
        for option in context.command.params
        if isinstance(option, click.Option) and option is not parameter
        for name in option.opts
        if name.startswith("--")
    }
    context.default_map = {
        **(context.default_map or {}),
        **dict(_default(context, path, options, key, value) for key, value in settings.items()),
    }


def _default(
    context: click.Context, path: Path, options: dict[str, click.Option], key: str, value: object
) -> tuple[str, object]:
    """One setting as click takes it: the option's Python name and a value that was checked.

    Raises:
        UsageError: there is no such option, or the value does not suit it.
    """
    option = options.get(key.replace("_", "-"))
    if option is None or option.name is None:
        known = ", ".join(sorted(options))
        raise UsageError("config-unknown-key", path, f"no option '{key}'", f"use {known}")
    values = value if isinstance(value, list) else [value]
    kind = bool if option.is_flag else str | int | float
    suits = all(isinstance(v, kind) and isinstance(v, bool) == option.is_flag for v in values)
    if not suits or (isinstance(value, list) and not option.multiple):
        reason = f"{key} = {value!r} is no value of --{key.replace('_', '-')}"
        raise UsageError("config-value", path, reason, _REMEDY)
    texts = values if option.is_flag else [str(v) for v in values]
    default = texts if option.multiple else texts[0]
    try:
        option.type_cast_value(context, default)
    except click.BadParameter as error:
        raise UsageError("config-value", f"{path}, {key}", error.message, _REMEDY) from error
    return option.name, default
