"""What a back end is: what a compiled model is turned into.

A back end gets the compiled ONNX model, lowers its graph to what its builder takes, builds, checks
and runs. Everything else (reading and writing of bundles, the order of things, earlier output that
has to stay) is done around it. Another package brings one by an entry point of the group
`mmcompile.backends` that names an instance; a test by `BACKENDS.add`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mmcompile.backends.engines.device import Device
from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.backends.engines.meta import BuildChoices, BundleMeta, EngineMeta
from mmcompile.backends.engines.plugin import PluginLibrary
from mmcompile.errors import EnvironmentProblem
from mmcompile.finding import Finding

if TYPE_CHECKING:
    import onnx

    from mmcompile.cuda.machine import Machine


@dataclass(frozen=True)
class Job:
    """An engine to build.

    Attributes:
        model: what the back end's `lower` made of the ONNX model; its weights lie outside.
        path: the ONNX file, beside which they lie.
        library: the plugin library; None where no node needs one, or none was found.
        target: the architecture that it is for, e.g. `sm_120`.
        choices: what the builder is told.
        interface: inputs and outputs that the engine has to have; None compares nothing.
        folder: receives the engine: a staged one.
    """

    model: onnx.ModelProto
    path: Path
    library: Path | None
    target: str
    choices: BuildChoices
    interface: Interface | None
    folder: Path


@dataclass(frozen=True)
class Built:
    """An engine that was built.

    Attributes:
        file: where it lies.
        version: of what built it.
        device: the GPU that it was built on; None where it was built ahead of time.
        interface: its inputs and outputs, as far as the builder tells.
    """

    file: Path
    version: str
    device: Device | None
    interface: Interface


@dataclass(frozen=True)
class Loaded:
    """An engine that was loaded where it was built.

    Attributes:
        interface: its inputs and outputs.
        inspection: what the runtime tells of its layers, as the JSON of TensorRT's engine
            inspector; empty where it tells nothing.
    """

    interface: Interface
    inspection: str = ""


@dataclass(frozen=True)
class Step:
    """Commands that do with other tools what mmcompile does; a step of `reproduce.sh`.

    Attributes:
        name: what the script calls it.
        about: what it does and needs, in a few words.
        commands: lines for a shell that stands in the bundle's folder; `$ORIGINAL` is the original
            model.
    """

    name: str
    about: str
    commands: tuple[str, ...]


class Runner(Protocol):
    """An engine that is ready to run, one call at a time."""

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name, in the model's order.

        Raises:
            UsageError: a missing or unknown input, a wrong type or shape.
            EnvironmentProblem: the run fails.
        """


class Backend(Protocol):
    """What a compiled model is turned into."""

    @property
    def name(self) -> str:
        """What `--backend`, files and caches know it by."""

    @property
    def title(self) -> str:
        """What people call it."""

    @property
    def file(self) -> str | None:
        """Name of the engine that it writes; None where it builds none."""

    @property
    def automatic(self) -> bool:
        """Whether it may be chosen where nobody names one."""

    @property
    def needs_plugin(self) -> bool:
        """Whether it needs the plugin library."""

    @property
    def triton(self) -> bool:
        """Whether the Triton server's TensorRT back end runs its engines."""

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for a GPU that is not here."""

    def missing(self, target: str) -> EnvironmentProblem | None:
        """Why it cannot build for an architecture on this machine; None where it can."""

    def version(self) -> str:
        """Version of its builder, as it is installed here.

        Raises:
            EnvironmentProblem: there is none.
        """

    def lower(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The graph that its builder takes, of an ONNX model whose weights lie outside."""

    def build(self, job: Job) -> Built:
        """Builds an engine into the job's folder.

        Raises:
            MMCompileError: with the reason, and the ONNX node concerned where it is known.
        """

    def check(self, job: Job, built: Built) -> Loaded | None:
        """Loads an engine: what it tells of itself, or None where it cannot be loaded here.

        Raises:
            MMCompileError: it is refused.
        """

    def open(self, file: Path, meta: EngineMeta, device: int, weight_bytes: int | None) -> Runner:
        """An engine that it built, ready to run.

        Args:
            file: the engine.
            meta: what it was built with.
            device: ordinal of the GPU.
            weight_bytes: weights to keep on the GPU at most; None keeps all.

        Raises:
            MMCompileError: the machine, the plugin or the engine is not what it was built with.
        """

    def steps(self, bundle: BundleMeta) -> Sequence[Step]:
        """What `reproduce.sh` can do with the tools of its maker."""

    def examine(self) -> Sequence[Finding]:
        """What of it is here, for `mmcompile doctor`; imports nothing that may fail."""


class TimedEngine(Protocol):
    """A loaded engine with its inputs and outputs in device memory, for timing."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    def set_input(self, name: str, shape: tuple[int, ...], address: int) -> bool:
        """Gives an input's shape and device memory."""

    def set_output(self, name: str, address: int) -> bool:
        """Gives an output's device memory."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the coming call; negative where only running will tell."""

    def enqueue(self, stream: int) -> bool:
        """Starts a call."""

    def inspection(self) -> str:
        """What is known of the engine's layers, as JSON; empty where nothing is."""

    def profile(self, stream: int) -> Mapping[str, float]:
        """Runs once with a profiler and waits: seconds by layer, in the engine's order."""


@runtime_checkable
class Timeable(Backend, Protocol):
    """A back end whose engines `mmcompile bench` can time."""

    def timed(self, plan: bytes, plugin: PluginLibrary | None, machine: Machine) -> TimedEngine:
        """Loads an engine.

        Args:
            plan: the engine.
            plugin: what it needs; None where it needs nothing.
            machine: where it runs.

        Raises:
            EnvironmentProblem: it is refused.
        """
