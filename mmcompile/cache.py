"""The user's cache folder: calibration statistics, by the content they were computed from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

VARIABLE = "MMCOMPILE_CACHE_DIR"


def cache_folder() -> Path:
    """`$MMCOMPILE_CACHE_DIR`, else `mmcompile` in the user's cache folder (XDG).

    A user without a home, as in some containers, has it in the folder for temporary files.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "mmcompile"
    try:
        return Path.home() / ".cache" / "mmcompile"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"mmcompile-{os.getuid()}"


def cache_key(*parts: object) -> str:
    """A file name that stands for the parts: SHA-256 of their representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
