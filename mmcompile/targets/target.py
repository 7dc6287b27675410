"""`Target`: an architecture of GPUs, and what a pair of formats costs there. All of it is modelled.

Instruction rates count FLOP per multiprocessor and clock. On GeForce Blackwell FP16 with fp32
accumulation does 512, block-scaled E4M3 2048 and block-scaled E2M1 4096. RTX PRO and DGX Spark run
FP16 at 1024: the same block-scaled instructions gain half as much over it. 6-bit elements are
recoded into E4M3 bytes, exactly, since E3M2 in the instruction would cost twice as much; 4-bit
weights beside wider activations run as E4M3, too. The figures stand in `table`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mmcompile.formats import block_format

if TYPE_CHECKING:
    from mmcompile.plan import GroupPlan


class Figure(NamedTuple):
    """A number and the document that it stands in."""

    value: float
    source: str


class Kind(enum.StrEnum):
    """An instruction of the tensor cores, by its operands.

    `fp16`: fp16 and bf16. `fp8`: E4M3 without block scales. `block8`: E4M3 with block scales:
    MXFP8, and 6-bit elements widened to E4M3. `block4`: E2M1 with block scales: MXFP4 and NVFP4.
    """

    FP16 = "fp16"
    FP8 = "fp8"
    BLOCK8 = "block8"
    BLOCK4 = "block4"


class Kernels(enum.Enum):
    """How the plugin's kernels multiply on an architecture."""

    NATIVE = "native"
    """With its block-scaled instructions."""
    PORTABLE = "portable"
    """Decoded to 16 bits, with its FP16 instructions: no format is faster than another."""
    NONE = "none"
    """Not at all: the plugin holds no code for it."""


class Objective(enum.StrEnum):
    """What is to be cheap.

    `prefill`: tensor-core time, which bounds large batches; one wide operand costs as much as two.
    `decode`: bytes of weights, which bound small ones; activations may then be wider than weights
    for nothing. `memory`: bytes of weights too, but activations in the weights' format, so that
    large batches stay fast.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    MEMORY = "memory"


@dataclass(frozen=True)
class FormatPair:
    """The formats of a run: names of the activations' and the weights' `BlockFormat`."""

    act: str
    weight: str

    @property
    def kind(self) -> Kind:
        """The instruction that multiplies them: the wider of the two decides."""
        bits = max(block_format(name).element.bits for name in (self.act, self.weight))
        return Kind.BLOCK4 if bits == 4 else Kind.BLOCK8

    @property
    def bits(self) -> float:
        """Bits of a weight and its share of the block scale."""
        return block_format(self.weight).stored_bits


@dataclass(frozen=True)
class Gpu:
    """One GPU model.

    Attributes:
        name: what users type, e.g. `rtx5090`.
        title: its full name.
        architecture: compute capability, e.g. 120.
        multiprocessors: SMs.
        clock: boost clock, Hz.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
        l2: bytes of the L2 cache.
        rates: FLOP per multiprocessor and clock, by kind of instruction; missing kinds do not
            exist on this GPU.
    """

    name: str
    title: str
    architecture: int
    multiprocessors: Figure
    clock: Figure | None
    bandwidth: Figure | None
    memory: Figure | None
    l2: Figure | None
    rates: Mapping[Kind, Figure]

    def flops(self, kind: Kind) -> float | None:
        """FLOP per second of the whole GPU at its boost clock; None where it cannot be said.

        GPUs without block-scaled instructions decode such operands and multiply in 16 bits.
        """
        if kind not in self.rates and kind in (Kind.BLOCK4, Kind.BLOCK8):
            kind = Kind.FP16
        rate = self.rates.get(kind)
        if rate is None or self.clock is None:
            return None
        return rate.value * self.multiprocessors.value * self.clock.value


@dataclass(frozen=True)
class Target:
    """A family of GPUs.

    Attributes:
        name: its architecture, e.g. `sm_120`.
        description: what it is, in a few words.
        kernels: how the plugin multiplies there.
        rates: FLOP per multiprocessor and clock, by kind of instruction.
        aliases: other names that users type.
    """

    name: str
    description: str
    kernels: Kernels
    rates: Mapping[Kind, Figure]
    aliases: tuple[str, ...] = ()

    @property
    def has_block_scales(self) -> bool:
        """Whether narrower formats multiply faster here."""
        return self.kernels is not Kernels.PORTABLE and Kind.BLOCK4 in self.rates

    def rate(self, pair: FormatPair) -> float:
        """Rate of a pair's instruction relative to FP16 on this GPU."""
        if not self.has_block_scales:
            return 1.0
        return self.rates[pair.kind].value / self.rates[Kind.FP16].value

    def speed_cost(self, pair: FormatPair) -> float:
        """Tensor-core time of a channel; the fastest pair of block formats costs 1.

        Where all pairs take the same time, each costs 1.
        """
        if not self.has_block_scales:
            return 1.0
        return self.rates[Kind.BLOCK4].value / self.rates[pair.kind].value

    def price(self, pair: FormatPair, objective: Objective) -> float:
        """What a channel of one output costs in what the objective counts: time, or bits."""
        return self.speed_cost(pair) if objective is Objective.PREFILL else pair.bits

    def plan_speed_cost(self, groups: Iterable[GroupPlan]) -> float:
        """Mean tensor-core cost of all multiplications of some layers, padding included."""
        spent = whole = 0.0
        for group in groups:
            outputs = sum(group.out_channels)
            whole += outputs * group.padded_channels
            for segment in group.segments:
                cost = self.speed_cost(FormatPair(segment.act_format, segment.weight_format))
                spent += outputs * segment.channels * cost
        return spent / whole if whole else 1.0

    def compute_limit(self, groups: Iterable[GroupPlan]) -> float:
        """Modelled limit of speed over FP16 where the tensor cores bound: large batches."""
        fp16 = mixed = 0.0
        for group in groups:
            rows = sum(group.out_channels)
            fp16 += rows * group.in_channels
            for segment in group.segments:
                pair = FormatPair(segment.act_format, segment.weight_format)
                mixed += rows * segment.channels / self.rate(pair)
        return fp16 / mixed if mixed else 1.0

    def remark(self, objective: Objective) -> str:
        """What an owner has to know of plans for it, in words; empty where there is nothing."""
        if self.kernels is Kernels.NONE:
            return f"the plugin holds no kernels for {self.name}; it runs nothing there yet"
        if self.has_block_scales:
            return ""
        reason = f"{self.name} multiplies no block-scaled operands: narrow formats gain no time"
        if objective is Objective.PREFILL:
            return f"{reason}, so that formats go wide (objectives decode and memory save bytes)"
        return f"{reason}, only bytes of weights"
