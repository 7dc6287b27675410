"""`Target`: what mmcompile knows of a family of GPUs. All derived from it is modelled.

Instruction rates are relative to FP16 with fp32 accumulation. On GeForce Blackwell that is 512
FLOP per SM and clock, block-scaled E4M3 is 4 times as fast and block-scaled E2M1 8 times. RTX PRO
and DGX Spark run FP16 at 1024: the same block-scaled instructions are 2 and 4 times as fast there.
6-bit elements are recoded into E4M3 bytes, exactly, since E3M2 in the instruction would cost
twice as much. The rates, and the figures of single GPUs, stand with their sources in
`mmcompile/targets/gpus.py`; none is our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmcompile.errors import UsageError
from mmcompile.formats import BlockFormat
from mmcompile.plan import GroupPlan
from mmcompile.targets.gpus import plain_name


@dataclass(frozen=True)
class Target:
    """A family of GPUs.

    Attributes:
        name: its architecture, e.g. `sm_120`.
        description: what it is, in a few words.
        native: it has block-scaled tensor-core instructions; other GPUs decode to bf16.
        aliases: other names that users type.
        fp16_rate: FLOP per SM and clock of FP16 with fp32 accumulation, where `native`.
    """

    name: str
    description: str
    native: bool
    aliases: tuple[str, ...]
    fp16_rate: int = 512

    def tensor_core_rate(self, fmt: BlockFormat) -> float:
        """Rate of a format's instruction relative to FP16 on this GPU."""
        if not self.native:
            return 1.0
        return (4096 if fmt.element.bits == 4 else 2048) / self.fp16_rate

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
        "GeForce RTX 50",
        True,
        (
            "rtx5090",
            "rtx5080",
            "rtx5070ti",
            "rtx5070tilaptop",
            "rtx5070",
            "rtx5060ti",
            "rtx5060",
        ),
    ),
    Target("sm_120", "RTX PRO Blackwell", True, ("rtxpro6000",), fp16_rate=1024),
    Target("sm_121", "DGX Spark (GB10)", True, ("dgxspark", "gb10"), fp16_rate=1024),
    Target("sm_90", "Hopper, portable kernels", False, ("h100", "h200", "gh200")),
    Target("sm_89", "Ada, portable kernels", False, ("rtx4090", "rtx4080", "l4", "l40", "l40s")),
    Target("sm_80", "Ampere A100, portable kernels", False, ("a100", "a30")),
)
"""Blackwell natively; older GPUs through the portable implementation of the same mathematics. An
architecture's own name stands for the first of its entries."""


def parse_target(name: str) -> Target:
    """The target of that name or alias; case, spaces and hyphens do not matter.

    Raises:
        UsageError: unknown; the message lists the known ones.
    """
    wanted = plain_name(name)
    for target in TARGETS:
        if wanted in (target.name.replace("_", ""), *target.aliases):
            return target
    known = "; ".join(f"{target.name} ({', '.join(target.aliases)})" for target in TARGETS)
    raise UsageError("unknown-gpu", "--gpu", f"unknown GPU '{name}'", f"use one of {known}")
