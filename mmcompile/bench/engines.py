"""Builds and times engines of the same model side by side, all by one method.

TensorRT itself is not reached from here: what builds and what opens an engine is handed in, so that
the whole method runs in tests with a double. One variant that fails does not keep the others from
being timed; its reason stands in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mmcompile.backends.engines.inspector import parse_layers
from mmcompile.backends.engines.interface import TensorSpec
from mmcompile.backends.engines.layer_precision import Expected, PrecisionCheck
from mmcompile.backends.engines.precision import compare, realized
from mmcompile.backends.protocol import Backend, Timeable, TimedEngine
from mmcompile.bench.points import Point, Shapes
from mmcompile.bench.profiles import join_profile
from mmcompile.bench.results import METHOD, EngineBench, TimedPoint, TimedVariant
from mmcompile.cuda.clocks import Clocks, read_clocks
from mmcompile.cuda.driver import GpuFacts
from mmcompile.cuda.machine import Block, Enqueue, Machine
from mmcompile.cuda.timing import time_calls
from mmcompile.errors import EnvironmentProblem, MMCompileError, UsageError
from mmcompile.progress import Progress, Silent

INPUT_SETS = 4
"""Sets of inputs that a replay runs one after the other."""
PROFILED_RUNS = 5
TOKENS = 100
"""Token ids are below this: every vocabulary has so many."""
FAILURES = (MMCompileError, MemoryError, RuntimeError, ValueError, OSError)
"""What building and running raise; a bug of ours would be another error, and is not swallowed."""


@dataclass(frozen=True)
class Variant:
    """A model to build and time.

    Attributes:
        name: such as `FP16`.
        model: its ONNX file.
        needs_plugin: whether its graph has nodes of ours.
        expected: the precision that its graph asks for.
    """

    name: str
    model: Path
    needs_plugin: bool = False
    expected: tuple[Expected, ...] = ()


Build = Callable[[Variant], bytes]
"""Gives the serialized engine. Raises `MMCompileError` where there is none, with the reason."""
Open = Callable[[bytes, Variant], TimedEngine]
"""Gives an engine that is ready to run; freed when nobody holds it any more."""


@dataclass(frozen=True)
class Bench:
    """What to time, and how.

    Attributes:
        model: the original, for the document.
        points: sizes.
        shapes: the shape of every input at a point.
        nodes: names of the original's ONNX nodes.
        linears: names of its linear layers' nodes.
        versions: for the document.
        profiled: also profile every layer.
    """

    model: str
    points: Sequence[Point]
    shapes: Callable[[Point], Shapes]
    nodes: Iterable[str] = ()
    linears: Iterable[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    profiled: bool = True


@dataclass(frozen=True)
class Rig:
    """What builds, opens and runs engines.

    Attributes:
        build: makes an engine of a variant.
        opened: loads it.
        machine: the GPU.
        facts: what the driver says of it; None for a stand-in.
    """

    build: Build
    opened: Open
    machine: Machine
    facts: GpuFacts | None = None


def timeable(backend: Backend) -> Timeable:
    """A back end, if its engines can be timed.

    Raises:
        UsageError: they cannot.
    """
    if not isinstance(backend, Timeable):
        reason = f"engines by {backend.title} cannot be timed"
        raise UsageError("not-timeable", "--backend", reason, "choose another back end")
    return backend


def bench_engines(
    bench: Bench,
    variants: Sequence[Variant],
    rig: Rig,
    progress: Progress | None = None,
) -> EngineBench:
    """Builds and times all variants; what fails is in the document with its reason."""
    progress = progress or Silent()
    found = [
        _time_variant(bench, variant, rig)
        for variant in progress.track(variants, "timing engines", len(variants))
    ]
    return EngineBench(
        kind="measured",
        method=METHOD,
        model=bench.model,
        gpu=rig.facts,
        versions=dict(bench.versions),
        variants=tuple(found),
    )


def _time_variant(bench: Bench, variant: Variant, rig: Rig) -> TimedVariant:
    name, model = variant.name, str(variant.model)
    start = time.perf_counter()
    try:
        plan = rig.build(variant)
    except FAILURES as error:
        return TimedVariant(name, model, error=reason_of(error))
    if not plan:
        return TimedVariant(name, model, error="the builder returned nothing and gave no reason")
    seconds = time.perf_counter() - start
    machine = rig.machine
    before = machine.used_bytes()
    try:
        engine = rig.opened(plan, variant)
    except FAILURES as error:
        return TimedVariant(name, model, reason_of(error), seconds, len(plan))
    after = machine.used_bytes()
    precision = _precision(variant, plan, engine)
    timed = [_time_point(bench, engine, machine, point, rig.facts) for point in bench.points]
    if bench.profiled:
        # After all times: TensorRT keeps a profiler attached, and slows down.
        timed = [_profiled(bench, engine, machine, point) for point in timed]
    return TimedVariant(
        name=name,
        model=model,
        build_seconds=seconds,
        engine_bytes=len(plan),
        device_bytes=after - before if before is not None and after is not None else None,
        points=tuple(timed),
        precision=precision,
    )


def _precision(variant: Variant, plan: bytes, engine: TimedEngine) -> PrecisionCheck:
    """What the engine runs, beside what the variant's graph asks for."""
    try:
        inspection = engine.inspection()
    except FAILURES:
        inspection = ""
    return compare(variant.expected, realized(plan, inspection, variant.expected))


