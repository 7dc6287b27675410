"""A folder of engines that were built where no GPU is: what it holds, and timing them elsewhere.

`bench.json` describes the folder. Only a runtime for the engines is needed to time them: no ONNX
model, no data and no compiler.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from mmcompile import __version__
from mmcompile.backends.engines.layer_precision import Expected, PrecisionCheck
from mmcompile.backends.engines.meta import FileMeta, PluginMeta, check_file
from mmcompile.backends.engines.plugin import PluginLibrary
from mmcompile.backends.protocol import TimedEngine
from mmcompile.backends.registry import find_backend
from mmcompile.bench.engines import Bench, Rig, Variant, bench_engines, timeable
from mmcompile.bench.points import Point
from mmcompile.bench.results import EngineBench
from mmcompile.cuda.machine import GpuMachine
from mmcompile.documents import Document
from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.output import disk_errors
from mmcompile.progress import Progress

MANIFEST = "bench.json"
VERSION = 1
"""Version of the file."""
NOTICE = (
    "Built ahead of time on a machine without their GPU: nothing was loaded and nothing was timed. "
    "`mmcompile bench --run FOLDER` times them where the GPU is."
)
_AGAIN = "prepare it again with this version of mmcompile"


class PreparedPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size, with the shape of every input."""

    batch: int
    sequence: int
    shapes: dict[str, tuple[int, ...]]


class PreparedVariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An engine, or why there is none.

    Attributes:
        name: of the variant.
        model: the ONNX file that it was built of, which need not be there any more.
        engine: its file; None where it could not be built.
        error: why not.
        build_seconds: time that building took.
        needs_plugin: whether the plugin library has to be loaded for it.
        expected: the precision that its graph asks for.
        precision: what its layers run, beside what its graph asks for; None without an engine.
    """

    name: str
    model: str
    engine: FileMeta | None = None
    error: str | None = None
    build_seconds: float | None = None
    needs_plugin: bool = False
    expected: tuple[Expected, ...] = ()
    precision: PrecisionCheck | None = None


class PreparedBench(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole folder.

    Attributes:
        version: `VERSION`.
        mmcompile: version of mmcompile.
        kind: `prepared`.
        notice: that nothing was timed.
        created: date and time, ISO 8601 with time zone.
        model: the original.
        target: the architecture that the engines are for, e.g. `sm_120`.
        backend: name of the back end that built them.
        builder: what people call it.
        builder_version: its version.
        plugin: the plugin and its library; None where no engine needs it.
        points: sizes that the engines were built for, and are timed at.
        variants: the engines, the reference first.
        nodes: names of the original's ONNX nodes.
        linears: names of its linear layers' nodes.
        sha256: of everything else here, as `digest` gives it.
    """

    version: int
    mmcompile: str
    kind: str
    notice: str
    created: str
    model: str
    target: str
    backend: str
    builder: str
    builder_version: str
    plugin: PluginMeta | None
    points: tuple[PreparedPoint, ...]
    variants: tuple[PreparedVariant, ...]
    nodes: tuple[str, ...]
    linears: tuple[str, ...]
    sha256: str = ""

    @property
    def files(self) -> tuple[FileMeta, ...]:
        """The files besides `bench.json`."""
        engines = [variant.engine for variant in self.variants]
        library = None if self.plugin is None else self.plugin.library
        return tuple(file for file in (*engines, library) if file is not None)

    def digest(self) -> str:
        """SHA-256 of all but `sha256`."""
        content = msgspec.json.encode(msgspec.structs.replace(self, sha256=""))
        return hashlib.sha256(content).hexdigest()


DOCUMENT = Document(
    name="bench",
    kind=PreparedBench,
    version=VERSION,
    remedy="give the folder that `mmcompile bench --prepare` wrote, with all of its files",
    renewal=_AGAIN,
)


