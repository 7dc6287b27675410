"""The compiled libraries: found, loadable, for this GPU."""

from __future__ import annotations

import ctypes
import re

from mmcompile.cuda.driver import GpuFacts
from mmcompile.finding import Finding, looked_for
from mmcompile.kernels import KernelLibrary
from mmcompile.libraries import KERNELS, MISSING, PLUGIN, remedy


def fits(architectures: str, device: int) -> bool:
    """Whether a library for these architectures has code for a device.

    `80` runs on 8.x from 8.0 on, `120f` on its whole family, `120a` on 12.0 alone (CUDA C++
    Programming Guide, "Compute capabilities").
    """
    for entry in architectures.split():
        found = re.fullmatch(r"(\d+)([af]?)", entry)
        if found is None:
            continue
        number, suffix = int(found[1]), found[2]
        if number == device or (suffix != "a" and number // 10 == device // 10 and number < device):
            return True
    return False


def kernels(facts: GpuFacts | None) -> Finding:
    """The kernel library, and whether it has kernels for the GPU that is here."""
    here, missing = looked_for(
        "kernel library", "no self-test on a GPU, no bench --kernels", remedy(KERNELS)
    )
    path = KERNELS.find()
    if path is None:
        return missing(MISSING)
    try:
        architectures = KernelLibrary(path).architectures
    except (OSError, AttributeError) as error:
        return missing(f"{path} does not load: {error}")
    text = f"{path}, for {architectures}"
    if facts is not None and not fits(architectures, facts.architecture):
        return missing(f"{text}: nothing for sm_{facts.architecture}, the GPU that is here")
    return here(text)


def plugin() -> Finding:
    """The TensorRT plugin as a file that loads."""
    here, missing = looked_for(
        "TensorRT plugin", "no engine can be built or run with it", remedy(PLUGIN)
    )
    path = PLUGIN.find()
    if path is None:
        return missing(MISSING)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return missing(f"{path} does not load: {error}")
    if not hasattr(library, "getCreators"):
        return missing(f"{path} is no TensorRT plugin: it exports no getCreators")
    return here(str(path))
