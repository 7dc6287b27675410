"""GPUs and architectures by the names that people type and drivers report."""

from __future__ import annotations

from mmcompile.errors import UsageError
from mmcompile.registry import Registry
from mmcompile.targets.table import GPUS, REPORTED, SYNONYMS, TARGETS
from mmcompile.targets.target import Gpu, Target

REGISTRY: Registry[Target] = Registry("mmcompile.targets")
"""Targets of other packages: entry points of this group, each a `Target`."""


def all_targets() -> tuple[Target, ...]:
    """The targets of this project and of other packages."""
    return (*TARGETS, *REGISTRY.values())


def parse_target(name: str) -> Target:
    """The target of that name or alias; case, spaces and hyphens do not matter.

    Raises:
        UsageError: unknown; the message lists the known ones.
    """
    wanted = plain_name(name)
    known = all_targets()
    for target in known:
        if wanted in (plain_name(target.name), *target.aliases):
            return target
    listed = "; ".join(f"{target.name} ({', '.join(target.aliases)})" for target in known)
    raise UsageError("unknown-gpu", "--gpu", f"unknown GPU '{name}'", f"use one of {listed}")


def plain_name(name: str) -> str:
    """A GPU's name without what people type differently: case, spaces, vendor."""
    wanted = "".join(name.lower().split()).replace("-", "").replace("_", "")
    return wanted.removeprefix("nvidia").removeprefix("geforce")


def parse_gpu(name: str) -> Gpu:
    """The GPU of that name, as users type it.

    Raises:
        UsageError: unknown, or a family of GPUs that differ in their numbers; lists the known.
    """
    wanted = plain_name(name)
    wanted = SYNONYMS.get(wanted, wanted)
    for gpu in GPUS:
        if wanted == gpu.name:
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    reason = f"there are no figures of '{name}'"
    if wanted.startswith("sm"):
        reason = f"'{name}' is a family; its GPUs differ in multiprocessors and bandwidth"
    raise UsageError("unknown-gpu-model", "--gpu", reason, f"use one of {known}")


def identify_gpu(reported: str) -> Gpu | None:
    """The GPU that a driver calls so, e.g. `NVIDIA H100 80GB HBM3`; None where it is not known.

    Only whole names count: an `RTX 5090 Laptop GPU` or an `H100 PCIe` is another product.
    """
    found = REPORTED.get(plain_name(reported))
    return next((gpu for gpu in GPUS if gpu.name == found), None)
