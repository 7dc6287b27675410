"""SASS, the machine code of NVIDIA's GPUs, as nvdisasm prints it: functions, blocks and loops.

nvdisasm comes with the CUDA toolkit and in the PyPI wheel nvidia-cuda-nvdisasm; it needs no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmcompile.errors import EnvironmentProblem

_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.([^,]+),")
_LABEL = re.compile(r"^(\.L_[\w.]+):")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_PLACE = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_TARGET = re.compile(r"`\((\.L_[\w.]+)\)")
_MMA = re.compile(r"^(OMMA|QMMA|HMMA|IMMA|DMMA|BMMA|UTC\w*MMA)\b")

CLASSES = ("mma", "padding", "ldmatrix", "shared", "copy", "constant", "uniform", "control", "alu")
"""What an issue slot goes to. Padding: NOP, and what the predicate !PT turns off; the compiler puts
them between tensor-core instructions and before LDGSTS. Copy: LDGSTS and its bookkeeping."""

_CLASS_OF = {
    "LDSM": "ldmatrix",
    "LDS": "shared",
    "STS": "shared",
    "LDGSTS": "copy",
    "LDGDEPBAR": "copy",
    "DEPBAR": "copy",
    "LDC": "constant",
    "LDCU": "constant",
    "BRA": "control",
    "BRX": "control",
    "BSSY": "control",
    "BSYNC": "control",
    "BAR": "control",
    "CALL": "control",
    "RET": "control",
    "EXIT": "control",
    "WARPSYNC": "control",
}


@dataclass(frozen=True)
class Instruction:
    """One issue slot.

    Attributes:
        offset: bytes from the function's start.
        predicate: `@P0`, `@!PT`, or empty.
        opcode: with its modifiers, `LDSM.16.M88.4`.
        operands: as printed.
        places: source lines, innermost first, as (file name, line); empty without -lineinfo.
    """

    offset: int
    predicate: str
    opcode: str
    operands: str
    places: tuple[tuple[str, int], ...] = ()

    @property
    def kind(self) -> str:
        """One of CLASSES."""
        name = self.opcode.partition(".")[0]
        if name == "NOP" or self.predicate == "@!PT":
            return "padding"
        if _MMA.match(name):
            return "mma"
        return _CLASS_OF.get(name) or ("uniform" if name.startswith("U") else "alu")

    @property
    def is_conditional(self) -> bool:
        """A branch that may fall through."""
        return bool(self.predicate) or re.match(r"!?U?P\d", self.operands) is not None


@dataclass
class Block:
    """Instructions that run one after another; `successors` are indices of blocks."""

    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)

    def mmas(self) -> set[str]:
        """Opcodes of its tensor-core instructions."""
        return {each.opcode for each in self.instructions if each.kind == "mma"}


@dataclass(frozen=True)
class Function:
    """A kernel's code as blocks in the order of addresses; block 0 is the entry."""

    name: str
    blocks: Sequence[Block]

    def instructions(self) -> Iterable[Instruction]:
        """All of them, in the order of addresses."""
        for block in self.blocks:
            yield from block.instructions

    def opcodes(self) -> Counter[str]:
        """How often each opcode occurs."""
        return Counter(each.opcode for each in self.instructions())


@dataclass(frozen=True)
class Loop:
    """A natural loop: from `latch` a branch goes back to `header`."""

    header: int
    latch: int
    blocks: frozenset[int]


def find_tool(name: str) -> Path:
    """Finds nvdisasm or another tool: on PATH, in a wheel, or where CUDA is installed.

    Raises:
        EnvironmentProblem: there is none.
    """
    found = shutil.which(name)
    if found:
        return Path(found)
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    for folder in (wheels / "cu13" / "bin", Path("/usr/local/cuda/bin")):
        if (folder / name).is_file():
            return folder / name
    raise EnvironmentProblem(
        "no-disassembler",
        name,
        "not on PATH, in site-packages/nvidia/cu13/bin or in /usr/local/cuda/bin",
        f"pip install nvidia-cuda-{name}",
    )


