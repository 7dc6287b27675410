"""The kernels on a GPU, through the C ABI: quantizing against memcpy, layers against cuBLAS BF16.

    python -m benchmarks.kernels [--sections quantize decode larger tactics] [--output FILE.md]

Needs a GPU, torch, and the library that `make plugin` builds (or MMCOMPILE_KERNELS). What is
compared is measured in the same run. Sections:

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
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.kernel_layers import Bench, Calls, Workshop, instruction_shares
from benchmarks.kernel_timing import (
    Clock,
    Enqueue,
    GraphClock,
    RehearsalClock,
    copies_for,
    copy_rate,
    device_facts,
    highest_clock,
)
from benchmarks.measure import Timing
from benchmarks.tables import FigureTable
from mmcompile.kernels import BFLOAT16, FLOAT16, KernelError, KernelLibrary

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build" / "cuda" / "libmmcompile_kernels.so"
QUANTIZE_GOAL, DECODE_GOAL = 0.85, 2.5
LLAMA = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
"""K and N of Llama-3.1-8B's linears: q, k and v; output; gate and up; down."""
DECODE_ROWS = (1, 2, 4, 8, 16)
MISSED = 1.05
FOUR_BIT_RATE, EIGHT_BIT_RATE = 4096, 2048
"""FLOP per SM and clock of sm_120's block-scaled instructions."""


class Run:
    """A run of the benchmark: its machine, its sizes and its time limit."""

    def __init__(self, shop: Workshop, *, rehearsal: bool, seconds: float) -> None:
        self.shop = shop
        self.rehearsal = rehearsal
        self.native = shop.device.architecture // 10 == 12
        self._end = time.monotonic() + seconds

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """K and N of the layers."""
        return ((256, 96), (320, 64)) if self.rehearsal else LLAMA

    def rows(self, *wanted: int) -> list[int]:
        """Numbers of rows; a rehearsal takes the first two, made small."""
        return [min(rows, 20) for rows in wanted[:2]] if self.rehearsal else list(wanted)

    def late(self, table: FigureTable) -> bool:
        """Whether the time is over; the table gets a note of it."""
        if time.monotonic() < self._end:
            return False
        note = "Cut short: the time limit of the run was reached."
        if note not in table.notes:
            table.notes.append(note)
        return True

    def bench(self, mix: str, channels: int, out_channels: int) -> Bench:
        """A layer with enough copies of its weights to keep them out of the cache."""
        size = channels * out_channels // 2
        return Bench(self.shop, mix, channels, out_channels, copies_for(self.shop.clock, size))


