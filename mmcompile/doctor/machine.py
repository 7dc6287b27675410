"""Compilers, the driver, the GPU and the folders of caches."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

from mmcompile.cache import VARIABLE, cache_folder
from mmcompile.cuda.clocks import read_clocks
from mmcompile.cuda.driver import Driver, DriverError, GpuFacts
from mmcompile.errors import EnvironmentProblem
from mmcompile.finding import Finding, looked_for
from mmcompile.targets.names import identify_gpu

TOOL_SECONDS = 20.0
"""How long a tool may take to tell its version."""
TOOLS = {
    "c++": "the native module cannot be built from source, and the kernels not be emulated",
    "cmake": "the native module and the CUDA libraries cannot be built from source",
    "nvcc": "CUDA kernels cannot be compiled here",
}


def compilers() -> tuple[Finding, ...]:
    """The C++ compiler, CMake and nvcc."""
    return tuple(tool(name, cost) for name, cost in TOOLS.items())


def tool(name: str, cost: str) -> Finding:
    """A program on PATH, by the version that it tells."""
    remedy = f"install {name} and put it on PATH"
    path = shutil.which(name)
    if path is None:
        return Finding(name, False, "not on PATH", cost, remedy)
    try:
        output = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=TOOL_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, f"{path}: {error}", cost, remedy)
    lines = [line for line in output.splitlines() if any(c.isdigit() for c in line)]
    version = next((line for line in lines if "release" in line or "version" in line), None)
    return Finding(name, True, version or (lines[0] if lines else path), cost, remedy)


def gpu() -> tuple[Finding, GpuFacts | None]:
    """The first CUDA device, asked of the driver itself."""
    here, missing = looked_for(
        "NVIDIA GPU",
        "nothing runs on a GPU here; compiling and verifying work",
        "run the compiled model on the machine that has the GPU",
    )
    try:
        facts = Driver().facts()
    except EnvironmentProblem as problem:
        return missing(problem.reason), None
    except (DriverError, AttributeError) as error:
        return missing(str(error)), None
    known = identify_gpu(facts.name)
    model = f", {known.name} in bench --modelled" if known else ""
    memory = f"{facts.memory_bytes / 2**30:.0f} GiB"
    text = f"{facts.name}, sm_{facts.architecture}, {facts.multiprocessors} SMs, {memory}{model}"
    return here(text), facts


def driver(facts: GpuFacts | None) -> Finding:
    """The driver's version; CUDA 13 libraries need a driver of CUDA 13."""
    here, missing = looked_for(
        "NVIDIA driver",
        "nothing runs on a GPU here",
        "install a driver for CUDA 13 (580 or later) on the machine that has the GPU",
    )
    if facts is None:
        return missing("none that finds a GPU")
    version = read_clocks(facts.uuid).driver
    text = f"{version + ', ' if version else ''}CUDA {facts.driver}"
    return here(text) if int(facts.driver.split(".")[0]) >= 13 else missing(f"{text} is too old")


def clocks(facts: GpuFacts | None) -> Finding:
    """Whether the clocks can be read: without them no time says much."""
    here, missing = looked_for(
        "GPU clocks",
        "bench cannot say at which clocks it measured",
        "install nvidia-smi or NVML with the driver",
    )
    if facts is None:
        return missing("no GPU")
    reading = read_clocks(facts.uuid)
    if reading.sm_mhz is None:
        return missing(reading.source)
    return here(
        f"{reading.sm_mhz:.0f} MHz of {reading.highest_sm_mhz or 0:.0f} MHz, by {reading.source}"
    )


def cache() -> Finding:
    """The cache folder, by writing to it: permissions alone do not tell for root."""
    folder = cache_folder()
    cost, remedy = "every run calibrates anew", f"make it writable, or set {VARIABLE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError as error:
        return Finding("cache", False, f"{folder}: {error.strerror}", cost, remedy)
    return Finding("cache", True, f"{folder}, {size / 1e6:.1f} MB", cost, remedy)
