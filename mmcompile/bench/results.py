"""What timing engines gave, as one document; `kind` and `method` say how it came about."""

from __future__ import annotations

import msgspec

from mmcompile.backends.engines.layer_precision import PrecisionCheck
from mmcompile.backends.engines.precision import precision_lines
from mmcompile.cuda.clocks import Clocks
from mmcompile.cuda.driver import GpuFacts

METHOD = (
    "Every engine in the same way: warmed up, then replays of a CUDA graph that runs once per set "
    "of inputs, events around each replay, nothing waited for in between. Time is the median of "
    "the replays per run, ± half the distance between their quartiles."
)


class ProfiledLayer(msgspec.Struct, frozen=True):
    """A layer of an engine.

    Attributes:
        name: TensorRT's name of it.
        seconds: median over the profiled runs; such runs are slower than timed ones.
        share: of all layers' time.
        nodes: the ONNX nodes that it computes, as far as TensorRT tells.
        linears: those of them that are linear layers.
        precision: types of its inputs and outputs.
        kind: TensorRT's kind of layer, or the plugin's name.
    """

    name: str
    seconds: float
    share: float
    nodes: tuple[str, ...] = ()
    linears: tuple[str, ...] = ()
    precision: str = ""
    kind: str = ""


class TimedPoint(msgspec.Struct, frozen=True):
    """An engine at one size.

    Attributes:
        batch: sequences.
        sequence: tokens of each.
        phase: `prefill` or `decode`.
        seconds: median of a run; None where it failed.
        least: the fastest replay.
        spread: half the distance between the quartiles over the median.
        replays: that count.
        inputs: sets of inputs that were rotated.
        graph: whether a CUDA graph was replayed.
        note: what is to be known, such as why not.
        error: why there is no time.
        before: clocks before the first replay.
        during: clocks while the replays ran.
        layers: the profile, in the engine's order.
    """

    batch: int
    sequence: int
    phase: str
    seconds: float | None = None
    least: float | None = None
    spread: float | None = None
    replays: int = 0
    inputs: int = 0
    graph: bool = True
    note: str = ""
    error: str | None = None
    before: Clocks | None = None
    during: Clocks | None = None
    layers: tuple[ProfiledLayer, ...] = ()


class TimedVariant(msgspec.Struct, frozen=True):
    """An engine at all sizes.

    Attributes:
        name: of the variant.
        model: the ONNX file.
        error: why there is no engine.
        build_seconds: time that building took.
        engine_bytes: size of the serialized engine.
        device_bytes: device memory that it took with its context, without inputs and outputs.
        points: in the order asked for.
        precision: what its layers run, beside what its graph asks for; None without an engine.
    """

    name: str
    model: str
    error: str | None = None
    build_seconds: float | None = None
    engine_bytes: int | None = None
    device_bytes: int | None = None
    points: tuple[TimedPoint, ...] = ()
    precision: PrecisionCheck | None = None

    @property
    def is_realized(self) -> bool:
        """Whether no layer is known to run another precision than the variant stands for."""
        return self.precision is None or not self.precision.lost


class EngineBench(msgspec.Struct, frozen=True):
    """The whole document.

    Attributes:
        kind: `measured`.
        method: in words.
        model: the model file.
        gpu: what the driver says of the GPU; None where the machine is a double.
        versions: of TensorRT and mmcompile.
        variants: in the order asked for.
    """

    kind: str
    method: str
    model: str
    gpu: GpuFacts | None
    versions: dict[str, str]
    variants: tuple[TimedVariant, ...]

    def speed_over(self, reference: str) -> dict[tuple[str, int, int], float]:
        """Speed over the reference variant, by variant, batch and sequence, where both ran.

        A variant that does not run the precision that it stands for is compared with nothing.
        """
        times = {
            (variant.name, point.batch, point.sequence): point.seconds
            for variant in self.variants
            for point in variant.points
            if point.seconds and variant.is_realized
        }
        return {
            key: times[reference, *key[1:]] / seconds
            for key, seconds in times.items()
            if (reference, *key[1:]) in times
        }


def precision_problems(name: str, check: PrecisionCheck | None) -> tuple[str, ...]:
    """Lines that say which layers of a variant lost their precision, and which cannot be told."""
    if check is None:
        return ()
    lines = [f"{name}: {line}" for line in precision_lines(check)[1:]]
    if check.lost:
        lines.append(
            f"{name} is not realized: {len(check.lost)} of {check.asked} layers do not "
            "run what it stands for, so that its times are compared with nothing"
        )
    return tuple(lines)