def disassemble(cubin: Path) -> dict[str, Function]:
    """All functions of a cubin, by their mangled names."""
    command = [str(find_tool("nvdisasm")), "-c", "-gi", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {function.name: function for function in parse(text)}


def parse(text: str) -> Iterable[Function]:
    """Functions of `nvdisasm -c` or, with source lines, `nvdisasm -c -gi`."""
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        start = _FUNCTION.match(line)
        if start:
            if name:
                yield Function(name, _blocks(lines))
            name, lines = start[1], []
        elif line.lstrip().startswith(".section"):
            if name:
                yield Function(name, _blocks(lines))
            name = ""
        elif name:
            lines.append(line)
    if name:
        yield Function(name, _blocks(lines))


def _blocks(lines: Iterable[str]) -> list[Block]:
    blocks = [Block()]
    labels: dict[str, int] = {}
    targets: list[str | None] = [None]
    places: list[tuple[str, int]] = []
    above_is_place = False
    for line in lines:
        place = _PLACE.match(line)
        if place:
            # A chain of inlined places replaces the chain before it.
            places = [*places, _place(place)] if above_is_place else [_place(place)]
            above_is_place = True
            continue
        above_is_place = False
        label = _LABEL.match(line)
        if label:
            if blocks[-1].instructions:
                blocks.append(Block())
                targets.append(None)
            labels[label[1]] = len(blocks) - 1
            continue
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        each = Instruction(int(found[1], 16), found[2] or "", found[3], found[4], tuple(places))
        blocks[-1].instructions.append(each)
        if each.opcode.partition(".")[0] in ("BRA", "BRX", "EXIT", "RET"):
            target = _TARGET.search(each.operands)
            targets[-1] = target[1] if target else None
            blocks.append(Block())
            targets.append(None)
    for index, block in enumerate(blocks):
        _connect(blocks, index, block, targets[index], labels)
    return blocks


def _place(match: re.Match[str]) -> tuple[str, int]:
    return Path(match[1]).name, int(match[2])


def _connect(
    blocks: Sequence[Block], index: int, block: Block, target: str | None, labels: Mapping[str, int]
) -> None:
    last = block.instructions[-1] if block.instructions else None
    leaves = last is not None and last.opcode.partition(".")[0] in ("BRA", "BRX", "EXIT", "RET")
    falls = not leaves or (last is not None and last.is_conditional)
    if falls and index + 1 < len(blocks):
        block.successors.append(index + 1)
    reached = labels.get(target) if target else None
    if reached is not None and reached not in block.successors:
        block.successors.append(reached)


def loops(function: Function) -> list[Loop]:
    """Natural loops: those of branches back to a block of a lower address that leads to them."""
    predecessors: dict[int, list[int]] = {}
    for index, block in enumerate(function.blocks):
        for successor in block.successors:
            predecessors.setdefault(successor, []).append(index)
    found = []
    for latch, block in enumerate(function.blocks):
        for header in block.successors:
            if header > latch:
                continue
            body = {header, latch}
            waiting = [latch] if latch != header else []
            while waiting:
                for before in predecessors.get(waiting.pop(), []):
                    if before not in body:
                        body.add(before)
                        waiting.append(before)
            if min(body) == header:  # else it is entered from elsewhere: no natural loop
                found.append(Loop(header, latch, frozenset(body)))
    return found


def main_loop(function: Function) -> Loop | None:
    """The loop with a barrier that has the most tensor-core instructions; None if there is none."""

    def weight(loop: Loop) -> int:
        return sum(
            each.kind == "mma"
            for index in loop.blocks
            for each in function.blocks[index].instructions
        )

    candidates = [
        loop
        for loop in loops(function)
        if weight(loop)
        and any(
            each.opcode.startswith("BAR.SYNC")
            for index in loop.blocks
            for each in function.blocks[index].instructions
        )
    ]
    return max(candidates, key=weight, default=None)


def paths_by_copies(
    function: Function, loop: Loop, through: frozenset[int], avoided: frozenset[int]
) -> dict[int, list[int]]:
    """The shortest ways once around a loop, by the number of LDGSTS that they pass.

    Inner loops are passed once.

    Args:
        function: the code.
        loop: of it.
        through: one of these blocks is passed.
        avoided: none of these is.

    Returns:
        lists of blocks from header to latch.
    """
    # Of a block, a number of copies, and whether `through` was passed: length and way up to it.
    best: dict[int, dict[tuple[int, bool], tuple[int, list[int]]]] = {}
    for index in sorted(loop.blocks):
        if index in avoided:
            continue
        block = function.blocks[index]
        copies = sum(each.opcode.startswith("LDGSTS") for each in block.instructions)
        arriving = best.pop(index, {})
        if index == loop.header:
            arriving = {(0, False): (0, [])}
        reached = {
            (count + copies, passed or index in through): (
                length + len(block.instructions),
                [*way, index],
            )
            for (count, passed), (length, way) in arriving.items()
        }
        if index == loop.latch:
            return {count: way for (count, passed), (_, way) in reached.items() if passed}
        for successor in block.successors:
            if successor <= index or successor not in loop.blocks:
                continue
            known = best.setdefault(successor, {})
            for key, value in reached.items():
                if key not in known or value[0] < known[key][0]:
                    known[key] = value
    return {}
