"""What the compiler makes of the native kernels: registers, spills, and the main loop's slots.

    python -m benchmarks.kernel_code [--markdown]

Compiles plugins/library/cuda.cu for sm_120f and reads the machine code back; needs nvcc and
nvdisasm and no GPU. Fails (exit code 1) where a kernel spills registers, where a GEMM lacks one of
its block-scaled instructions, or has any other tensor-core instruction.

Cycles are modelled, per turn of the main loop and block: the tensor cores' from published rates
(main_loop.py), the schedulers' at one instruction per clock. Alone is a block that shares its
multiprocessor with no other: its warps meet at a barrier in every turn, and nobody multiplies while
they compute addresses.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.kernel_build import ROOT, Resources, Tile, compile_kernels, nvcc_version, tiles
from benchmarks.main_loop import VARIANTS, Turn, turns
from benchmarks.sass import CLASSES, Function, disassemble
from benchmarks.tables import command_line, show
from mmcompile.errors import MMCompileError

REGISTERS = 65536
THREADS = 1536
SHARED_BYTES = 102400
SHARED_RESERVED = 1024
"""Of a multiprocessor of sm_120; the system reserves 1 KiB of shared memory per block."""

NATIVE = (
    "OMMA.SF.16864.F32.E2M1.E2M1.E8",
    "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X",
    "QMMA.SF.16832.F32.E4M3.E4M3.E8",
)
"""mxf4, mxf4nvf4 with four scales, mxf8f6f4: what the GEMM multiplies with."""

_GEMM = re.compile(r"gemm_kernelILi(\d+)E")
_QUANTIZE = re.compile(r"quantize_kernel.*MmcType(\d)ELi(\d+)E")
_TYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        name: such as `gemm large` or `quantize bf16, 4 rows`.
        tile: of a GEMM.
        resources: what the compiler says of it.
        code: its machine code.
        turns: of a GEMM's main loop.
    """

    name: str
    tile: Tile | None
    resources: Resources
    code: Function
    turns: Sequence[Turn] = ()

    @property
    def code_bytes(self) -> int:
        """Size of the machine code."""
        return 16 * sum(1 for _ in self.code.instructions())

    def faults(self) -> list[str]:
        """What must not be; empty if all is well."""
        found = []
        resources = self.resources
        if resources.spill_stores or resources.spill_loads or resources.stack:
            found.append(
                f"{self.name}: spills registers ({resources.spill_stores} bytes stored, "
                f"{resources.spill_loads} loaded, a stack of {resources.stack})"
            )
        mmas = {each.opcode for each in self.code.instructions() if each.kind == "mma"}
        needed = set(NATIVE) if self.tile else set()
        found += [f"{self.name}: has no {each}" for each in sorted(needed - mmas)]
        found += [f"{self.name}: has {each}" for each in sorted(mmas - needed)]
        if self.tile:
            missing = sorted(set(VARIANTS) - {turn.variant for turn in self.turns})
            found += [f"{self.name}: no main loop for {each}" for each in missing]
        return found


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    arguments = parser.parse_args()
    try:
        kernels = compiled_kernels()
    except MMCompileError as error:
        sys.exit(str(error))
    print(f"nvcc {nvcc_version()}, sm_120f: compiled, never run on Blackwell; cycles are modelled")
    _show_resources(kernels, arguments.markdown)
    _show_slots(kernels, arguments.markdown)
    _show_cycles(kernels, arguments.markdown)
    _show_places(kernels, arguments.markdown)
    faults = [fault for kernel in kernels for fault in kernel.faults()]
    sys.exit("\n".join(["", *faults]) if faults else 0)


def compiled_kernels() -> list[Kernel]:
    """All native kernels: the GEMM's tiles in order, then the quantization's.

    Raises:
        EnvironmentProblem: nvcc or nvdisasm is missing, or the source does not compile.
    """
    cubin, resources = compile_kernels()
    code = disassemble(cubin)
    found = [_kernel(name, each, code) for name, each in resources.items()]
    names = {tile.name: number for number, tile in enumerate(tiles())}
    return sorted(found, key=lambda each: (names[each.tile.name] if each.tile else 99, each.name))


