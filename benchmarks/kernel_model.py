"""Modelled time of the layers of two language models on an RTX 5090, against the roofline limit.

    python -m benchmarks.kernel_model [--markdown] [--judge]

Everything here is modelled; nothing was measured on Blackwell. A limit is what no kernel can beat:
the larger of bytes / bandwidth and FLOP / rate, where x is read and y written once in bf16 and
weights and their scales are read once. Ours is what this project's two kernels are modelled to
take: the launch that the library's own code chooses, its waves, the clocks of the main loop's turns
by the compiled machine code (kernel_code.py), the activations' quantization at full bandwidth, and
the assumptions below. `--judge` prints where another tile or split is modelled to be faster than
the chosen one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.kernel_build import launches, tiles
from benchmarks.kernel_code import blocks_per_multiprocessor, compiled_kernels
from benchmarks.main_loop import VARIANTS, Turn
from benchmarks.tables import command_line, show
from mmcompile.errors import MMCompileError

MULTIPROCESSORS = 170
BANDWIDTH = 1.79e12
"""Bytes per second, of an RTX 5090."""
CLOCK = 209.5e12 / (512 * MULTIPROCESSORS)
"""2.407 GHz, NVIDIA's boost clock: what its 209.5 TFLOP/s of FP16 come to."""

# Assumptions, none of them measured.
L2_BYTES_PER_CLOCK = 20
"""Per multiprocessor, as plugins/library/choice.cpp has it."""
START_CLOCKS = 2000
"""A wave's first copies arriving (a round trip to memory) and its last sums being written."""
LAUNCH_SECONDS = 2e-6
"""Per kernel, in a CUDA graph; ours are two. The limits have none."""

ROWS = (1, 8, 16, 64, 256, 1024, 2048, 8192)
SHAPES = {
    "Llama-3.1-8B": {
        "qkv": (4096, 6144),
        "o": (4096, 4096),
        "gate_up": (4096, 28672),
        "down": (14336, 4096),
    },
    "Qwen2.5-32B": {
        "qkv": (5120, 7168),
        "o": (5120, 5120),
        "gate_up": (5120, 55296),
        "down": (27648, 5120),
    },
}
"""In and out channels of the layers that read one tensor."""


@dataclass(frozen=True)
class Part:
    """A share of the channels in one format.

    Attributes:
        share: of K.
        format: id of docs/spec.md, or -1: no kernel of ours runs it.
        bits: of a weight, scales included.
        rate: FLOP per multiprocessor and clock.
        variant: of the main loop that runs it.
    """

    share: float
    format: int
    bits: float
    rate: int
    variant: str = ""


_MXFP4 = Part(1, 0, 4.25, 4096, "mxfp4")
_MXFP8 = Part(1, 3, 8.25, 2048, "mxfp8")
PLANS: dict[str, tuple[Part, ...]] = {
    "FP16": (Part(1, -1, 16, 512),),
    "FP8": (Part(1, -1, 8, 1024),),
    "MXFP8": (_MXFP8,),
    "NVFP4": (Part(1, 4, 4.5, 4096, "nvfp4"),),
    "MXFP4": (_MXFP4,),
    "MicroMix": (
        Part(0.75, 0, 4.25, 4096, "mxfp4"),
        Part(0.125, 2, 6.25, 2048, "mxfp8 W6 e3m2"),
        Part(0.125, 3, 8.25, 2048, "mxfp8"),
    ),
}
"""MicroMix: 3/4 MXFP4, 1/8 MXFP6 E3M2, 1/8 MXFP8: 5 bits with scales."""


@dataclass(frozen=True)
class Shape:
    """One product: [rows, k] by [k, n]."""

    model: str
    layer: str
    k: int
    n: int
    rows: int


@dataclass(frozen=True)
class Machine:
    """The compiled kernels.

    Attributes:
        turns: of the main loop, by tile and variant.
        blocks: per multiprocessor, by tile.
    """

    turns: Mapping[tuple[int, str], Turn]
    blocks: Mapping[int, int]


@dataclass(frozen=True)
class Launch:
    """Blocks of the GEMM: a tile's index, how many tiles, how many share K, and chunks of K."""

    tile: int
    tiles: int
    splits: int
    chunks: int

    @property
    def text(self) -> str:
        """Such as `large`, or `decode8 /2` where two blocks share K."""
        name = tiles()[self.tile].name
        return name if self.splits == 1 else f"{name} /{self.splits}"


def limit(shape: Shape, plan: Sequence[Part]) -> float:
    """Seconds that no kernel can beat."""
    flop = 2.0 * shape.rows * shape.k * shape.n
    rate = sum(part.share / part.rate for part in plan) / (MULTIPROCESSORS * CLOCK)
    weights = sum(part.share * part.bits for part in plan) * shape.k * shape.n / 8
    return max(flop * rate, (weights + 2 * shape.rows * (shape.k + shape.n)) / BANDWIDTH)