def write_prepared(folder: Path, prepared: PreparedBench) -> PreparedBench:
    """Writes the folder's description; gives it as it was written.

    Raises:
        EnvironmentProblem: the disk is full or fails.
    """
    prepared = msgspec.structs.replace(prepared, sha256=prepared.digest())
    text = msgspec.json.format(msgspec.json.encode(prepared), indent=1)
    with disk_errors(folder / MANIFEST):
        (folder / MANIFEST).write_bytes(text + b"\n")
    return prepared


def read_prepared(folder: Path) -> PreparedBench:
    """Reads the folder's description, and compares all files with it.

    Raises:
        UsageError: it is missing, damaged, or of another version of mmcompile.
        EnvironmentProblem: a file is missing, cut short or changed.
    """
    path = folder / MANIFEST
    prepared = DOCUMENT.read(path)
    if prepared.mmcompile != __version__:
        reason = f"mmcompile {prepared.mmcompile} wrote it; here is {__version__}"
        raise UsageError("bench-mmcompile", path, reason, _AGAIN)
    remedy = "copy the whole folder again, or prepare it again"
    if prepared.digest() != prepared.sha256:
        reason = "it is not as it was written: its SHA-256 is another"
        raise EnvironmentProblem("bench-changed", path, reason, remedy)
    for file in prepared.files:
        check_file(folder / file.name, file, "file", remedy, "bench")
    return prepared


def run_prepared(folder: Path, progress: Progress) -> EngineBench:
    """Times the engines of a folder, on the GPU that they were built for.

    Args:
        folder: as `preparing.prepare_bench` wrote it.
        progress: told how far it is.

    Raises:
        UsageError: the folder's description cannot be used.
        EnvironmentProblem: a file was changed, the builder's runtime is missing or of another
            version, or the GPU is missing or another one.
    """
    prepared = read_prepared(folder)
    backend = timeable(find_backend(prepared.backend, folder / MANIFEST))
    here = backend.version()
    if here != prepared.builder_version:
        reason = f"{prepared.builder} {prepared.builder_version} built the engines; here is {here}"
        remedy = (
            f"install {prepared.builder} {prepared.builder_version}, or prepare the folder again"
        )
        raise EnvironmentProblem("bench-builder", folder, reason, remedy)
    machine = GpuMachine()
    target = f"sm_{machine.facts.architecture}"
    if target != prepared.target:
        reason = f"the engines are for {prepared.target}; here is {machine.facts.name} ({target})"
        remedy = f"prepare a folder with --gpu {target}"
        raise EnvironmentProblem("gpu-mismatch", folder, reason, remedy)
    found = {variant.name: variant for variant in prepared.variants}

    def build(variant: Variant) -> bytes:
        each = found[variant.name]
        if each.engine is None:
            raise RuntimeError(each.error)
        return (folder / each.engine.name).read_bytes()

    def opened(plan: bytes, variant: Variant) -> TimedEngine:
        return backend.timed(plan, _plugin(folder, prepared, variant), machine)

    bench = Bench(
        model=prepared.model,
        points=[Point(point.batch, point.sequence) for point in prepared.points],
        shapes={
            Point(each.batch, each.sequence): each.shapes for each in prepared.points
        }.__getitem__,
        nodes=prepared.nodes,
        linears=prepared.linears,
        versions={"mmcompile": prepared.mmcompile, prepared.builder: prepared.builder_version},
    )
    variants = [
        Variant(each.name, Path(each.model), each.needs_plugin, each.expected)
        for each in prepared.variants
    ]
    rig = Rig(build, opened, machine, machine.facts)
    timed = bench_engines(bench, variants, rig, progress)
    return msgspec.structs.replace(
        timed,
        variants=tuple(
            msgspec.structs.replace(variant, build_seconds=found[variant.name].build_seconds)
            for variant in timed.variants
        ),
    )


def _plugin(folder: Path, prepared: PreparedBench, variant: Variant) -> PluginLibrary | None:
    plugin = prepared.plugin
    if not variant.needs_plugin or plugin is None or plugin.library is None:
        return None
    creator = (plugin.name, plugin.version, plugin.namespace)
    return PluginLibrary(folder / plugin.library.name, creator)
