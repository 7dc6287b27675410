"""The rates that the cost model assumes, measured as far as a kernel reaches them.

A GEMM that is bound by the tensor cores gives a lower bound on its instruction's rate: the kernels
reach a part of it. A figure above the assumed one, or a ratio between formats that the assumed ones
cannot give, shows that the model is wrong; a lower one does not. FP16 and FP8 are cuBLAS's, where
torch with CUDA is installed.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from mmcompile.cuda.calls import DeviceLayer, copy_calls, random_constants, random_inputs
from mmcompile.cuda.clocks import Clocks, read_clocks
from mmcompile.cuda.cublas import cublas
from mmcompile.cuda.driver import DriverError, GpuFacts
from mmcompile.cuda.layers import LayerShape, Place, mixed_segments
from mmcompile.cuda.machine import Enqueue, GpuMachine
from mmcompile.cuda.timing import Timing, time_calls
from mmcompile.formats import MXFP4, MXFP6_E3M2, MXFP8, NVFP4
from mmcompile.kernels import KernelError
from mmcompile.targets.names import identify_gpu
from mmcompile.targets.target import FormatPair, Kind

ROWS, CHANNELS, OUT_CHANNELS = 8192, 8192, 8192
"""Of the products: 1.1 TFLOP each, some 20 times what their bytes cost on any of the GPUs."""
KINDS = {fmt.name: FormatPair(fmt.name, fmt.name).kind for fmt in (MXFP4, NVFP4, MXFP8, MXFP6_E3M2)}
"""The instruction of each mix."""
PRODUCTS = (Kind.FP16, Kind.FP8)
"""What cuBLAS multiplies."""
COPY_BYTES = 2**30
_FAILURES = (KernelError, DriverError, MemoryError, RuntimeError, TypeError, ValueError)


class Rate(msgspec.Struct, frozen=True):
    """What was reached.

    Attributes:
        name: the format, or `copy` for memory.
        by: whose kernel.
        reached: FLOP per SM and clock at the clock that was read; bytes per second of a copy.
        assumed: what the model assumes, where it knows this GPU.
        tflops: TFLOP/s.
        clocks: while the kernels ran.
        timing: of one call.
        error: why there is no figure.
    """

    name: str
    by: str
    reached: float | None = None
    assumed: float | None = None
    tflops: float | None = None
    clocks: Clocks | None = None
    timing: Timing | None = None
    error: str | None = None


def measure_rates(place: Place, machine: GpuMachine) -> Iterator[Rate]:
    """Rates of all formats and of memory; one that fails does not keep others from running."""
    gpu = identify_gpu(machine.facts.name)
    assumed = {kind: rate.value for kind, rate in gpu.rates.items()} if gpu else {}
    yield _copy(machine, gpu.bandwidth.value if gpu and gpu.bandwidth else None)
    for mix, kind in KINDS.items():
        # GPUs without block-scaled instructions multiply in 16 bits after decoding.
        expected = assumed.get(kind, assumed.get(Kind.FP16))
        try:
            layer = _layer(place, mix)
        except _FAILURES as error:
            yield Rate(mix, "mmcompile", assumed=expected, error=str(error))
            continue
        yield _timed(machine, mix, "mmcompile", layer.calls("gemm"), expected)
        del layer
    products = cublas()
    for kind in PRODUCTS if products else ():
        try:
            calls = products[kind](CHANNELS, OUT_CHANNELS, ROWS, 1)
            yield _timed(machine, kind, "cuBLAS by torch", calls, assumed.get(kind))
        except _FAILURES as error:
            yield Rate(kind, "cuBLAS by torch", assumed=assumed.get(kind), error=str(error))


def per_clock(flops: float, facts: GpuFacts, clocks: Clocks) -> float | None:
    """FLOP per SM and clock of so many FLOP per second; None where the clock is not known."""
    if not clocks.sm_mhz:
        return None
    return flops / facts.multiprocessors / (clocks.sm_mhz * 1e6)


def _layer(place: Place, mix: str) -> DeviceLayer:
    random = np.random.default_rng(0)
    shape = LayerShape(CHANNELS, OUT_CHANNELS, mixed_segments(mix, CHANNELS))
    constants = random_constants(random, shape, shape.create(place.library).info)
    layer = DeviceLayer(place, shape, constants, random_inputs(random, shape, ROWS))
    # Leaves codes, and zeroed counters; a product so large is not split along K and uses none.
    layer.enqueue("quantize")
    place.machine.synchronize()
    return layer


def _timed(
    machine: GpuMachine, name: str, by: str, calls: list[Enqueue], assumed: float | None
) -> Rate:
    readings: list[Clocks] = []
    try:
        timing = time_calls(
            machine, calls, during=lambda: readings.append(read_clocks(machine.facts.uuid))
        )
    except _FAILURES as error:
        return Rate(name, by, assumed=assumed, error=str(error))
    flops = 2.0 * ROWS * CHANNELS * OUT_CHANNELS / timing.median
    return Rate(
        name=name,
        by=by,
        reached=per_clock(flops, machine.facts, readings[0]),
        assumed=assumed,
        tflops=flops / 1e12,
        clocks=readings[0],
        timing=timing,
    )


def _copy(machine: GpuMachine, assumed: float | None) -> Rate:
    """Bytes read plus bytes written per second, by a copy that outgrows the cache."""
    size = COPY_BYTES // 2
    readings: list[Clocks] = []
    try:
        timing = time_calls(
            machine,
            copy_calls(machine, size),
            during=lambda: readings.append(read_clocks(machine.facts.uuid)),
        )
    except _FAILURES as error:
        return Rate("copy", "CUDA driver", assumed=assumed, error=str(error))
    return Rate("copy", "CUDA driver", 2 * size / timing.median, assumed, None, readings[0], timing)