def quantize_section(run: Run) -> list[FigureTable]:
    """Reorder and quantize, against a copy."""
    columns = ["mix", "x", "M", "K", "µs", "copy µs", "GB/s", "copy GB/s", "share"]
    table = FigureTable(f"Reorder and quantize; goal: {QUANTIZE_GOAL} of a copy", columns)
    clock = run.shop.clock
    for mix in ("mxfp4", "mxfp8", "micromix"):
        for channels in (256,) if run.rehearsal else (4096, 14336):
            for rows in run.rows(1, 16, 256, 2048, 8192):
                if run.late(table):
                    return [table]
                # As many buffers as outgrow the cache together, or 64 of those that never do.
                copies = copies_for(clock, 2 * rows * channels)
                bench = Bench(run.shop, mix, channels, 64, copies)
                info = bench.linear.info
                moved = rows * (2 * channels + info.act_row_bytes + 4 * info.act_scale_words)
                copied, rate = copy_rate(clock, moved)
                for number_type, name in ((BFLOAT16, "bf16"), (FLOAT16, "fp16")):
                    calls = Calls(bench, rows, number_type, own_buffers=True)
                    timing = clock.time(calls.quantize())
                    found = moved / timing.median
                    table.rows.append(
                        [
                            mix,
                            name,
                            str(rows),
                            str(channels),
                            str(timing),
                            str(copied),
                            f"{found / 1e9:.0f}",
                            f"{rate / 1e9:.0f}",
                            f"{found / rate:.2f}",
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


def baseline(run: Run, rows: int, channels: int, out_channels: int) -> Timing:
    """BF16 by cuBLAS on a weight of that shape, by torch.nn.functional.linear."""
    import torch

    clock = run.shop.clock
    copies = copies_for(clock, 2 * channels * out_channels)
    weights = torch.empty(
        (copies, out_channels, channels), dtype=torch.bfloat16, device=clock.device
    ).normal_()
    x = torch.randn((rows, channels), dtype=torch.float32, device=clock.device).bfloat16()

    def call(weight: Any) -> Enqueue:
        return lambda _: torch.nn.functional.linear(x, weight)

    return clock.time([call(weights[i]) for i in range(copies)])


def decode_section(run: Run) -> list[FigureTable]:
    """Few rows: all of the time is reading weights."""
    columns = ["K → N", "mix", "bits", "M", "layer µs", "GEMM µs", "BF16 µs"]
    columns += ["BF16 / layer", "BF16 / GEMM", "GB/s", "of copy", "tactic"]
    table = FigureTable(f"Decode, BF16 x and y; goal: {DECODE_GOAL} times BF16 at 5 bits", columns)
    _, rate = copy_rate(run.shop.clock, 2**16 if run.rehearsal else 2**30)
    for channels, out_channels in run.shapes():
        bf16: dict[int, Timing] = {}
        for mix in ("micromix", "mxfp4", "a8w4", "mxfp8", "nvfp4"):
            bench = run.bench(mix, channels, out_channels)
            for rows in run.rows(*DECODE_ROWS) if mix == "micromix" else run.rows(1, 16):
                if run.late(table):
                    return [table]
                if rows not in bf16:
                    bf16[rows] = baseline(run, rows, channels, out_channels)
                table.rows.append(_layer_row(run, bench, rows, bf16[rows], rate))
    table.notes = [
        *table.notes,
        "layer: mmc_linear_run, quantizing included; GEMM: mmc_gemm_run alone. GB/s: bytes of "
        f"weights and scales over the layer's time; a copy of 512 MiB moved {rate / 1e9:.0f} GB/s.",
        "± is half the distance between the quartiles of the replays.",
    ]
    return [table]


def _layer_row(run: Run, bench: Bench, rows: int, bf16: Timing, rate: float) -> list[str]:
    clock = run.shop.clock
    calls = Calls(bench, rows)
    layer = clock.time(calls.whole())
    gemm = time_gemm(clock, Calls(bench, rows, own_buffers=True), 0)
    bytes_per_second = bench.weight_bytes / layer.median
    return [
        f"{bench.channels} → {bench.out_channels}",
        bench.mix,
        f"{bench.bits:.2f}",
        str(rows),
        str(layer),
        str(gemm),
        str(bf16),
        f"{bf16.median / layer.median:.2f}×",
        f"{bf16.median / gemm.median:.2f}×",
        f"{bytes_per_second / 1e9:.0f}",
        f"{bytes_per_second / rate:.2f}",
        tactic_name(run, bench, rows),
    ]


def time_gemm(clock: Clock, calls: Calls, tactic: int) -> Timing:
    """The GEMM alone, on workspaces of its own, whose counters are zeroed before each round."""
    calls.quantize_now()
    return clock.time(calls.gemm(tactic), calls.clear_counters)


def tactic_name(run: Run, bench: Bench, rows: int) -> str:
    """The chosen tactic's name."""
    chosen = bench.linear.choose_tactic(run.shop.device, rows)
    return run.shop.library.tactics(run.shop.device)[chosen - 1]


def larger_section(run: Run) -> list[FigureTable]:
    """More rows: the tensor cores' time; prefill where there are block-scaled instructions."""
    columns = ["K → N", "mix", "M", "layer µs", "BF16 µs", "BF16 / layer", "TFLOP/s", "of limit"]
    kind = "block-scaled" if run.native else "portable"
    table = FigureTable(f"More rows, {kind} instructions", columns)
    numbers = (64, 256, 1024, 2048, 8192) if run.native else (64, 256, 1024)
    clock_rate = highest_clock(device_facts()) if run.native else None
    for channels, out_channels in run.shapes():
        bf16: dict[int, Timing] = {}
        for mix in ("micromix", "mxfp4", "mxfp8", "nvfp4") if run.native else ("micromix",):
            bench = run.bench(mix, channels, out_channels)
            for rows in run.rows(*numbers):
                if run.late(table):
                    return [table]
                layer = run.shop.clock.time(Calls(bench, rows).whole())
                if rows not in bf16:
                    bf16[rows] = baseline(run, rows, channels, out_channels)
                flops = 2.0 * rows * channels * out_channels
                limit = "–"
                if clock_rate is not None:
                    four, eight = instruction_shares(mix)
                    cycles = flops * (four / FOUR_BIT_RATE + eight / EIGHT_BIT_RATE)
                    least = cycles / run.shop.device.multiprocessors / clock_rate
                    limit = f"{least / layer.median:.2f}"
                table.rows.append(
                    [
                        f"{channels} → {out_channels}",
                        mix,
                        str(rows),
                        str(layer),
                        str(bf16[rows]),
                        f"{bf16[rows].median / layer.median:.2f}×",
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
    names = run.shop.library.tactics(run.shop.device)
    table = FigureTable("GEMM by tactic, µs; micromix", ["K → N", "M", *names, "chosen", "best"])
    missed = []
    for channels, out_channels in run.shapes():
        bench = run.bench("micromix", channels, out_channels)
        for rows in run.rows(1, 8, 9, 16, 17, 32, 64, 128, 512):
            if run.late(table):
                break
            calls = Calls(bench, rows, own_buffers=True)
            times = [time_gemm(run.shop.clock, calls, i + 1).median for i in range(len(names))]
            chosen = bench.linear.choose_tactic(run.shop.device, rows) - 1
            best = min(range(len(names)), key=times.__getitem__)
            shape = f"{channels} → {out_channels}"
            figures = [f"{value * 1e6:.1f}" for value in times]
            table.rows.append([shape, str(rows), *figures, names[chosen], names[best]])
            if times[chosen] > MISSED * times[best]:
                share = times[chosen] / times[best] - 1
                missed.append(
                    f"{shape}, M {rows}: {names[best]} would have been {share:.0%} faster than "
                    f"{names[chosen]} ({bench.linear.describe(run.shop.device, rows, best + 1)})"
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


def open_run(path: Path, *, rehearsal: bool, seconds: float) -> Run:
    """The machine that there is.

    Raises:
        SystemExit: something is missing; says what.
    """
    try:
        import torch
    except ImportError:
        raise SystemExit("benchmarks.kernels needs torch, with CUDA") from None
    if not rehearsal and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU that torch can use; --rehearse runs on the emulated library")
    try:
        library = KernelLibrary(path)
        device = library.open_device(0)
    except (OSError, KernelError) as error:
        remedy = "name the emulated library in MMCOMPILE_KERNELS" if rehearsal else "`make plugin`"
        raise SystemExit(f"{path}: {error}; remedy: {remedy}") from None
    clock: Clock = RehearsalClock() if rehearsal else GraphClock()
    return Run(Workshop(library, device, clock), rehearsal=rehearsal, seconds=seconds)


def environment(run: Run) -> list[str]:
    """Date, device, clocks, versions."""
    import torch

    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "architecture": f"sm_{run.shop.device.architecture}",
        "multiprocessors": str(run.shop.device.multiprocessors),
        "L2 cache": f"{run.shop.clock.cache_bytes / 2**20:.0f} MiB",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "library for": run.shop.library.architectures,
        **device_facts(),
    }
    if run.rehearsal:
        facts["REHEARSAL"] = "on the CPU; no figure means anything"
    return [f"{name}: {value}" for name, value in facts.items()]


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
    after = ", ".join(f"{name} {value}" for name, value in device_facts().items())
    print(f"\nafter the run: {after}")
    found += ["", f"After the run: {after}."]
    write(arguments.output, found)


if __name__ == "__main__":
    main()
