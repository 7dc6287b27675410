"""Where the compiled libraries are: the kernels' and the TensorRT plugin's."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """A library that mmcompile comes with.

    Attributes:
        file: its file name.
        variable: environment variable that names another.
    """

    file: str
    variable: str

    def find(self) -> Path | None:
        """What the variable names, else the package's, else that of the checkout's `make plugin`.

        The variable's path is returned even if nothing is there: it is what the user wants.
        """
        if named := os.environ.get(self.variable):
            return Path(named)
        places = (PACKAGE / "lib", PACKAGE.parent / "build" / "cuda")
        return next((p / self.file for p in places if (p / self.file).is_file()), None)


KERNELS = Library("libmmcompile_kernels.so", "MMCOMPILE_KERNELS")
PLUGIN = Library("libmmcompile_plugin.so", "MMCOMPILE_PLUGIN")
MISSING = "not installed with this package, and not built"


def remedy(library: Library) -> str:
    """How to get it."""
    return f"build it with `make plugin` in the source (needs nvcc 13.0), or set {library.variable}"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
