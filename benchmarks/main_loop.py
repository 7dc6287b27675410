"""The GEMM's main loop in machine code: what one turn issues, and how long it is modelled to take.

A turn multiplies one chunk of K. A block's warps meet at a barrier in every turn, so what they do
before the first and after the last tensor-core instruction (the gap) is hidden only by another
block on the same multiprocessor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.kernel_build import Tile
from benchmarks.sass import Block, Function, Instruction, Loop, main_loop, paths_by_copies

VARIANTS = ("mxfp4", "nvfp4", "mxfp8", "mxfp8 W4", "mxfp8 W6 e2m3", "mxfp8 W6 e3m2")
"""By instruction and, of mxfp8, by the weights that are widened on the way in."""

SCHEDULERS = 4
"""Sub-partitions of a multiprocessor, with a tensor core and one issue slot per clock each."""
FLOP_PER_CLOCK = {"OMMA": 4096, "QMMA": 2048}
"""Per multiprocessor of sm_120, block-scaled e2m1 and e4m3; quoted, see mmcompile/targets/."""
MMA_FLOP = {"OMMA": 2 * 16 * 8 * 64, "QMMA": 2 * 16 * 8 * 32}
"""Of m16n8k64 and m16n8k32."""
MMA_CYCLES = {name: flop * SCHEDULERS // FLOP_PER_CLOCK[name] for name, flop in MMA_FLOP.items()}
"""Clocks of a sub-partition's tensor core: 16 for both."""
LOAD_CYCLES = 30
"""Assumed: until an indexed load of constant memory, or one of shared memory, has returned."""

_REGISTER = re.compile(r"\bR(\d+)")
_WIDTHS = {"64": 2, "128": 4, "4": 4, "2": 2}


@dataclass(frozen=True)
class Turn:
    """One turn of a tile's main loop in one variant, as every warp issues it.

    Attributes:
        tile: of the GEMM.
        variant: one of VARIANTS.
        mma: name of the tensor-core instruction, OMMA or QMMA.
        kinds: issue slots by class (sass.CLASSES).
        gap: slots that are not between the first and the last tensor-core instruction.
        waits: loads in the gap that what follows waits for, one after another.
        complete: the turn can start all copies of a chunk that the tile's shape asks for.
        places: slots by line of mixed_gemm in gemm.h.
    """

    tile: Tile
    variant: str
    mma: str
    kinds: Counter[str]
    gap: int
    waits: int
    complete: bool
    places: Counter[int]

    @property
    def slots(self) -> int:
        """All that a warp issues in a turn."""
        return self.kinds.total()

    @property
    def warps(self) -> int:
        """Of a block, per scheduler."""
        return self.tile.threads // 32 // SCHEDULERS

    @property
    def tensor_cycles(self) -> int:
        """The tensor cores' time for a block's turn: what can't be beaten."""
        return self.warps * self.kinds["mma"] * MMA_CYCLES[self.mma]

    @property
    def issue_cycles(self) -> int:
        """The schedulers' time for a block's turn."""
        return self.warps * self.slots

    @property
    def exposed_cycles(self) -> int:
        """Modelled clocks of a turn of a block that is alone on its multiprocessor."""
        span = self.warps * (self.slots - self.gap)
        gap = max(self.warps * self.gap, self.gap + self.waits * LOAD_CYCLES)
        return max(self.tensor_cycles, span) + gap

    def cycles(self, blocks: int) -> int:
        """Modelled clocks of a turn of each of `blocks` blocks; others fill a block's gap."""
        if blocks == 1:
            return self.exposed_cycles
        busy = blocks * max(self.tensor_cycles, self.issue_cycles)
        return max(busy, self.exposed_cycles)


def turns(function: Function, tile: Tile) -> list[Turn]:
    """The turns of a kernel's main loop, in the order of VARIANTS.

    Raises:
        ValueError: there is no such loop, or a turn is not understood.
    """
    loop = main_loop(function)
    if loop is None:
        raise ValueError(f"{tile.name}: no loop with a barrier and tensor-core instructions")
    multiplying = [index for index in sorted(loop.blocks) if function.blocks[index].mmas()]
    found: dict[str, Turn] = {}
    for index in multiplying:
        variant = _variant(function.blocks[index])
        if variant in found:
            raise ValueError(f"{tile.name}: two blocks of instructions for {variant}")
        found[variant] = _turn(function, loop, tile, index, variant, multiplying)
    return [found[variant] for variant in VARIANTS if variant in found]


def _variant(block: Block) -> str:
    opcodes = {each.opcode for each in block.instructions}
    (mma,) = block.mmas()
    if mma.startswith("OMMA.SF"):
        return "nvfp4" if mma.endswith(".4X") else "mxfp4"
    if not mma.startswith("QMMA.SF"):
        return mma
    if "LDS.U16" in opcodes:
        return "mxfp8 W4"
    # kScaleStep of widen.h: what widening adds to every scale byte.
    for constant, weight in (("0x6060606", "W6 e2m3"), ("0x4040404", "W6 e3m2")):
        if any(constant in each.operands for each in block.instructions):
            return f"mxfp8 {weight}"
    return "mxfp8"


def _turn(
    function: Function,
    loop: Loop,
    tile: Tile,
    index: int,
    variant: str,
    multiplying: Sequence[int],
) -> Turn:
    others = frozenset(multiplying) - {index}
    ways = paths_by_copies(function, loop, frozenset((index,)), others)
    if not ways:
        raise ValueError(f"{tile.name}, {variant}: no way around the loop")
    expected = tile.copies(2 if variant == "nvfp4" else 1)
    enough = [count for count in ways if count >= expected]
    copies = min(enough) if enough else max(ways)
    path = [each for block in ways[copies] for each in function.blocks[block].instructions]
    numbers = [number for number, each in enumerate(path) if each.kind == "mma"]
    gap = [*path[numbers[-1] + 1 :], *path[: numbers[0] + 1]]
    return Turn(
        tile,
        variant,
        path[numbers[0]].opcode.partition(".")[0],
        Counter(each.kind for each in path),
        len(gap) - 1,
        _waits(gap),
        copies >= expected,
        Counter(_place(each) for each in path),
    )


def _place(instruction: Instruction) -> int:
    """The line of the outermost function of gemm.h that it was inlined into."""
    lines = [line for name, line in instruction.places if name == "gemm.h"]
    return lines[-1] if lines else 0


def _waits(instructions: Iterable[Instruction]) -> int:
    """Round trips to memory: each time something reads what a load has not yet brought."""
    count = 0
    pending: set[int] = set()
    for each in instructions:
        if each.kind == "padding":
            continue
        target, _, sources = each.operands.partition(",")
        loads = each.kind in ("constant", "shared", "ldmatrix")
        if pending & _registers(each, each.operands if each.kind == "copy" else sources):
            count += 1
            pending.clear()
        if loads and target.startswith("R"):
            start = int(target[1:].split(".")[0]) if target[1:2].isdigit() else -1
            width = next((_WIDTHS[part] for part in each.opcode.split(".") if part in _WIDTHS), 1)
            if start >= 0:
                pending.update(range(start, start + width))
    return count


def _registers(instruction: Instruction, operands: str) -> set[int]:
    found = {int(each) for each in _REGISTER.findall(operands)}
    if instruction.kind == "mma":  # A takes four registers, B two
        found |= {each + offset for each in found for offset in range(4)}
    elif ".64" in instruction.opcode or "WIDE" in instruction.opcode:
        found |= {each + 1 for each in found}
    return found
