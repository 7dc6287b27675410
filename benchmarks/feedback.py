"""Time and memory of rounding a layer's weights with error feedback, beside what BLAS allows.

    python -m benchmarks.feedback [--layers 384x1536 ...] [--markdown]

Of every layer, K input channels and N outputs in MXFP4 with searched block scales, in a process of
its own:

- Hessian: XᵀX of R sampled rows, R·K² operations, as XᵀX is symmetric;
- factor: U·diag(D)·Uᵀ in place, K³/3 operations;
- rounding: all panels, N·K² operations, most of them in products across panels.

An operation is an addition or a multiplication. The limit of each is its operations at the rate of
a single-precision product of 2048³, measured in turn with it in the same process. Where K is large,
rounding is measured on fewer outputs, as the table says: it is proportional to them. The memory is
the process's high-water mark less what it held before the rows and the weight were made; K² is one
array of K² floats, which nobody can do without, and the rows and the weight stand beside it.

The peer is GPTQ in plain numpy as it was published (Frantar et al. 2022, algorithm 1 with blocks of
128 columns): H⁻¹, its Cholesky factor, column after column with ml_dtypes; with one block scale by
rule instead of two that are tried, which favours it. Its time has the Hessian in it, as ours has.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from benchmarks.measure import environment, process_memory, run_process
from benchmarks.tables import command_line, show
from mmcompile.plan import SCALE_WORD, GroupPlan, Segment, format_order
from mmcompile.weights.feedback import round_with_feedback
from mmcompile.weights.hessian import Factor, factorize, hessian

F32 = npt.NDArray[np.float32]
GIB = 2**30
SQUARE = 2048
"""Size of the product that BLAS's rate is measured on."""
WARM_UP = 600
"""Channels of a Hessian that is factored first: more than two blocks of the factorization."""
DAMPING = 0.05
PEER_BLOCK = 128


@dataclass(frozen=True)
class Layer:
    """K inputs, N outputs of which `outputs` are rounded, and the sampled rows."""

    channels: int
    all_outputs: int
    outputs: int
    rows: int
    peer: bool

    @property
    def name(self) -> str:
        """K × N, with the share that was measured."""
        part = f" ({self.outputs} of N)" if self.outputs < self.all_outputs else ""
        return f"{self.channels} × {self.all_outputs}{part}"


LAYERS = (
    Layer(384, 1536, 1536, 4096, True),
    Layer(1024, 4096, 4096, 4096, True),
    Layer(4096, 4096, 4096, 4096, False),
    Layer(4096, 11008, 1024, 4096, False),
    Layer(11008, 4096, 256, 4096, False),
    Layer(32768, 8192, 256, 1024, False),
)


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    names = [f"{layer.channels}x{layer.all_outputs}" for layer in LAYERS]
    parser.add_argument("--layers", nargs="*", choices=names, default=names, metavar="KxN")
    parser.add_argument("--only", choices=names, help="measure one in this process, print JSON")
    arguments = parser.parse_args()
    chosen = dict(zip(names, LAYERS, strict=True))
    if arguments.only:
        print(json.dumps(measure(chosen[arguments.only])))
        return
    print(environment())
    cells = []
    for name in arguments.layers:
        command = [sys.executable, "-m", "benchmarks.feedback", "--only", name]
        found = json.loads(run_process(command).output)
        cells.append(row(chosen[name], found))
    columns = ["K × N", "R", "Hessian", "factor", "rounding", "memory", "K²", "peer"]
    title = "Rounding with error feedback: seconds (of them BLAS's limit), memory in GiB"
    show(title, columns, cells, markdown=arguments.markdown)


def row(layer: Layer, found: dict[str, float]) -> list[str]:
    """A layer's cells."""
    operations = {
        "hessian": layer.rows * layer.channels**2,
        "factor": layer.channels**3 / 3,
        "rounding": layer.outputs * layer.channels**2,
    }
    stages = [
        f"{found[stage]:.3g} ({count / found[f'{stage}_rate']:.3g})"
        for stage, count in operations.items()
    ]
    peer = "–"
    if layer.peer:
        ours = sum(found[stage] for stage in operations)
        peer = f"{found['peer']:.3g} s, {found['peer'] / ours:.1f}×"
    sizes = [f"{found['memory'] / GIB:.2f}", f"{4 * layer.channels**2 / GIB:.2f}"]
    return [layer.name, str(layer.rows), *stages, *sizes, peer]


