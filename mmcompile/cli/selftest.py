"""The tables of `mmcompile doctor --selftest`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from mmcompile.cli.console import open_console
from mmcompile.doctor.rates import Rate
from mmcompile.doctor.selftest import SelfTest, kinds_of
from mmcompile.tables import open_table

SHOWN_FAILURES = 10


def print_self_test(result: SelfTest) -> None:
    """The self-test's checks by formats, its failures, its rates, and what it does not show."""
    console = open_console()
    for part in result.parts:
        tiles = f"; tiles {', '.join(part.tactics)}" if part.tactics else ""
        console.print(Text(f"{part.device}{tiles}", style="bold"), soft_wrap=True)
        table = open_table(
            "Kernels against the CPU tables",
            ("Check",),
            ("Passed", "Worst error,\nshare of allowed"),
        )
        for name, passed, count, worst in kinds_of(part.checks):
            style = "green" if passed == count else "bold red"
            mark = "✓ " if passed == count else "✗ "
            share = f"{worst:.0%}" if name.startswith("layer") else "bit for bit"
            table.add_row(Text(mark + name, style=style), f"{passed} of {count}", share)
        if part.checks:
            console.print(table)
        for check in part.failed[:SHOWN_FAILURES]:
            console.print(Text(f"✗ {check.name}: {check.detail}", style="red"))
        if len(part.failed) > SHOWN_FAILURES:
            console.print(f"and {len(part.failed) - SHOWN_FAILURES} more; --output has all")
        if part.error:
            console.print(Text(f"✗ {part.device}: {part.error}", style="bold red"))
    if result.rates:
        _print_rates(result.rates)
    for remaining in result.remaining:
        console.print(Text(f"remains: {remaining}", style="yellow"))
    seconds = sum(check.seconds for part in result.parts for check in part.checks)
    count = sum(len(part.checks) for part in result.parts)
    where = "on the GPU" if result.on_gpu else "in the emulator, not on a GPU"
    verdict = "passed" if result.passed else "FAILED" if count else "not run"
    style = "bold green" if result.passed else "bold red"
    console.print(Text(f"self-test {verdict}: {count} checks {where}, {seconds:.0f} s", style))


def _print_rates(rates: Sequence[Rate]) -> None:
    table = open_table(
        "Rates reached: lower bounds of what the hardware does",
        ("What", "By"),
        ("Reached", "Assumed", "Share", "SM clock"),
    )
    for rate in rates:
        if rate.error is not None:
            table.add_row(rate.name, rate.by, Text(rate.error, style="yellow"))
            continue
        is_copy = rate.name == "copy"
        clock = f"{rate.clocks.sm_mhz:.0f} MHz" if rate.clocks and rate.clocks.sm_mhz else "–"
        share = rate.reached / rate.assumed if rate.reached and rate.assumed else None
        table.add_row(
            rate.name,
            rate.by,
            _rate(rate.reached, is_copy=is_copy),
            _rate(rate.assumed, is_copy=is_copy),
            "–" if share is None else f"{share:.0%}",
            clock,
        )
    open_console().print(table)


def _rate(value: float | None, *, is_copy: bool) -> str:
    if value is None:
        return "–"
    return f"{value / 1e9:.0f} GB/s" if is_copy else f"{value:.0f} FLOP per SM and clock"
