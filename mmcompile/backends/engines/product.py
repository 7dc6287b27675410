"""`Product`: what tells NVIDIA's builders of engines apart, as data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable

import msgspec


class Product(msgspec.Struct, frozen=True):
    """A builder of engines with TensorRT's API.

    Attributes:
        backend: the back end's name.
        title: the product's name.
        module: its Python module.
        runtimes: modules that run engines which hold their plugin; the first that is installed is
            taken. `module` alone where there are no smaller ones.
        registries: modules that have a plugin registry, the complete one first.
        distributions: names of the package that brings `module`, as package managers know it.
        install: how to get it.
        oldest: the oldest release that is supported, e.g. (10, 13).
        newest_major: the newest major release that is supported.
        typed_since: the major release since which its networks are strongly typed only.
        capabilities: the compute capabilities that it builds for, e.g. 120; empty for every one.
        ahead_of_time: it builds for a GPU that is not here, and measures nothing.
        compatible: an engine that holds its plugin runs with later releases of the major one.
        isolated: it is run in a process of its own, since it can end the process.
        triton: NVIDIA's Triton server runs its engines.
    """

    backend: str
    title: str
    module: str
    runtimes: tuple[str, ...]
    registries: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    oldest: tuple[int, int]
    newest_major: int
    typed_since: int = 0
    capabilities: tuple[int, ...] = ()
    ahead_of_time: bool = False
    compatible: bool = False
    isolated: bool = False
    triton: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The architectures that it builds for; empty for every one."""
        return tuple(f"sm_{number}" for number in self.capabilities)

    @property
    def supported(self) -> str:
        """The supported releases in words, e.g. `10.13 to 11.x`."""
        return f"{'.'.join(map(str, self.oldest))} to {self.newest_major}.x"

    def age(self, version: str) -> str:
        """`too old` or `too new` for mmcompile; empty where the release is supported."""
        numbers = release(version)
        if numbers < self.oldest:
            return "too old"
        return "too new" if numbers[0] > self.newest_major else ""

    def serves(self, target: str) -> bool:
        """Whether it builds for an architecture at all."""
        return not self.targets or target in self.targets

    def runs(self, built: str, here: str, *, embedded: bool) -> bool:
        """Whether the release that is here runs an engine that another built.

        Args:
            built: version of the builder.
            here: version of the runtime.
            embedded: the engine holds its plugin.
        """
        before, now = release(built), release(here)
        if embedded and self.compatible:
            return before[:1] == now[:1] and before <= now
        return before == now


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, e.g. (11, 4, 0, 106)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def importable(module: str) -> bool:
    """Whether a module is there; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(distributions: Iterable[str]) -> str | None:
    """Version of the first of the packages that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
