"""Versioned JSON documents that mmcompile writes and reads: plans, reports, analyses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from mmcompile.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)


class _Versioned(msgspec.Struct):
    """What documents of all versions have in common."""

    version: int


@dataclass(frozen=True)
class Document(Generic[T]):
    """A kind of document.

    Attributes:
        name: what it is called, e.g. `plan`; errors have codes of it.
        kind: its struct.
        version: the version that is read.
        remedy: what to give instead of a file that is none.
        renewal: what to do about one of another version.
    """

    name: str
    kind: type[T]
    version: int
    remedy: str
    renewal: str

    def read(self, path: Path) -> T:
        """Reads a file.

        Raises:
            UsageError: it is missing, is no such document, or has another version.
        """
        try:
            content = path.read_bytes()
            version = msgspec.json.decode(content, type=_Versioned).version
            if version != self.version:
                found = f"{self.name} version {version}"
                reason = f"{found}, this mmcompile reads version {self.version}"
                raise UsageError(f"{self.name}-version", path, reason, self.renewal)
            return msgspec.json.decode(content, type=self.kind)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"{self.name}-unreadable", path, reason, self.remedy) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"{self.name}-malformed", path, str(error), self.remedy) from error