def segments(shape: Shape, plan: Sequence[Part]) -> str:
    """The plan's segments as benchmarks/launches.cpp reads them."""
    return " ".join(f"{round(part.share * shape.k)} {part.format} {part.format}" for part in plan)


def answers(shapes: Sequence[Shape], plan: Sequence[Part]) -> list[dict[str, Any]]:
    """What the library's code says of them."""
    head = f"120 {MULTIPROCESSORS}"
    return launches(
        [f"{head} {each.rows} {each.k} {each.n} {segments(each, plan)}" for each in shapes]
    )


def chosen(answer: Mapping[str, Any]) -> Launch:
    """The library's choice."""
    return _launch(answer["chosen"])


def _launch(fields: Mapping[str, Any]) -> Launch:
    return Launch(fields["tile"], fields["tiles"], fields["splits"], fields["chunks"])


def turn_cycles(machine: Machine, plan: Sequence[Part], tile: int, blocks: int) -> float:
    """Clocks of a turn of each of `blocks` blocks on a multiprocessor, mean over the chunks.

    A chunk is a number of bytes, so that a part counts by its share of K and its bits.
    """
    load = blocks * tiles()[tile].stage_bytes / L2_BYTES_PER_CLOCK
    weights = [part.share * (1 if part.rate == 4096 else 2) for part in plan]
    cycles = [max(machine.turns[tile, part.variant].cycles(blocks), load) for part in plan]
    return sum(w * c for w, c in zip(weights, cycles, strict=True)) / sum(weights)


def waves(machine: Machine, launch: Launch) -> float:
    """Blocks of the launch over those that run at a time."""
    return launch.tiles * launch.splits / (MULTIPROCESSORS * machine.blocks[launch.tile])


def gemm_seconds(
    machine: Machine, plan: Sequence[Part], shape: Shape, launch: Launch, answer: Mapping[str, Any]
) -> float:
    """Modelled time of the GEMM without its launch."""
    blocks = launch.tiles * launch.splits
    resident = machine.blocks[launch.tile]
    turns = math.ceil(launch.chunks / launch.splits)
    whole, rest = divmod(blocks, MULTIPROCESSORS * resident)
    clocks = whole * (START_CLOCKS + turns * turn_cycles(machine, plan, launch.tile, resident))
    if rest:
        together = math.ceil(rest / MULTIPROCESSORS)
        clocks += START_CLOCKS + turns * turn_cycles(machine, plan, launch.tile, together)
    tile = tiles()[launch.tile]
    if launch.splits > 1:
        # Sums go to memory (that is, the L2 cache) and come back to the last block of each tile.
        sums = 4 * tile.rows * tile.channels
        clocks += sums * (1 + launch.splits) / L2_BYTES_PER_CLOCK
    weights = int(answer["weight_row_bytes"] + 4 * answer["weight_scale_words"]) * shape.n
    activations = int(answer["act_row_bytes"] + 4 * answer["act_scale_words"]) * shape.rows
    memory = (weights + activations + 2 * shape.rows * shape.n) / BANDWIDTH
    return max(clocks / CLOCK, memory)


def quantize_seconds(shape: Shape, answer: Mapping[str, Any]) -> float:
    """Modelled time of quantizing x, bf16, without its launch."""
    written = int(answer["act_row_bytes"] + 4 * answer["act_scale_words"])
    return shape.rows * (2 * shape.k + written) / BANDWIDTH


def build_machine() -> Machine:
    """Compiles the kernels, or takes them from the last time.

    Raises:
        EnvironmentProblem: nvcc or nvdisasm is missing, or the source does not compile.
    """
    numbers = {tile.name: number for number, tile in enumerate(tiles())}
    turns: dict[tuple[int, str], Turn] = {}
    blocks: dict[int, int] = {}
    for kernel in compiled_kernels():
        if kernel.tile:
            number = numbers[kernel.tile.name]
            blocks[number] = blocks_per_multiprocessor(kernel.resources.registers, kernel.tile)
            turns |= {(number, turn.variant): turn for turn in kernel.turns}
    missing = [f"{n}, {v}" for n, v in product(blocks, VARIANTS) if (n, v) not in turns]
    if missing:
        raise ValueError(f"no main loop for {missing}")
    return Machine(turns, blocks)


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--judge", action="store_true", help="look for better launches")
    arguments = parser.parse_args()
    try:
        machine = build_machine()
    except MMCompileError as error:
        sys.exit(str(error))
    print("MODELLED for an RTX 5090; never run on Blackwell")
    shapes = [
        Shape(model, layer, *sizes, rows)
        for model, layers in SHAPES.items()
        for layer, sizes in layers.items()
        for rows in ROWS
    ]
    _show_times(machine, shapes, arguments.markdown)
    _show_formats(machine, shapes, arguments.markdown)
    if arguments.judge:
        _show_judgement(machine, shapes, arguments.markdown)