def _kernel(name: str, resources: Resources, code: Mapping[str, Function]) -> Kernel:
    gemm = _GEMM.search(name)
    if gemm:
        tile = tiles()[int(gemm[1])]
        return Kernel(f"gemm {tile.name}", tile, resources, code[name], turns(code[name], tile))
    quantize = _QUANTIZE.search(name)
    if quantize:
        rows = f"{quantize[2]} rows" if quantize[2] != "0" else "direct"
        name_of_type = _TYPES[int(quantize[1])]
        return Kernel(f"quantize {name_of_type}, {rows}", None, resources, code[name])
    return Kernel(name, None, resources, code[name])


def blocks_per_multiprocessor(registers: int, tile: Tile) -> int:
    """How many blocks of a GEMM run at a time on a multiprocessor of sm_120.

    Registers are given out in units of 8 per thread.
    """
    by_registers = REGISTERS // (-(-registers // 8) * 8 * tile.threads)
    by_memory = SHARED_BYTES // (tile.shared_bytes + SHARED_RESERVED)
    return min(by_registers, by_memory, THREADS // tile.threads)


def _show_resources(kernels: Sequence[Kernel], markdown: bool) -> None:
    rows = []
    for kernel in kernels:
        resources, tile = kernel.resources, kernel.tile
        spilled = resources.spill_stores + resources.spill_loads
        cells = ["–", "–", "–"]
        if tile:
            blocks = blocks_per_multiprocessor(resources.registers, tile)
            cells = [str(tile.threads), f"{tile.shared_bytes:,}", str(blocks)]
        rows.append(
            [
                kernel.name,
                str(resources.registers),
                f"{spilled} B" if spilled else "none",
                str(resources.stack),
                *cells,
                f"{kernel.code_bytes / 1024:.1f}",
            ]
        )
    columns = ["kernel", "registers", "spills", "stack", "threads", "shared memory", "blocks / SM"]
    show("Resources", [*columns, "code KiB"], rows, markdown=markdown)


def _all_turns(kernels: Sequence[Kernel]) -> list[tuple[Kernel, Turn]]:
    return [(kernel, turn) for kernel in kernels for turn in kernel.turns]


def _show_slots(kernels: Sequence[Kernel], markdown: bool) -> None:
    rows = [
        [
            f"{kernel.name.partition(' ')[2]}, {turn.variant}" + ("" if turn.complete else " (?)"),
            str(turn.slots),
            *(str(turn.kinds[kind]) for kind in CLASSES),
            f"{turn.kinds['mma'] / turn.slots:.0%}",
        ]
        for kernel, turn in _all_turns(kernels)
    ]
    columns = ["turn of a warp", "slots", *CLASSES, "mma / slots"]
    show("Issue slots of one turn of the main loop, by class", columns, rows, markdown=markdown)


def _show_cycles(kernels: Sequence[Kernel], markdown: bool) -> None:
    rows = []
    for kernel, turn in _all_turns(kernels):
        assert kernel.tile is not None
        blocks = blocks_per_multiprocessor(kernel.resources.registers, kernel.tile)
        efficiency = blocks * turn.tensor_cycles / turn.cycles(blocks)
        bound = "tensor" if turn.tensor_cycles >= turn.issue_cycles else "issue"
        rows.append(
            [
                f"{kernel.tile.name}, {turn.variant}",
                str(turn.tensor_cycles),
                str(turn.issue_cycles),
                bound,
                str(turn.gap),
                str(turn.waits),
                str(turn.exposed_cycles),
                str(blocks),
                f"{efficiency:.0%}",
            ]
        )
    columns = ["turn of a block", "tensor", "issue", "bound by", "gap slots", "waits", "alone"]
    title = "Modelled clocks of one turn, per block"
    show(title, [*columns, "blocks / SM", "of the tensor rate"], rows, markdown=markdown)


def _show_places(kernels: Sequence[Kernel], markdown: bool) -> None:
    source = (ROOT / "plugins" / "kernels" / "gemm.h").read_text(encoding="utf-8").splitlines()
    chosen = {
        kernel.tile.name: turn
        for kernel, turn in _all_turns(kernels)
        if kernel.tile and turn.variant == "mxfp4"
    }
    lines = sorted({line for turn in chosen.values() for line in turn.places})
    rows = []
    for line in lines:
        text = source[line - 1].strip() if line else "(no line)"
        counts = [turn.places[line] for turn in chosen.values()]
        if max(counts) >= 4:
            rows.append([f"{line}: `{text}`", *map(str, counts)])
    title = "Issue slots of an mxfp4 turn by line of mixed_gemm in gemm.h, four or more"
    show(title, ["line", *chosen], rows, markdown=markdown)


if __name__ == "__main__":
    main()
