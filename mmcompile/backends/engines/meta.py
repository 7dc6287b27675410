"""`build.json` and `engine.meta.json`: what a bundle holds, and what an engine was built with.

Nothing here imports ONNX or TensorRT.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from mmcompile.backends.engines.device import Device
from mmcompile.backends.engines.interface import Interface
from mmcompile.backends.engines.layer_precision import PrecisionCheck
from mmcompile.backends.engines.shapes import Span
from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.output import disk_errors

BUILD_FILE = "build.json"
META_FILE = "engine.meta.json"
FORMAT = 2
"""Version of both files."""

Record = TypeVar("Record", "BundleMeta", "EngineMeta")


class FileMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle: its name, its size, its SHA-256 as hex."""

    name: str
    bytes: int
    sha256: str


class PluginMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plugin that the model's nodes ask for, and the library that holds it.

    Attributes:
        name: its name in TensorRT's registry.
        version: its version there.
        namespace: its namespace there.
        layout_version: version of the packed weights that it reads.
        library: the library's file; None where none was found.
    """

    name: str
    version: str
    namespace: str
    layout_version: int
    library: FileMeta | None


class BuildChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the builder is told.

    Attributes:
        profiles: optimization profiles.
        optimization_level: 0 to 5; None is TensorRT's default.
        workspace_bytes: limit on scratch memory; None for TensorRT's default.
        embed_plugin: put the plugin library into the engine.
        weight_streaming: build an engine whose weights need not all be on the GPU.
    """

    profiles: tuple[dict[str, Span], ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    embed_plugin: bool = False
    weight_streaming: bool = False


class BundleMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that another machine needs to know to build the engine.

    Attributes:
        format: `FORMAT`.
        mmcompile: version of mmcompile.
        target: the GPU it was compiled for, e.g. `sm_120`.
        original: the original model's path, for comparisons.
        files: the model's files.
        plan_sha256: of plan.json.
        plugin: the plugin.
        interface: the model's inputs and outputs.
        choices: what the builder is told.
    """

    format: int
    mmcompile: str
    target: str
    original: str
    files: tuple[FileMeta, ...]
    plan_sha256: str
    plugin: PluginMeta
    interface: Interface
    choices: BuildChoices


class EngineMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an engine was built with.

    Attributes:
        format: `FORMAT`.
        created: date and time, ISO 8601 with time zone.
        mmcompile: version of mmcompile.
        backend: name of the back end.
        product: what built it, e.g. `TensorRT`.
        version: its version.
        target: the architecture that it is for, e.g. `sm_120`.
        device: the GPU that it was built on; None where it was built ahead of time.
        loaded: whether it was loaded where it was built, and its inputs and outputs compared.
        engine: the engine's file.
        model_sha256: of model.onnx; its weights are in `files` of build.json.
        plan_sha256: of plan.json.
        plugin: the plugin.
        interface: the engine's inputs and outputs, in the model's order.
        choices: what the builder was told.
        precision: what its layers run, beside what the model asks for.
    """

    format: int
    created: str
    mmcompile: str
    backend: str
    product: str
    version: str
    target: str
    device: Device | None
    loaded: bool
    engine: FileMeta
    model_sha256: str
    plan_sha256: str
    plugin: PluginMeta
    interface: Interface
    choices: BuildChoices
    precision: PrecisionCheck

    @property
    def builder(self) -> str:
        """What built it, with its version."""
        return f"{self.product} {self.version}"

    @property
    def gpu(self) -> str:
        """The GPU that it is for: by name where it was built on it."""
        return self.target if self.device is None else self.device.name

    def __str__(self) -> str:
        """In one line: for which GPU, by what, and whether it was ever loaded."""
        line = f"engine for {self.gpu}, {self.builder}"
        return line if self.loaded else f"{line}, built ahead of time, not loaded here"


def write_meta(path: Path, meta: BundleMeta | EngineMeta) -> None:
    """Writes either file.

    Raises:
        EnvironmentProblem: the disk is full or fails.
    """
    text = msgspec.json.format(msgspec.json.encode(meta), indent=1)
    with disk_errors(path):
        path.write_bytes(text + b"\n")


def read_meta(path: Path, kind: type[Record]) -> Record:
    """Reads either file.

    Raises:
        UsageError: it is missing, damaged or of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "give the folder that mmcompile wrote, with all of its files"
        if kind is EngineMeta:
            remedy = "build the engine with `mmcompile build`"
        raise UsageError("meta-missing", path, reason, remedy) from None
    remedy = "compile the model again with this version of mmcompile"
    try:
        found = msgspec.json.decode(content, type=_Header).format
        if found != FORMAT:
            reason = f"its format is {found}, this mmcompile reads {FORMAT}"
            raise UsageError("meta-version", path, reason, remedy)
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise UsageError("meta-damaged", path, f"it is damaged: {error}", remedy) from None


class _Header(msgspec.Struct):
    format: int


def describe_file(path: Path) -> FileMeta:
    """A file's name, size and hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileMeta(path.name, path.stat().st_size, digest)


def check_file(path: Path, expected: FileMeta, what: str, remedy: str, code: str) -> None:
    """Compares a file with what it was when it was written.

    Args:
        path: the file.
        expected: what it was.
        what: what to call it.
        remedy: for the error.
        code: the error is `<code>-missing`, `<code>-truncated` or `<code>-changed`.

    Raises:
        EnvironmentProblem: it is missing, cut short or changed.
    """
    try:
        size = path.stat().st_size
        if size < expected.bytes:
            reason = f"the {what} is cut short: {size} of {expected.bytes} bytes"
            raise EnvironmentProblem(f"{code}-truncated", path, reason, remedy)
        if size != expected.bytes or describe_file(path).sha256 != expected.sha256:
            reason = f"the {what} is not the one that its description was written for"
            raise EnvironmentProblem(f"{code}-changed", path, reason, remedy)
    except OSError as error:
        reason = f"the {what} cannot be read: {error.strerror}"
        raise EnvironmentProblem(f"{code}-missing", path, reason, remedy) from None