def _show_times(machine: Machine, shapes: Sequence[Shape], markdown: bool) -> None:
    plan = PLANS["MicroMix"]
    for model in SHAPES:
        rows = []
        of_model = [shape for shape in shapes if shape.model == model]
        for shape, answer in zip(of_model, answers(of_model, plan), strict=True):
            launch = chosen(answer)
            quantize = quantize_seconds(shape, answer)
            gemm = gemm_seconds(machine, plan, shape, launch, answer)
            total = quantize + gemm + 2 * LAUNCH_SECONDS
            limits = {name: limit(shape, each) for name, each in PLANS.items()}
            rows.append(
                [
                    f"{shape.layer} {shape.k}→{shape.n}, {shape.rows}",
                    *(_microseconds(seconds) for seconds in limits.values()),
                    launch.text,
                    f"{waves(machine, launch):.2f}",
                    _microseconds(quantize),
                    _microseconds(gemm),
                    _microseconds(total),
                    f"{limits['MicroMix'] / total:.0%}",
                    f"{limits['FP16'] / total:.2f}×",
                ]
            )
        columns = ["layer, rows", *PLANS, "launch", "waves", "quantize", "GEMM", "ours"]
        title = f"{model}: limits, and MicroMix by our kernels; µs, MODELLED"
        show(title, [*columns, "of limit", "over FP16"], rows, markdown=markdown)


def _show_formats(machine: Machine, shapes: Sequence[Shape], markdown: bool) -> None:
    rows = []
    for model, count in product(SHAPES, ROWS):
        of_model = [each for each in shapes if each.model == model and each.rows == count]
        cells = []
        half = sum(limit(shape, PLANS["FP16"]) for shape in of_model)
        for name in ("MXFP8", "NVFP4", "MXFP4", "MicroMix"):
            plan = PLANS[name]
            total = sum(
                quantize_seconds(shape, answer)
                + gemm_seconds(machine, plan, shape, chosen(answer), answer)
                + 2 * LAUNCH_SECONDS
                for shape, answer in zip(of_model, answers(of_model, plan), strict=True)
            )
            best = sum(limit(shape, plan) for shape in of_model)
            cells += [_microseconds(total), f"{half / total:.2f}× of {half / best:.2f}×"]
        rows.append([f"{model}, {count} rows", _microseconds(half), *cells])
    columns = ["all four layers", "FP16 limit"]
    for name in ("MXFP8", "NVFP4", "MXFP4", "MicroMix"):
        columns += [name, "over FP16"]
    title = (
        "The four linears of a decoder layer by our kernels, µs, and speed over the limit of FP16"
    )
    show(f"{title} (ours, of what the limits allow); MODELLED", columns, rows, markdown=markdown)


def _show_judgement(machine: Machine, shapes: Sequence[Shape], markdown: bool) -> None:
    plan = PLANS["MicroMix"]
    rows = []
    for shape, answer in zip(shapes, answers(shapes, plan), strict=True):
        launch = chosen(answer)
        taken = gemm_seconds(machine, plan, shape, launch, answer)
        candidates = [
            Launch(each["tile"], each["tiles"], splits, each["chunks"])
            for each in answer["every"]
            for splits in range(1, _most_splits(each) + 1)
        ]
        best = min(candidates, key=lambda each: gemm_seconds(machine, plan, shape, each, answer))
        least = gemm_seconds(machine, plan, shape, best, answer)
        if taken > 1.05 * least:
            rows.append(
                [
                    f"{shape.model} {shape.layer}, {shape.rows}",
                    launch.text,
                    f"{waves(machine, launch):.2f}",
                    _microseconds(taken),
                    best.text,
                    f"{waves(machine, best):.2f}",
                    _microseconds(least),
                    f"{taken / least:.2f}×",
                ]
            )
    columns = ["layer, rows", "chosen", "waves", "GEMM", "better", "waves", "GEMM", "slower by"]
    title = f"Where another launch is modelled to be over 5 % faster: {len(rows)} of {len(shapes)}"
    show(f"{title}; µs, MODELLED", columns, rows, markdown=markdown)


def _most_splits(fields: Mapping[str, Any]) -> int:
    return min(16, int(fields["chunks"]) // 4) if tiles()[fields["tile"]].can_split else 1


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}" if seconds < 1e-3 else f"{1e6 * seconds:,.0f}"


if __name__ == "__main__":
    main()
