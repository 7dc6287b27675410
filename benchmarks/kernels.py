"""The kernels on a GPU, through the C ABI: quantizing against memcpy, layers against cuBLAS BF16.

    python -m benchmarks.kernels [--sections quantize decode larger tactics] [--output FILE.md]

Needs a GPU and the library that `make plugin` builds (or MMCOMPILE_KERNELS); cuBLAS needs torch.
What is compared is measured in the same run, by `mmcompile.cuda.timing`. Sections:

- quantize: mmc_quantize_run, bytes read and written per second, as a share of a device-to-device
  copy that moves as many bytes; goal 0.85.
- decode: the linear layers of Llama-3.1-8B for 1 to 16 rows; goal 2.5 times BF16 at 5 bits.
- larger: more rows. GPUs without block-scaled instructions multiply in fp16 after conversion: that
  is there to work, not to be fast, and is measured for the record.
- tactics: every tile shape, and where mmc_choose_tactic missed one that is over 5 % faster.

Nothing fails for being slow. A section that would exceed --seconds is cut short, and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.kernel_run import Run, clocks_of, environment, open_run, state
from benchmarks.tables import FigureTable
from mmcompile.cuda.calls import DeviceLayer
from mmcompile.cuda.layers import MIXES, MXFP4, NVFP4, LayerShape, mixed_segments
from mmcompile.cuda.timing import Timing
from mmcompile.kernels import FLOAT16

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build" / "cuda" / "libmmcompile_kernels.so"
QUANTIZE_GOAL, DECODE_GOAL = 0.85, 2.5
DECODE_ROWS = (1, 2, 4, 8, 16)
MISSED = 1.05
FOUR_BIT_RATE, EIGHT_BIT_RATE = 4096, 2048
"""FLOP per SM and clock of sm_120's block-scaled instructions."""


def microseconds(found: Timing | None) -> str:
    """Median and spread."""
    return "–" if found is None else f"{found.median * 1e6:.1f} ±{found.spread:.0%}"


def times_faster(than: Timing | None, found: Timing) -> str:
    """How many times faster."""
    return "–" if than is None else f"{than.median / found.median:.2f}×"


def mixed(mix: str, channels: int, out_channels: int) -> LayerShape:
    """A layer of a mix."""
    return LayerShape(channels, out_channels, mixed_segments(mix, channels))


def instruction_shares(mix: str) -> tuple[float, float]:
    """Shares of K that a 4-bit instruction and the 8-bit one take."""
    four_bits = (MXFP4, NVFP4)
    four = sum(part for part, act, weight in MIXES[mix] if {act, weight} <= set(four_bits)) / 8
    return four, 1 - four


def quantize_section(run: Run) -> list[FigureTable]:
    """Reorder and quantize, against a copy."""
    columns = ["mix", "x", "M", "K", "µs", "copy µs", "GB/s", "copy GB/s", "share"]
    table = FigureTable(f"Reorder and quantize; goal: {QUANTIZE_GOAL} of a copy", columns)
    for mix in ("mxfp4", "mxfp8", "micromix"):
        for channels in (256,) if run.rehearsal else (4096, 14336):
            shape = mixed(mix, channels, 64)
            constants = run.constants(shape)
            for rows in run.rows(1, 16, 256, 2048, 8192):
                if run.late(table):
                    return [table]
                layer = run.layer(shape, constants, rows)
                info = layer.linear.info
                moved = rows * (2 * channels + info.act_row_bytes + 4 * info.act_scale_words)
                copied, rate = run.copy(moved)
                half = dataclasses.replace(layer.inputs, types=(FLOAT16, FLOAT16))
                for name, made in (("bf16", layer), ("fp16", run.layer_on(shape, constants, half))):
                    found = run.time(made.calls("quantize"))
                    speed = moved / found.median
                    table.rows.append(
                        [
                            mix,
                            name,
                            str(rows),
                            str(channels),
                            microseconds(found),
                            microseconds(copied),
                            f"{speed / 1e9:.0f}",
                            f"{rate / 1e9:.0f}",
                            f"{speed / rate:.2f}",
                        ]
                    )
    table.notes = [
        *table.notes,
        "Bytes are those of x, codes and scales. Every call has its own x and results, and so has "
        "every copy; they come from the cache where 64 of them fit it.",
        "Few rows are bound by the time of a launch, not by memory: there the times count, not the "
        "share.",
    ]
    return [table]


