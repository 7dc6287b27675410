"""The user's cache folder: calibration statistics, by the content they were computed from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing as npt

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


def save_arrays(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Writes arrays as .npz, beside the file's place, and moves them there: whole or not at all."""
    import numpy as np

    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
