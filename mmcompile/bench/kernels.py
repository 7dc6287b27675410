"""The kernels of the plugin on layer shapes, beside cuBLAS: measured by one method on one machine.

Every call finds its weights in DRAM: as many copies take turns as outgrow the L2 cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from mmcompile.cuda.calls import DeviceLayer, random_constants, random_inputs
from mmcompile.cuda.clocks import Clocks, read_clocks
from mmcompile.cuda.cublas import Product
from mmcompile.cuda.driver import DriverError, GpuFacts
from mmcompile.cuda.layers import LayerShape, Place, mixed_segments
from mmcompile.cuda.machine import Enqueue
from mmcompile.cuda.timing import copies_for, time_calls
from mmcompile.formats import MXFP4, MXFP6_E3M2, MXFP8, NVFP4
from mmcompile.kernels import KernelError
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.progress import Progress, Silent

METHOD = (
    "Whole layers, quantization of x included, bf16 in and out. A CUDA graph runs one call per "
    "copy of the operands, which outgrow the L2 cache; events around each replay; the median of "
    "the replays, ± half the distance between their quartiles."
)
LLAMA = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
"""K and N of Llama-3.1-8B: q, k and v; output; gate and up; down."""
ROWS = (1, 8, 16, 64, 256, 1024, 2048)
MIXES = (
    MicroMixPolicy.NAME,
    *(fmt.name for fmt in (MXFP4, NVFP4, MXFP6_E3M2, MXFP8)),
    "a8w4",
)
_FAILURES = (KernelError, DriverError, MemoryError, RuntimeError, TypeError, ValueError)


class KernelTiming(msgspec.Struct, frozen=True):
    """One kernel on one shape.

    Attributes:
        in_channels: K.
        out_channels: N.
        rows: M.
        kernel: a mix of formats of ours, or a baseline.
        seconds: median per call; None where it failed.
        spread: half the distance between the quartiles over the median.
        graph: whether a CUDA graph was replayed.
        launch: what was launched.
        bytes_per_second: bytes of weights and scales over the time.
        flops: FLOP per second.
        clocks: while it ran.
        error: why there is no time.
    """

    in_channels: int
    out_channels: int
    rows: int
    kernel: str
    seconds: float | None = None
    spread: float | None = None
    graph: bool = True
    launch: str = ""
    bytes_per_second: float | None = None
    flops: float | None = None
    clocks: Clocks | None = None
    error: str | None = None


class KernelBench(msgspec.Struct, frozen=True):
    """The document: `kind` is `measured`, or `rehearsed` where the CPU emulates the GPU."""

    kind: str
    method: str
    gpu: GpuFacts | None
    library: str
    timings: tuple[KernelTiming, ...]
    notes: tuple[str, ...] = ()


def bench_kernels(
    place: Place,
    cases: Sequence[tuple[int, int, int]],
    baselines: Mapping[str, Product],
    facts: GpuFacts | None,
    *,
    mixes: Sequence[str] = MIXES,
    progress: Progress | None = None,
) -> KernelBench:
    """Times our kernels and the baselines; what fails stands in the document with its reason.

    Args:
        place: the kernel library on a GPU, or emulated.
        cases: K, N and the number of rows of every product.
        baselines: what else to time on the same shapes, by name.
        facts: of the GPU; None for the emulator.
        mixes: formats, by their names in `cuda.layers.MIXES`.
        progress: told how far it is.
    """
    progress = progress or Silent()
    found: list[KernelTiming] = []
    for k, n, m in progress.track(cases, "timing kernels", len(cases)):
        timer = _Timer(place, k, n, m, facts)
        found += [timer.baseline(name, calls) for name, calls in baselines.items()]
        found += [timer.ours(mix) for mix in mixes]
    notes = () if baselines else ("no baseline: torch with CUDA is not installed here",)
    return KernelBench(
        kind="rehearsed" if facts is None else "measured",
        method=METHOD,
        gpu=facts,
        library=place.library.architectures,
        timings=tuple(found),
        notes=notes,
    )


class _Timer:
    """Times calls on one shape."""

    def __init__(self, place: Place, k: int, n: int, rows: int, facts: GpuFacts | None) -> None:
        self._place, self._k, self._n, self._rows, self._facts = place, k, n, rows, facts
        self._cache = facts.l2_bytes if facts else 0

    def ours(self, mix: str) -> KernelTiming:
        """Our whole layer."""
        try:
            random = np.random.default_rng(0)
            padded = -(-self._k // 32) * 32
            shape = LayerShape(self._k, self._n, mixed_segments(mix, padded))
            linear = shape.create(self._place.library)
            constants = random_constants(random, shape, linear.info)
            inputs = random_inputs(random, shape, self._rows)
            size = constants.weight.nbytes + constants.scales.nbytes + inputs.x.nbytes
            copies = copies_for(self._cache, size)
            layer = DeviceLayer(self._place, shape, constants, inputs, copies)
            launch = linear.describe(self._place.device, self._rows)
            return self._time(mix, layer.calls("run"), launch, layer.weight_bytes)
        except _FAILURES as error:
            return self._failed(mix, error)

    def baseline(self, name: str, make: Product) -> KernelTiming:
        """Somebody else's product."""
        try:
            size = 2 * self._k * (self._n + self._rows)
            calls = make(self._k, self._n, self._rows, copies_for(self._cache, size))
            return self._time(name, calls, "", None)
        except _FAILURES as error:
            return self._failed(name, error)

    def _time(
        self, kernel: str, calls: list[Enqueue], launch: str, size: int | None
    ) -> KernelTiming:
        readings: list[Clocks] = []

        def read() -> None:
            if self._facts is not None:
                readings.append(read_clocks(self._facts.uuid))

        timing = time_calls(self._place.machine, calls, during=read)
        return KernelTiming(
            self._k,
            self._n,
            self._rows,
            kernel,
            seconds=timing.median,
            spread=timing.spread,
            graph=timing.graph,
            launch=launch,
            bytes_per_second=size / timing.median if size else None,
            flops=2.0 * self._rows * self._k * self._n / timing.median,
            clocks=readings[0] if readings else None,
        )

    def _failed(self, kernel: str, error: BaseException) -> KernelTiming:
        text = " ".join(str(error).split()) or type(error).__name__
        return KernelTiming(self._k, self._n, self._rows, kernel, error=text)