def decode_section(run: Run) -> list[FigureTable]:
    """Few rows: all of the time is reading weights."""
    columns = ["K → N", "mix", "bits", "M", "layer µs", "GEMM µs", "BF16 µs"]
    columns += ["BF16 / layer", "BF16 / GEMM", "GB/s", "of copy", "tactic"]
    table = FigureTable(f"Decode, BF16 x and y; goal: {DECODE_GOAL} times BF16 at 5 bits", columns)
    _, rate = run.copy(2**16 if run.rehearsal else 2**30)
    for channels, out_channels in run.shapes():
        bf16: dict[int, Timing | None] = {}
        for mix in ("micromix", "mxfp4", "a8w4", "mxfp8", "nvfp4"):
            shape = mixed(mix, channels, out_channels)
            constants = run.constants(shape)
            for rows in run.rows(*DECODE_ROWS) if mix == "micromix" else run.rows(1, 16):
                if run.late(table):
                    return [table]
                if rows not in bf16:
                    bf16[rows] = run.baseline(channels, out_channels, rows)
                layer = run.layer(shape, constants, rows)
                head = [f"{channels} → {out_channels}", mix]
                table.rows.append(head + _layer_row(run, layer, bf16[rows], rate))
    table.notes = [
        *table.notes,
        "layer: mmc_linear_run, quantizing included; GEMM: mmc_gemm_run alone. GB/s: bytes of "
        f"weights and scales over the layer's time; a copy of 512 MiB moved {rate / 1e9:.0f} GB/s.",
        "± is half the distance between the quartiles of the replays.",
    ]
    return [table]


def _layer_row(run: Run, layer: DeviceLayer, bf16: Timing | None, rate: float) -> list[str]:
    whole, gemm = run.time(layer.calls("run")), time_gemm(run, layer, 0)
    shape, bytes_per_second = layer.shape, layer.weight_bytes / whole.median
    return [
        f"{8 * layer.weight_bytes / shape.in_channels / shape.out_channels:.2f}",
        str(layer.rows),
        microseconds(whole),
        microseconds(gemm),
        microseconds(bf16),
        times_faster(bf16, whole),
        times_faster(bf16, gemm),
        f"{bytes_per_second / 1e9:.0f}",
        f"{bytes_per_second / rate:.2f}",
        run.place.tactics[layer.linear.choose_tactic(run.place.device, layer.rows) - 1],
    ]


def time_gemm(run: Run, layer: DeviceLayer, tactic: int) -> Timing:
    """The GEMM alone; quantizing ahead of each round leaves codes, and zeroed counters."""
    return run.time(layer.calls("gemm", tactic), layer.calls("quantize", tactic))


def larger_section(run: Run) -> list[FigureTable]:
    """More rows: the tensor cores' time; prefill where there are block-scaled instructions."""
    columns = ["K → N", "mix", "M", "layer µs", "BF16 µs", "BF16 / layer", "TFLOP/s", "of limit"]
    kind = "block-scaled" if run.native else "portable"
    table = FigureTable(f"More rows, {kind} instructions", columns)
    numbers = (64, 256, 1024, 2048, 8192) if run.native else (64, 256, 1024)
    clock_rate = 1e6 * (clocks_of(run).highest_sm_mhz or 0) if run.native else 0
    for channels, out_channels in run.shapes():
        bf16: dict[int, Timing | None] = {}
        for mix in ("micromix", "mxfp4", "mxfp8", "nvfp4") if run.native else ("micromix",):
            shape = mixed(mix, channels, out_channels)
            constants = run.constants(shape)
            for rows in run.rows(*numbers):
                if run.late(table):
                    return [table]
                layer = run.time(run.layer(shape, constants, rows).calls("run"))
                if rows not in bf16:
                    bf16[rows] = run.baseline(channels, out_channels, rows)
                flops = 2.0 * rows * channels * out_channels
                limit = "–"
                if clock_rate:
                    four, eight = instruction_shares(mix)
                    cycles = flops * (four / FOUR_BIT_RATE + eight / EIGHT_BIT_RATE)
                    least = cycles / run.place.device.multiprocessors / clock_rate
                    limit = f"{least / layer.median:.2f}"
                table.rows.append(
                    [
                        f"{channels} → {out_channels}",
                        mix,
                        str(rows),
                        microseconds(layer),
                        microseconds(bf16[rows]),
                        times_faster(bf16[rows], layer),
                        f"{flops / layer.median / 1e12:.1f}",
                        limit,
                    ]
                )
    if run.native:
        note = (
            "limit: the block-scaled instructions' rate at the highest SM clock, quantizing free."
        )
    else:
        note = (
            "Portable instructions convert to fp16 and are there to work everywhere: no path for "
            "prefill, and no limit to compare with."
        )
    table.notes.append(note)
    return [table]