def _time_point(
    bench: Bench, engine: TimedEngine, machine: Machine, point: Point, facts: GpuFacts | None
) -> TimedPoint:
    head = (point.batch, point.sequence, point.phase)
    try:
        run = _Run(engine, machine, bench.shapes(point), INPUT_SETS)
        before = _clocks(facts)
        loaded: list[Clocks | None] = []
        timing = time_calls(machine, run.calls(), during=lambda: loaded.append(_clocks(facts)))
    except FAILURES as error:
        return TimedPoint(*head, error=reason_of(error))
    return TimedPoint(
        *head,
        seconds=timing.median,
        least=timing.least,
        spread=timing.spread,
        replays=len(timing.seconds),
        inputs=timing.calls,
        graph=timing.graph,
        note=timing.note,
        before=before,
        during=loaded[0],
    )


def _profiled(bench: Bench, engine: TimedEngine, machine: Machine, timed: TimedPoint) -> TimedPoint:
    """The point with its layers; where they cannot be had, with a note."""
    if timed.error is not None:
        return timed
    stream = machine.stream() or 0
    try:
        run = _Run(engine, machine, bench.shapes(Point(timed.batch, timed.sequence)), 1)
        run.bind()
        runs = [engine.profile(stream) for _ in range(PROFILED_RUNS + 1)][1:]
        layers = parse_layers(engine.inspection())
    except FAILURES as error:
        note = "; ".join(filter(None, (timed.note, f"no profile: {reason_of(error)}")))
        return msgspec.structs.replace(timed, note=note)
    joined = join_profile(layers, runs, bench.nodes, bench.linears)
    return msgspec.structs.replace(timed, layers=joined)


class _Run:
    """An engine with sets of inputs in device memory, and outputs that all sets share.

    Raises:
        MemoryError: they do not fit the GPU.
        EnvironmentProblem: the engine does not take the shapes.
    """

    def __init__(self, engine: TimedEngine, machine: Machine, shapes: Shapes, sets: int) -> None:
        self._engine = engine
        self._shapes = shapes
        random = np.random.default_rng(0)
        self._sets: list[dict[str, int]] = []
        self._kept: list[Block] = []
        for _ in range(sets):
            addresses = {}
            for tensor in engine.inputs:
                values = make_input(random, tensor, shapes[tensor.name])
                addresses[tensor.name] = self._place(machine, max(values.nbytes, 1))
                machine.write(addresses[tensor.name], values)
            self._sets.append(addresses)
        self.bind()
        for tensor in engine.outputs:
            shape = engine.shape(tensor.name)
            if any(size < 0 for size in shape):
                reason = f"the shape of output {tensor.name} depends on values"
                raise EnvironmentProblem(
                    "bench-dynamic-output", "engine", reason, "time this model with trtexec"
                )
            count = int(np.prod(shape, dtype=np.int64))
            address = self._place(machine, max(count * _itemsize(tensor.dtype), 1))
            if not engine.set_output(tensor.name, address):
                raise _refused(f"output {tensor.name}")

    def _place(self, machine: Machine, size: int) -> int:
        block = machine.allocate(size)
        self._kept.append(block)
        return block.address

    def bind(self, index: int = 0) -> None:
        """Makes one of the sets the engine's inputs."""
        for name, address in self._sets[index].items():
            if not self._engine.set_input(name, self._shapes[name], address):
                raise _refused(f"input {name} of shape {self._shapes[name]}")

    def calls(self) -> list[Enqueue]:
        """One call per set of inputs."""
        return [self._call(index) for index in range(len(self._sets))]

    def _call(self, index: int) -> Enqueue:
        def enqueue(stream: int | None) -> None:
            self.bind(index)
            if not self._engine.enqueue(stream or 0):
                raise EnvironmentProblem(
                    "engine-failed", "engine", "a call did not start", "see TensorRT's log"
                )

        return enqueue


def make_input(
    random: np.random.Generator, tensor: TensorSpec, shape: tuple[int, ...]
) -> npt.NDArray[np.generic]:
    """Values that a language model can take: small token ids, masks of ones, normal numbers."""
    name = tensor.name.lower()
    if tensor.dtype == "bool" or "mask" in name:
        values: npt.NDArray[np.generic] = np.ones(shape, np.float32)
    elif "position" in name and tensor.dtype.startswith("int"):
        values = np.broadcast_to(np.arange(shape[-1] if shape else 1), shape)
    elif "type" in name and tensor.dtype.startswith("int"):
        values = np.zeros(shape, np.int64)
    elif tensor.dtype.startswith(("int", "uint")):
        values = random.integers(1, TOKENS, shape)
    else:
        values = random.standard_normal(shape, np.float32)
    return values.astype(_numpy_type(tensor.dtype))


def _numpy_type(name: str) -> np.dtype[np.generic]:
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    found: np.dtype[np.generic] = np.dtype(name)
    return found


def _itemsize(name: str) -> int:
    return _numpy_type(name).itemsize


def _clocks(facts: GpuFacts | None) -> Clocks | None:
    return read_clocks(facts.uuid) if facts is not None else None


def _refused(what: str) -> EnvironmentProblem:
    reason = f"the engine does not take {what}"
    return EnvironmentProblem("bench-shape-refused", "engine", reason, "widen --shapes")


def reason_of(error: BaseException) -> str:
    """One line; an error of mmcompile with its remedy."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"out of memory: {text}" if isinstance(error, MemoryError) else text
