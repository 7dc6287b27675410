"""Files of a run: their names, and how one that a user names is checked and written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.output import disk_errors

PLAN_FILE = "plan.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
FAILED = "failed-"
"""What the reports of a model that failed its verification are prefixed with."""


def check_name(path: Path) -> None:
    """Refuses a file or folder whose path is no text: ONNX Runtime cannot open it.

    Raises:
        UsageError: the path is not valid UTF-8.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        reason = "its path is not valid UTF-8, which ONNX Runtime asks for"
        raise UsageError("path-no-text", shown, reason, "rename the file or folder") from None


def check_target(path: Path, sources: Iterable[Path] = ()) -> None:
    """Refuses a place that cannot take a file, or that holds one that is read.

    Raises:
        UsageError: it is no regular file, or one of `sources`.
        EnvironmentProblem: its folder does not exist.
    """
    if not path.parent.is_dir():
        reason = f"there is no folder {path.parent}"
        raise EnvironmentProblem("output-no-folder", path, reason, "make it, or name another file")
    if path.exists() and not path.is_file():
        reason = "it is there, and no regular file"
        raise UsageError("output-no-file", path, reason, "name a file to write")
    if any(source.exists() and path.samefile(source) for source in sources if path.exists()):
        reason = "this file is read; it would be replaced"
        raise UsageError("output-is-source", path, reason, "name another file")


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place and moves it there: whole or not at all.

    Raises:
        EnvironmentProblem: the disk is full or fails; an earlier file is intact.
    """
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
