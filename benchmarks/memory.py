"""Peak memory of the `mmcompile` command on a model much larger than it is to use.

    python -m benchmarks.memory [--gigabytes 3]

The model is a chain of MatMuls with 180 MB of random fp32 weights each, in one external data file
that is written as a stream. Measured are processes of their own, their memory sampled in /proc:
`peak` is the resident set at its high-water mark (VmHWM), in which pages of mapped files count
although the system may drop them at any time; `anonymous` (RssAnon) is what they really hold, and
`file` (RssFile) the mapped part, each at its own largest.

Steps: `inspect`; `calibrate`, on random numbers; compiling from that plan, without and with
verification; and the whole command with calibration. Calibration and verification run the fp32
model in ONNX Runtime; the goal of 1 GB is for everything else.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from benchmarks import models
from benchmarks.measure import MIB, environment, run_process
from benchmarks.tables import command_line, show

GOAL_BYTES = 1e9


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    model = models.large(arguments.gigabytes)
    work = models.WORK / "memory"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    data, plan, output = work / "calibration.npz", work / "plan.json", work / "out"
    samples = np.random.default_rng(0).standard_normal((8, 4096), np.float32)
    np.savez(data, x=samples)
    base: list[str | Path] = [sys.executable, "-c", "from mmcompile.cli import main; main()"]
    from_plan = [*base, model, "--plan", plan, "-o", output]
    steps: dict[str, list[str | Path]] = {
        "inspect": [*base, "inspect", model],
        "calibrate": [*base, "calibrate", model, "--calib", data, "-o", plan],
        "--plan --no-verify": [*from_plan, "--no-verify"],
        "--plan --verify-data": [*from_plan, "--verify-data", data],
        "--calib --no-verify": [*base, model, "--calib", data, "-o", output, "--no-verify"],
        "--calib (everything)": [*base, model, "--calib", data, "-o", output],
    }
    variables = {"MMCOMPILE_CACHE_DIR": str(work / "cache"), "PYTHONPATH": str(models.ROOT)}
    rows = []
    for name, command in steps.items():
        shutil.rmtree(work / "cache", ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
        found = run_process(command, variables)
        figures = (found.peak, found.peak_anonymous, found.peak_file)
        rows.append([name, f"{found.wall:.1f}", *(f"{value / MIB:.0f}" for value in figures)])
    size = models.weight_bytes(model)
    title = f"{size / 1e9:.2f} GB fp32 model; goal {GOAL_BYTES / MIB:.0f} MiB without running it"
    columns = ["command", "wall s", "peak MiB", "anonymous MiB", "file MiB"]
    show(title, columns, rows, markdown=arguments.markdown)


if __name__ == "__main__":
    main()
