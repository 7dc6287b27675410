"""Wall time and memory of the whole `mmcompile` command, beside other quantizers.

    python -m benchmarks.compile_time [--rounds 5] [--peer-python PEER/bin/python]

The model is 444 MB of fp32, an 8-layer Llama of hidden size 1024 with random weights; calibration
sees 8 × 64 tokens. Each run is a process of its own with an empty cache, from the start of Python
to its exit: import, calibration, plan, packing, verification, reports. Peak memory is the resident
set at its high-water mark, in which pages of the mapped model file count, too; "anonymous" is the
part that is no file's. The machine's page cache is warm. The stages are those of report.json;
"start, exit" is what is left of the wall time.

Peers run in turn with mmcompile where a Python that has them is given; benchmarks/peer.py holds
their calls, and without one the commands are printed.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import models
from benchmarks.measure import MIB, ProcessFigures, environment, run_process
from benchmarks.peer import INSTALL, PACKAGES
from benchmarks.tables import command_line, show

GOAL_SECONDS, GOAL_BYTES = 5.4, 1.02e9
"""A fifth of what AMD Quark 0.13 took for MXFP8 on such a machine: 27.0 s, 5.1 GB."""
MICROMIX = ("--policy", "micromix")
VARIANTS = {
    "mmcompile": (),
    "mmcompile --effort fast": ("--effort", "fast"),
    "mmcompile --policy micromix": MICROMIX,
    "mmcompile --policy micromix --no-verify": (*MICROMIX, "--no-verify"),
    "mmcompile --policy micromix --no-verify --no-html": (*MICROMIX, "--no-verify", "--no-html"),
    "mmcompile --policy mxfp8": ("--policy", "mxfp8"),
}


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peer-python", type=Path, action="append", default=[], help="a Python with peers"
    )
    arguments = parser.parse_args()
    models.use_work_folder()
    print(environment())
    model, data = models.llama()
    peers = {peer: find_peer(peer, arguments.peer_python) for peer in PACKAGES}
    runs: dict[str, list[ProcessFigures]] = {}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    sizes = {}
    output = models.WORK / "compile_time"
    run_mmcompile(model, data, output, ())  # fills the page cache
    for _ in range(arguments.rounds):
        for name, options in VARIANTS.items():
            figures, seconds = run_mmcompile(model, data, output, options)
            runs.setdefault(name, []).append(figures)
            stages[name].append(seconds)
            sizes[name] = models.weight_bytes(output / models.MODEL_FILE)
        for peer, python in peers.items():
            if python is not None:
                theirs = models.WORK / peer
                shutil.rmtree(theirs, ignore_errors=True)
                theirs.mkdir()
                runs.setdefault(peer, []).append(
                    run_process(peer_command(python, peer, model, data, theirs))
                )
                sizes[peer] = models.weight_bytes(theirs / models.MODEL_FILE)
    _show_runs(model, runs, sizes, arguments.markdown)
    _show_stages(runs, stages, arguments.markdown)
    for peer, python in peers.items():
        if python is None:
            theirs = models.WORK / peer
            command = peer_command(Path("PEER_PYTHON"), peer, model, data, theirs)
            print(f"{peer} was not run: {INSTALL[PACKAGES[peer]]}, then --peer-python, or")
            print("  " + " ".join(map(str, command)).replace(f"{models.ROOT}/", ""))


def run_mmcompile(
    model: Path, data: Path, output: Path, options: Sequence[str]
) -> tuple[ProcessFigures, dict[str, float]]:
    """One run of the command with an empty cache: what it took, and seconds per stage."""
    cache = models.WORK / "cache-empty"
    for folder in (cache, output):
        shutil.rmtree(folder, ignore_errors=True)
    command: list[str | Path] = [
        sys.executable,
        "-c",
        "from mmcompile.cli import main; main()",
        model,
        "--calib",
        data,
        "-o",
        output,
        *options,
    ]
    environment = {"MMCOMPILE_CACHE_DIR": str(cache), "PYTHONPATH": str(models.ROOT)}
    figures = run_process(command, environment)
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    seconds = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    seconds["start, exit"] = figures.wall - sum(seconds.values())
    return figures, seconds


def find_peer(peer: str, pythons: Sequence[Path]) -> Path | None:
    """The first of the Pythons that has a peer."""
    script = models.ROOT / "benchmarks" / "peer.py"
    for python in pythons:
        if subprocess.run([python, script, peer], check=False).returncode == 0:
            return python
    return None


def peer_command(
    python: Path, peer: str, model: Path, data: Path, output: Path
) -> list[str | Path]:
    """The command that runs a peer on the same model and data."""
    script = models.ROOT / "benchmarks" / "peer.py"
    return [python, script, peer, model, data, output / models.MODEL_FILE]


def _show_runs(
    model: Path,
    runs: dict[str, list[ProcessFigures]],
    sizes: dict[str, int],
    markdown: bool,
) -> None:
    rows = []
    own = statistics.median(figures.wall for figures in runs["mmcompile"])
    own_peak = statistics.median(figures.peak for figures in runs["mmcompile"])
    for name, figures in runs.items():
        wall = [f.wall for f in figures]
        peak = statistics.median(f.peak for f in figures)
        rows.append(
            [
                name,
                f"{statistics.median(wall):.2f}",
                f"{min(wall):.2f} – {max(wall):.2f}",
                f"{statistics.median(f.cpu for f in figures):.2f}",
                f"{peak / MIB:.0f}",
                f"{statistics.median(f.peak_anonymous for f in figures) / MIB:.0f}",
                f"{sizes[name] / MIB:.0f}",
                f"{statistics.median(wall) / own:.1f}×",
                f"{peak / own_peak:.1f}×",
            ]
        )
    columns = ["command", "wall s", "range", "CPU s", "peak MiB", "anonymous MiB", "output MiB"]
    columns += ["time / ours", "peak / ours"]
    title = (
        f"{models.weight_bytes(model) / 1e6:.0f} MB fp32 model, {len(runs['mmcompile'])} rounds, "
        f"medians; goal {GOAL_SECONDS} s and {GOAL_BYTES / MIB:.0f} MiB"
    )
    show(title, columns, rows, markdown=markdown)


def _show_stages(
    runs: dict[str, list[ProcessFigures]],
    stages: dict[str, list[dict[str, float]]],
    markdown: bool,
) -> None:
    names = list(dict.fromkeys(name for seconds in stages["mmcompile"] for name in seconds))
    rows = []
    for variant, seconds in stages.items():
        medians = [
            statistics.median(run[name] for run in seconds) if name in seconds[0] else None
            for name in names
        ]
        cells = ["–" if median is None else f"{median:.2f}" for median in medians]
        rows.append([variant, *cells, f"{statistics.median(f.wall for f in runs[variant]):.2f}"])
    show("Seconds per stage, medians", ["command", *names, "wall"], rows, markdown=markdown)


if __name__ == "__main__":
    main()
