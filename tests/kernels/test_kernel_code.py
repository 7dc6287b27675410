"""The compiler turns every native kernel into code without spills, on block-scaled instructions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.kernel_build import Resources, parse_resources, tiles
from benchmarks.kernel_code import NATIVE, Kernel, blocks_per_multiprocessor, compiled_kernels
from benchmarks.main_loop import VARIANTS, turns
from benchmarks.sass import Function, find_tool, loops, main_loop, parse, paths_by_copies
from mmcompile.errors import EnvironmentProblem

pytestmark = pytest.mark.slow

MISSING = {"no-nvcc", "no-disassembler", "no-compiler"}

LISTING = """
\t.section\t.text.kernel,"ax",@progbits
kernel:
        /*0000*/                   MOV R1, RZ ;
.L_x_1:
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0020*/               @P0 BRA `(.L_x_2) ;
\t//## File "/plugins/kernels/device.h", line 9 inlined at "/plugins/kernels/gemm.h", line 230
\t//## File "/plugins/kernels/gemm.h", line 230 inlined at "/plugins/library/cuda.cu", line 33
\t//## File "/plugins/library/cuda.cu", line 33
        /*0030*/              @!PT LDS RZ, [RZ] ;
        /*0040*/                   LDGSTS.E [R15], desc[UR10][R12.64], !P0 ;
.L_x_2:
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/                   OMMA.SF.16864.F32.E2M1.E2M1.E8 R8, R4, R2, R8, R1, R3, URZ ;
        /*0070*/                   NOP ;
        /*0080*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*0090*/                   QMMA.SF.16832.F32.E4M3.E4M3.E8 R8, R4, R2, R8, R1, R3, URZ ;
.L_x_4:
        /*00a0*/              @!P2 BRA `(.L_x_1) ;
        /*00b0*/                   EXIT ;
\t.section\t.nv.info,"",@"SHT_CUDA_INFO"
"""

LOG = """
ptxas info    : Compiling entry function 'one' for 'sm_120f'
ptxas info    : Function properties for one
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size
ptxas info    : Compiling entry function 'two' for 'sm_120f'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
"""


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    try:
        find_tool("nvdisasm")
        return compiled_kernels()
    except EnvironmentProblem as problem:
        if problem.code not in MISSING:
            raise
        pytest.skip(str(problem))


def listed() -> Function:
    (function,) = parse(LISTING)
    return function


def test_nothing_is_wrong_with_any_native_kernel(kernels: list[Kernel]):
    assert [fault for kernel in kernels for fault in kernel.faults()] == []


def test_every_tile_and_the_quantization_are_there(kernels: list[Kernel]):
    assert [kernel.tile for kernel in kernels if kernel.tile] == list(tiles())
    assert {kernel.name.split()[1] for kernel in kernels if not kernel.tile} >= {
        "fp32,",
        "fp16,",
        "bf16,",
    }


def test_a_turn_multiplies_what_the_tile_asks_for_and_starts_all_copies(kernels: list[Kernel]):
    for kernel in kernels:
        for turn in kernel.turns:
            fragments = turn.tile.fragments_a * turn.tile.fragments_b
            assert turn.kinds["mma"] == 2 * fragments, (kernel.name, turn.variant)
            assert turn.complete, (kernel.name, turn.variant)
            assert turn.mma == ("OMMA" if "fp4" in turn.variant else "QMMA")


def test_blocks_that_the_chooser_counts_on_fit(kernels: list[Kernel]):
    for kernel in kernels:
        if kernel.tile:
            assert blocks_per_multiprocessor(kernel.resources.registers, kernel.tile) >= 1


def test_a_fault_is_named(kernels: list[Kernel]):
    kernel = next(each for each in kernels if each.tile)
    spilling = replace(kernel, resources=Resources(255, 8, 4, 4))
    assert spilling.faults() == [
        f"{kernel.name}: spills registers (4 bytes stored, 4 loaded, a stack of 8)"
    ]
    other = replace(kernel, code=listed(), turns=kernel.turns[1:])
    assert other.faults() == [
        f"{kernel.name}: has no {NATIVE[1]}",
        f"{kernel.name}: no main loop for {VARIANTS[0]}",
    ]
    (portable,) = parse(LISTING.replace("QMMA.SF.16832.F32.E4M3.E4M3.E8", "HMMA.16816.F32"))
    assert f"{kernel.name}: has HMMA.16816.F32" in replace(kernel, code=portable).faults()


def test_spills_are_read_from_the_compilers_log():
    assert parse_resources(LOG) == {"one": Resources(64, 8, 12, 4), "two": Resources(40, 0, 0, 0)}


def test_blocks_and_loops_of_a_listing():
    function = listed()
    assert [len(block.instructions) for block in function.blocks] == [1, 2, 2, 1, 3, 1, 1, 1, 0]
    assert [block.successors for block in function.blocks[:-1]] == [
        [1],
        [2, 3],
        [3],
        [4, 5],
        [6],
        [6],
        [7, 1],
        [],
    ]
    (loop,) = loops(function)
    assert (loop.header, loop.latch, loop.blocks) == (1, 6, frozenset(range(1, 7)))
    assert main_loop(function) == loop
    four_bit, eight_bit = frozenset((4,)), frozenset((5,))
    assert paths_by_copies(function, loop, four_bit, eight_bit) == {
        0: [1, 3, 4, 6],
        1: [1, 2, 3, 4, 6],
    }
    assert paths_by_copies(function, loop, eight_bit, four_bit)[1] == [1, 2, 3, 5, 6]


def test_classes_and_lines_of_a_listing():
    kinds = Counter(each.kind for each in listed().instructions())
    assert kinds == Counter(mma=2, padding=2, copy=1, control=6, alu=1)
    copy = next(each for each in listed().instructions() if each.kind == "copy")
    assert copy.places == (("device.h", 9), ("gemm.h", 230), ("cuda.cu", 33))


def test_the_turns_of_a_listing():
    found = {turn.variant: turn for turn in turns(listed(), tiles()[0])}
    assert list(found) == ["mxfp4", "mxfp8"]
    # BAR, BRA, LDS, LDGSTS, BRA, OMMA, NOP, BRA, BRA; all but the OMMA is gap.
    assert (found["mxfp4"].slots, found["mxfp4"].gap, found["mxfp4"].waits) == (9, 8, 0)
    # A line holds until the next one is printed: all but BAR and the first BRA.
    assert found["mxfp4"].places == Counter({230: 7, 0: 2})
    assert not found["mxfp4"].complete
    # Two warps a scheduler, one OMMA of 16 clocks each.
    assert found["mxfp4"].tensor_cycles == 32
    assert found["mxfp4"].exposed_cycles == 32 + 16
