"""Rate at which weights are quantized and packed, against the rate of copying the same bytes.

    python -m benchmarks.packing [--channels 4096] [--outputs 11008] [--rounds 9] [--searched]

Gigabytes of fp32 weight read per second for every format, in both layouts of the weight ([K, N] as
MatMul has it, [N, K] as Gemm with transB has it), under a random channel order. memcpy is
numpy.copyto of the same weight into an array that is already in memory, counted once, as the
packer's input is; with several threads each copies a part. Packing and copying take turns within
one run, with the same number of threads, and a ratio is the median over the turns.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.measure import environment, interleaved, median_ratio
from benchmarks.tables import command_line, show
from mmcompile import _native
from mmcompile.formats import BLOCK_FORMATS, THRESHOLDS, WeightScales
from mmcompile.packed import THREADS, native_segments
from mmcompile.plan import SCALE_WORD, Segment

GOAL = 0.25
"""Share of memcpy's rate that packing is meant to reach."""
F32 = npt.NDArray[np.float32]


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--channels", type=int, default=4096, help="K, a multiple of 128")
    parser.add_argument("--outputs", type=int, default=11008, help="N")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="*", default=sorted({1, THREADS}))
    parser.add_argument("--order", choices=["random", "natural"], default="random")
    parser.add_argument("--searched", action="store_true", help="the better of two block scales")
    arguments = parser.parse_args()
    print(environment())
    random = np.random.default_rng(0)
    shape = (arguments.channels, arguments.outputs)
    weights = {"[K, N]": random.standard_normal(shape, np.float32)}
    weights["[N, K]"] = np.ascontiguousarray(weights["[K, N]"].T)
    order = np.arange(arguments.channels, dtype=np.int32)
    if arguments.order == "random":
        random.shuffle(order)
    for threads in arguments.threads:
        rows = measure(weights, order, threads, arguments.rounds, arguments.searched)
        title = (
            f"Packing fp32 {arguments.channels} × {arguments.outputs}, {arguments.order} channel "
            f"order, {threads} thread{'s' if threads > 1 else ''}; goal: {GOAL} of memcpy"
        )
        columns = ["format", "[K, N] GB/s", "/ memcpy", "[N, K] GB/s", "/ memcpy", "memcpy GB/s"]
        show(title, columns, rows, markdown=arguments.markdown)


def measure(
    weights: dict[str, F32],
    order: npt.NDArray[np.int32],
    threads: int,
    rounds: int,
    searched: bool,
) -> list[list[str]]:
    """The table's rows for one number of threads."""
    first = next(iter(weights.values()))
    copy = copier(first, threads)
    rows = []
    for name, split in splits(order.size).items():
        how: WeightScales = "searched" if searched else "rule"
        segments = tuple(msgspec.structs.replace(s, weight_scales=how) for s in split)
        packers = {
            layout: packer(weight, segments, order, threads) for layout, weight in weights.items()
        }
        times = interleaved({"memcpy": copy, **packers}, rounds)
        cells = [name]
        for layout in weights:
            rate = first.nbytes / times[layout].median / 1e9
            cells += [f"{rate:.2f}", f"{median_ratio(times['memcpy'], times[layout]):.2f}"]
        rows.append([*cells, f"{first.nbytes / times['memcpy'].median / 1e9:.2f}"])
    return rows


def splits(channels: int) -> dict[str, tuple[Segment, ...]]:
    """Each format alone, and half MXFP4, an eighth MXFP8 and E3M2 between, as MicroMix splits."""
    found: dict[str, tuple[Segment, ...]] = {
        name: (_segment(channels, name),) for name in BLOCK_FORMATS
    }
    low, high = channels // 2, channels // 8
    found["micromix"] = (
        _segment(low, "mxfp4"),
        _segment(channels - low - high, "mxfp6_e3m2"),
        _segment(high, "mxfp8"),
    )
    return found


def _segment(channels: int, name: str) -> Segment:
    threshold = THRESHOLDS["balanced"][name]
    return Segment(channels, name, name, threshold, threshold)


def packer(
    weight: F32, segments: tuple[Segment, ...], order: npt.NDArray[np.int32], threads: int
) -> Callable[[], object]:
    """A call that packs the weight into buffers that it keeps."""
    channels_first = weight.shape[0] == order.size
    outputs = weight.shape[1 if channels_first else 0]
    codes = np.zeros((outputs, sum(s.row_bytes for s in segments)), np.uint8)
    scales = np.zeros((sum(s.scale_words for s in segments), outputs, SCALE_WORD), np.uint8)
    native = native_segments(segments, "weight")

    def run() -> object:
        return _native.quantize_pack(
            weight,
            channels_first=channels_first,
            order=order,
            segments=native,
            tensor_scale=2.0**-8,
            codes=codes,
            scales=scales,
            threads=threads,
        )

    return run


def copier(weight: F32, threads: int) -> Callable[[], object]:
    """A call that copies the weight, each thread a part of it."""
    target = np.zeros_like(weight)
    parts = list(zip(np.array_split(target, threads), np.array_split(weight, threads), strict=True))
    if threads == 1:
        return lambda: np.copyto(target, weight)
    pool = ThreadPoolExecutor(threads)

    def run() -> object:
        return list(pool.map(lambda part: np.copyto(*part), parts))

    return run


if __name__ == "__main__":
    main()
