"""`Target`: what mmcompile knows of a GPU. Everything derived from it is modelled, not measured.

Instruction rates are relative to FP16 with fp32 accumulation (512 FLOP per SM and clock on
GeForce Blackwell): block-scaled E4M3 runs at 4 times that rate, block-scaled E2M1 at 8 times.
6-bit elements are recoded into E4M3 bytes, exactly, since E3M2 in the instruction would cost
twice as much. The rates are quoted from published microbenchmarks of sm_120, none is our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmcompile.errors import UsageError
from mmcompile.formats import BlockFormat
from mmcompile.plan import GroupPlan


@dataclass(frozen=True)
class Target:
    """A GPU or a family of GPUs.

    Attributes:
        name: canonical name, e.g. `sm_120`.
        description: what it is, in a few words.
        native: it has block-scaled tensor-core instructions; other GPUs decode to bf16.
        aliases: other names that users type.
    """

    name: str
    description: str
    native: bool
    aliases: tuple[str, ...]

    def tensor_core_rate(self, fmt: BlockFormat) -> float:
        """Rate of a format's instruction relative to FP16 on this GPU."""
        if not self.native:
            return 1.0
        return 8.0 if fmt.element.bits == 4 else 4.0

    def compute_limit(self, groups: Iterable[GroupPlan]) -> float:
        """Modelled limit of speed over FP16 where the tensor cores bound: large batches.

        The wider of a segment's two formats decides its instruction.
        """
        fp16 = mixed = 0.0
        for group in groups:
            rows = sum(group.out_channels)
            fp16 += rows * group.in_channels
            for segment in group.segments:
                rate = min(map(self.tensor_core_rate, (segment.activation, segment.weight)))
                mixed += rows * segment.channels / rate
        return fp16 / mixed if mixed else 1.0


TARGETS = (
    Target(
        "sm_120",
        "GeForce RTX 50 and RTX PRO Blackwell",
        True,
        ("rtx5090", "rtx5080", "rtx5070ti", "rtx5070", "rtx5060ti", "rtx5060", "rtxpro6000"),
    ),
    Target("sm_121", "DGX Spark (GB10)", True, ("dgxspark", "gb10")),
    Target("sm_90", "Hopper, portable kernels", False, ("h100", "h200", "gh200")),
    Target("sm_89", "Ada, portable kernels", False, ("rtx4090", "rtx4080", "l4", "l40", "l40s")),
    Target("sm_80", "Ampere A100, portable kernels", False, ("a100", "a30")),
)
"""Blackwell natively; older GPUs through the portable implementation of the same mathematics."""


def parse_target(name: str) -> Target:
    """The target of that name or alias; case, spaces and hyphens do not matter.

    Raises:
        UsageError: unknown; the message lists the known ones.
    """
    wanted = "".join(name.lower().split()).replace("-", "").replace("_", "")
    wanted = wanted.removeprefix("nvidia").removeprefix("geforce")
    for target in TARGETS:
        if wanted in (target.name.replace("_", ""), *target.aliases):
            return target
    known = "; ".join(f"{target.name} ({', '.join(target.aliases)})" for target in TARGETS)
    raise UsageError("unknown-gpu", "--gpu", f"unknown GPU '{name}'", f"use one of {known}")
