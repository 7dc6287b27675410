"""The back end `none`: the bundle, and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mmcompile.backends.engines.meta import BundleMeta, EngineMeta
from mmcompile.backends.protocol import Built, Job, Loaded, Step
from mmcompile.errors import EnvironmentProblem
from mmcompile.finding import Finding

if TYPE_CHECKING:
    import onnx


class NoBackend:
    """Builds nothing: another machine does, with the bundle."""

    name = "none"
    title = "no engine"
    file = None
    automatic = False
    needs_plugin = False
    triton = False
    ahead_of_time = False

    def missing(self, target: str) -> EnvironmentProblem:
        """It builds nowhere."""
        del target
        return _refusal()

    def version(self) -> NoReturn:
        """It has none.

        Raises:
            EnvironmentProblem: always.
        """
        raise _refusal()

    def lower(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model as it is."""
        return model

    def build(self, job: Job) -> Built:
        """Builds nothing.

        Raises:
            EnvironmentProblem: always.
        """
        del job
        raise _refusal()

    def check(self, job: Job, built: Built) -> Loaded | None:
        """Loads nothing."""
        del job, built
        return None

    def open(self, file: Path, meta: EngineMeta, device: int, weight_bytes: int | None) -> NoReturn:
        """Runs nothing.

        Raises:
            EnvironmentProblem: always.
        """
        del file, meta, device, weight_bytes
        raise _refusal()

    def steps(self, bundle: BundleMeta) -> Sequence[Step]:
        """None."""
        del bundle
        return ()

    def examine(self) -> Sequence[Finding]:
        """Nothing to look for."""
        return ()


BACKEND = NoBackend()


def _refusal() -> EnvironmentProblem:
    reason = f"no engine was asked for (--backend {NoBackend.name})"
    return EnvironmentProblem("no-engine", "engine", reason, "choose another --backend")