def measure(layer: Layer) -> dict[str, float]:
    """Seconds, BLAS's rate in operations per second beside each, and bytes."""
    random = np.random.default_rng(0)
    square = random.standard_normal((SQUARE, SQUARE), np.float32)
    # Makes the buffers of BLAS and LAPACK.
    blas_rate(square)
    factorize(hessian(square[:, :WARM_UP]), DAMPING)
    before = process_memory()["VmRSS"]
    rows = random.standard_normal((layer.rows, layer.channels), np.float32)
    rows += random.standard_normal((layer.rows, 1), np.float32)
    weight = random.standard_normal((layer.outputs, layer.channels), np.float32)
    found: dict[str, float] = {}
    plan = one_format(layer)
    codes = np.zeros((layer.outputs, plan.row_bytes), np.uint8)
    scales = np.zeros((plan.scale_words, layer.outputs, SCALE_WORD), np.uint8)

    def timed(stage: str, run: Callable[[], object]) -> None:
        first = blas_rate(square)
        start = time.perf_counter()
        run()
        found[stage] = time.perf_counter() - start
        found[f"{stage}_rate"] = (first + blas_rate(square)) / 2

    matrices: list[F32] = []
    timed("hessian", lambda: matrices.append(hessian(rows)))
    (matrix,) = matrices
    factors: list[Factor | None] = []
    timed("factor", lambda: factors.append(factorize(matrix, DAMPING)))
    (factor,) = factors
    if factor is None:
        raise RuntimeError("the Hessian is not positive definite")
    timed("rounding", lambda: round_with_feedback(weight, plan, factor, codes, scales))
    found["memory"] = process_memory()["VmHWM"] - before
    if layer.peer:
        timed("peer", lambda: plain_gptq(weight, rows))
    return found


def one_format(layer: Layer) -> GroupPlan:
    """MXFP4 for all channels, in their own order."""
    segment = Segment(layer.channels, "mxfp4", "mxfp4", 1.75, 1.75, "searched")
    return GroupPlan(
        name="layer",
        input="x",
        nodes=("layer",),
        in_channels=layer.channels,
        out_channels=(layer.outputs,),
        order=format_order(range(layer.channels)),
        segments=(segment,),
        act_tensor_scale=1.0,
        weight_tensor_scale=1.0,
    )


def blas_rate(square: F32) -> float:
    """Operations per second of a product."""
    start = time.perf_counter()
    square @ square
    return 2 * len(square) ** 3 / (time.perf_counter() - start)


def plain_gptq(weight: F32, rows: F32) -> F32:
    """GPTQ as published, in numpy: values[N, K] in MXFP4 with block scales by rule."""
    matrix = rows.T @ rows / np.float32(len(rows))
    channels = len(matrix)
    matrix[np.diag_indices(channels)] += np.float32(DAMPING) * matrix.diagonal().mean()
    cholesky = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(matrix)).T)
    work, rounded = weight.copy(), np.empty_like(weight)
    for start in range(0, channels, PEER_BLOCK):
        stop = min(start + PEER_BLOCK, channels)
        errors = np.empty((len(weight), stop - start), np.float32)
        for channel in range(start, stop):
            if channel % 32 == 0:
                largest = np.abs(work[:, channel : channel + 32]).max(axis=1)
                mantissa, exponent = np.frexp(np.maximum(largest, np.float32(2.0**-100)))
                scale = np.ldexp(np.float32(1), exponent - 3 + (mantissa > 0.875))
            scaled = np.clip(work[:, channel] / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn)
            rounded[:, channel] = scaled.astype(np.float32) * scale
            error = (work[:, channel] - rounded[:, channel]) / cholesky[channel, channel]
            work[:, channel:stop] -= np.outer(error, cholesky[channel, channel:stop])
            errors[:, channel - start] = error
        work[:, stop:] -= errors @ cholesky[start:stop, stop:]
    return rounded


if __name__ == "__main__":
    main()
