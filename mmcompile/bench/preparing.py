"""Builds the engines of all variants of a model for a GPU that is not here, into one folder."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcompile import __version__
from mmcompile.backends.engines.meta import PluginMeta, describe_file
from mmcompile.backends.engines.plugin import LIBRARY, PluginLibrary, plugin_meta
from mmcompile.backends.engines.precision import compare, realized_file
from mmcompile.backends.registry import Wanted, choose
from mmcompile.bench.engines import FAILURES, Variant, reason_of, timeable
from mmcompile.bench.prepared import (
    MANIFEST,
    NOTICE,
    VERSION,
    PreparedBench,
    PreparedPoint,
    PreparedVariant,
    read_prepared,
    write_prepared,
)
from mmcompile.bench.variants import EngineBenchOptions, Lineup, Workshop, line_up
from mmcompile.errors import MMCompileError, UsageError
from mmcompile.output import StagedOutput, disk_errors
from mmcompile.progress import Progress
from mmcompile.targets.names import parse_target
from mmcompile.targets.table import DEFAULT_TARGET


def prepare_bench(
    model: Path, options: EngineBenchOptions, folder: Path, progress: Progress
) -> PreparedBench:
    """Builds all engines; the folder gets everything that timing them elsewhere needs.

    A variant that cannot be built has its reason in the result. Where none can be, nothing is
    written.

    Args:
        model: the original.
        options: what to build, and for which GPU.
        folder: receives the engines, the plugin library and `bench.json`, or nothing.
        progress: told how far it is.

    Raises:
        EnvironmentProblem: no back end builds for that GPU here, or the folder cannot be written.
        UsageError: the back end builds nothing ahead of time, or its engines cannot be timed.
        MMCompileError: the model or the data cannot be used.
    """
    target = parse_target(options.gpu or DEFAULT_TARGET).name
    wanted = Wanted(options.backend, target, ahead_of_time=True)
    builder = timeable(choose(wanted).demand())
    sources = (model, *(path for _, path in options.named))
    with (
        StagedOutput(folder, sources) as stage,
        tempfile.TemporaryDirectory(prefix="mmcompile-bench-") as name,
    ):
        found = line_up(model, options, Workshop(builder, target, Path(name)), progress)
        packing = _Packing(found, stage.folder)
        built = tuple(
            packing.pack(variant, number)
            for number, variant in enumerate(
                progress.track(found.variants, "building engines", len(found.variants))
            )
        )
        prepared = PreparedBench(
            version=VERSION,
            mmcompile=__version__,
            kind="prepared",
            notice=NOTICE,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            model=str(model),
            target=target,
            backend=builder.name,
            builder=builder.title,
            builder_version=builder.version(),
            plugin=packing.plugin(),
            points=tuple(
                PreparedPoint(point.batch, point.sequence, dict(found.bench.shapes(point)))
                for point in found.bench.points
            ),
            variants=built,
            nodes=tuple(found.bench.nodes),
            linears=tuple(found.bench.linears),
        )
        if any(variant.engine for variant in built):
            prepared = write_prepared(stage.folder, prepared)
            earlier = _files(folder)
            written = stage.commit()
            _remove(folder, set(earlier) - {path.name for path in written})
    return prepared


@dataclass(frozen=True)
class _Packing:
    """Builds variants into the staged folder.

    Attributes:
        lineup: what is compared.
        folder: the staged one.
    """

    lineup: Lineup
    folder: Path

    def pack(self, variant: Variant, number: int) -> PreparedVariant:
        """The variant's engine, or why there is none."""
        model = self._model(variant)
        start = time.perf_counter()
        try:
            plugin = self._plugin_of(variant)
            built = self.lineup.work.build(variant, self.folder)
            seconds = time.perf_counter() - start
            word = re.sub(r"[^a-z0-9]+", "-", variant.name.lower()).strip("-")
            file = built.rename(self.folder / f"{number}-{word}{built.suffix}")
            if plugin is not None:
                shutil.copyfile(plugin.path, self.folder / LIBRARY)
            precision = compare(variant.expected, realized_file(file, "", variant.expected))
            engine = describe_file(file)
        except FAILURES as error:
            return PreparedVariant(variant.name, model, error=reason_of(error))
        return PreparedVariant(
            name=variant.name,
            model=model,
            engine=engine,
            build_seconds=seconds,
            needs_plugin=variant.needs_plugin,
            expected=variant.expected,
            precision=precision,
        )

    def plugin(self) -> PluginMeta | None:
        """The plugin, with the library that was packed; None where none was."""
        library = self.folder / LIBRARY
        return plugin_meta(describe_file(library)) if library.exists() else None

    def _plugin_of(self, variant: Variant) -> PluginLibrary | None:
        """What the variant needs.

        Raises:
            UsageError: another library is packed already; a process can only load one.
        """
        plugin, packed = self.lineup.work.plugin(variant), self.plugin()
        if plugin is None or packed is None or packed.library is None:
            return plugin
        if describe_file(plugin.path).sha256 != packed.library.sha256:
            reason = "another variant has another plugin library, and only one can be loaded"
            remedy = "compile all variants with one mmcompile"
            raise UsageError("plugin-differs", plugin.path, reason, remedy)
        return plugin

    def _model(self, variant: Variant) -> str:
        """The variant's model; one that is written for a while by its place there."""
        folder = self.lineup.work.folder
        inside = variant.model.is_relative_to(folder)
        return str(variant.model.relative_to(folder) if inside else variant.model)


def _files(folder: Path) -> Sequence[str]:
    """Names of the files of an earlier preparation that is whole."""
    if not (folder / MANIFEST).exists():
        return ()
    with contextlib.suppress(MMCompileError):
        return [file.name for file in read_prepared(folder).files]
    return ()


def _remove(folder: Path, names: set[str]) -> None:
    with disk_errors(folder):
        for name in names:
            (folder / name).unlink(missing_ok=True)
