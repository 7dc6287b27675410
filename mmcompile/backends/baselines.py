"""Stock baselines as back ends: the same linears with TensorRT's own operators, built by another.

`mmcompile bench` times them beside MicroMix. They begin with the original model, not with the
compiled one, so that nobody is offered them for compiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmcompile.backends.engines.meta import BundleMeta, EngineMeta
from mmcompile.backends.engines.plugin import PluginLibrary
from mmcompile.backends.protocol import (
    Built,
    Job,
    Loaded,
    Runner,
    Step,
    Timeable,
    TimedEngine,
)
from mmcompile.errors import EnvironmentProblem
from mmcompile.finding import Finding
from mmcompile.model.passes.baselines import KINDS, Kind, write_baseline

if TYPE_CHECKING:
    import onnx

    from mmcompile.cuda.machine import Machine
    from mmcompile.model.sites import SiteGroup
    from mmcompile.model.source import SourceModel


@dataclass(frozen=True)
class Baseline:
    """A `protocol.Timeable` back end: stock operators in place of ours.

    Attributes:
        kind: which baseline.
        builder: what builds it.
    """

    kind: Kind
    builder: Timeable

    automatic = False
    needs_plugin = False

    @property
    def name(self) -> str:
        """The baseline's."""
        return self.kind.name

    @property
    def title(self) -> str:
        """The baseline's."""
        return self.kind.title

    @property
    def file(self) -> str | None:
        """The builder's."""
        return self.builder.file

    @property
    def triton(self) -> bool:
        """The builder's."""
        return self.builder.triton

    @property
    def ahead_of_time(self) -> bool:
        """The builder's."""
        return self.builder.ahead_of_time

    def write(
        self,
        source: SourceModel,
        groups: Sequence[SiteGroup],
        amax: Mapping[str, float],
        folder: Path,
    ) -> Path:
        """Writes the model that it builds.

        Args:
            source: the original model, every node named.
            groups: the linears that MicroMix would take.
            amax: largest |x| of every group's input, by tensor name.
            folder: receives the model.

        Raises:
            MMCompileError: the model cannot be written so.
        """
        return write_baseline(self.kind.name, source, groups, amax, folder).path

    def missing(self, target: str) -> EnvironmentProblem | None:
        """Why its builder cannot build."""
        return self.builder.missing(target)

    def version(self) -> str:
        """Its builder's version."""
        return self.builder.version()

    def lower(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model as it is: all of its operators are the builder's own."""
        return model

    def build(self, job: Job) -> Built:
        """Builds an engine without any plugin."""
        return self.builder.build(replace(job, library=None))

    def check(self, job: Job, built: Built) -> Loaded | None:
        """Loads an engine without any plugin."""
        return self.builder.check(replace(job, library=None), built)

    def open(self, file: Path, meta: EngineMeta, device: int, weight_bytes: int | None) -> Runner:
        """An engine, ready to run."""
        return self.builder.open(file, meta, device, weight_bytes)

    def steps(self, bundle: BundleMeta) -> Sequence[Step]:
        """None: there is no bundle of it."""
        del bundle
        return ()

    def examine(self) -> Sequence[Finding]:
        """What its builder finds."""
        return self.builder.examine()

    def timed(self, plan: bytes, plugin: PluginLibrary | None, machine: Machine) -> TimedEngine:
        """An engine for timing."""
        del plugin
        return self.builder.timed(plan, None, machine)


def baselines(builder: Timeable, *, data: bool) -> tuple[Baseline, ...]:
    """All baselines, in their table's order.

    Args:
        builder: what builds them.
        data: whether there is data for those that need some.
    """
    return tuple(Baseline(kind, builder) for kind in KINDS.values() if data or not kind.needs_data)