def tactics_section(run: Run) -> list[FigureTable]:
    """All tactics of the GEMM, beside the chosen one."""
    names = run.place.tactics
    table = FigureTable("GEMM by tactic, µs; micromix", ["K → N", "M", *names, "chosen", "best"])
    missed = []
    for channels, out_channels in run.shapes():
        shape = mixed("micromix", channels, out_channels)
        constants = run.constants(shape)
        for rows in run.rows(1, 8, 9, 16, 17, 32, 64, 128, 512):
            if run.late(table):
                break
            layer = run.layer(shape, constants, rows)
            times = [time_gemm(run, layer, i + 1).median for i in range(len(names))]
            chosen = layer.linear.choose_tactic(run.place.device, rows) - 1
            best = min(range(len(names)), key=times.__getitem__)
            sizes = f"{channels} → {out_channels}"
            figures = [f"{value * 1e6:.1f}" for value in times]
            table.rows.append([sizes, str(rows), *figures, names[chosen], names[best]])
            if times[chosen] > MISSED * times[best]:
                share = times[chosen] / times[best] - 1
                missed.append(
                    f"{sizes}, M {rows}: {names[best]} would have been {share:.0%} faster than "
                    f"{names[chosen]} ({layer.describe(best + 1)})"
                )
    if table.rows and not missed:
        missed = [f"No tactic was over {MISSED - 1:.0%} faster than the chosen one."]
    table.notes += missed
    return [table]


SECTIONS: dict[str, Callable[[Run], list[FigureTable]]] = {
    "decode": decode_section,
    "quantize": quantize_section,
    "tactics": tactics_section,
    "larger": larger_section,
}
"""By name, the most wanted first."""


def write(output: Path | None, lines: list[str]) -> None:
    """Writes the Markdown file, if one is wanted."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument(
        "--library", type=Path, default=os.environ.get("MMCOMPILE_KERNELS") or LIBRARY
    )
    parser.add_argument("--output", type=Path, help="Markdown file for the tables")
    parser.add_argument("--seconds", type=float, default=270, help="time limit of the run")
    parser.add_argument("--rehearse", action="store_true", help="emulated library, tiny shapes")
    arguments = parser.parse_args()
    run = open_run(arguments.library, rehearsal=arguments.rehearse, seconds=arguments.seconds)
    head = environment(run)
    print("\n".join(head), flush=True)
    found: list[str] = [f"    {' '.join(['python -m benchmarks.kernels', *sys.argv[1:]])}", ""]
    found += [f"- {line}" for line in head]
    for name in arguments.sections:
        start = time.perf_counter()
        for table in SECTIONS[name](run):
            table.notes.append(f"Section {name}: {time.perf_counter() - start:.0f} s.")
            table.show()
            found += ["", table.markdown()]
        # What is measured is kept, whatever happens to the next section.
        write(arguments.output, found)
    after = ", ".join(f"{name} {value}" for name, value in state(run).items())
    print(f"\nafter the run: {after}")
    found += ["", f"After the run: {after}."]
    write(arguments.output, found)


if __name__ == "__main__":
    main()
