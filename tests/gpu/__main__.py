"""The checks without pytest: `python -m tests.gpu [NAME ...]`."""

from __future__ import annotations

import sys
import time
import traceback

from mmcompile.doctor.trial import Skipped
from tests.gpu.checks import CHECKS
from tests.gpu.place import Unavailable, describe, find_place


def main(names: list[str]) -> int:
    """Runs those checks whose names contain one of the names, or all.

    Returns:
        0, 1 if a check failed, 4 if there is nothing to run on.
    """
    try:
        place = find_place()
    except Unavailable as reason:
        print(f"nothing to run on: {reason}")
        return 4
    print(describe(place), flush=True)
    counts = {"passed": 0, "FAILED": 0, "skipped": 0}
    begin = time.perf_counter()
    for check in CHECKS:
        if names and not any(name in check.name for name in names):
            continue
        start, note = time.perf_counter(), ""
        try:
            failed = [result for result in check.run(place) if not result.passed]
            outcome = "FAILED" if failed else "passed"
            note = "".join(f"\n    {result.name}: {result.detail}" for result in failed)
        except Skipped as reason:
            outcome, note = "skipped", f" ({reason})"
        except Exception:  # noqa: BLE001 - one broken check must not keep the others from running
            outcome, note = "FAILED", "\n" + traceback.format_exc()
        counts[outcome] += 1
        print(f"{outcome:8}{time.perf_counter() - start:7.1f} s  {check.name}{note}", flush=True)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    print(f"{summary} in {time.perf_counter() - begin:.0f} s")
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
