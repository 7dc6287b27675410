"""compute-sanitizer over tests/gpu/sanitized.py, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from mmcompile.doctor.trial import Check, Skipped, Trial
from tests.gpu.place import ROOT
from tests.gpu.sanitized import DONE, READY

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_ERRORS = 86
LIMIT_SECONDS = 120


def _sanitizer() -> str:
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [str(Path(folder) / "bin") for folder in folders if folder]
    found = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )
    if found is None:
        raise Skipped("no compute-sanitizer in PATH, CUDA_HOME or /usr/local/cuda")
    return found


def _run(trial: Trial, tool: str) -> None:
    if trial.place.emulated:
        raise Skipped("the emulator checks memory and races by itself")
    command = [_sanitizer(), "--tool", tool, "--error-exitcode", str(FOUND_ERRORS)]
    command += ["--print-limit", "5", sys.executable, "-m", "tests.gpu.sanitized"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Skipped(f"{tool} took more than {LIMIT_SECONDS} s") from None
    output = done.stdout + done.stderr
    if READY not in output:
        raise Skipped(f"{tool} does not run here: {output.strip()[-400:]}")
    assert done.returncode == 0 and DONE in output, (
        f"{tool}: exit code {done.returncode}\n{output[-4000:]}"
    )


CHECKS = [Check(f"sanitizer/{tool}", partial(_run, tool=tool)) for tool in TOOLS]
