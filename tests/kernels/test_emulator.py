"""The block emulator finds what is wrong with a kernel, and passes what is right."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict

import pytest

from tests.kernels.build import EMULATOR_SOURCES, TESTING, Recipe, compile_executable

pytestmark = pytest.mark.slow

SEEDS = 8
POLICIES = ("early", "late", "random")

RACE = r"race: no barrier since .* (wrote|read) byte \d+ of shared memory"
PENDING = r"byte \d+ of shared memory is being written by an asynchronous copy of thread \d+"
OUTSIDE = r"outside of every buffer: \d+ bytes? (past the end of|before) '{}' of \d+ bytes"
SHARED = r"are outside of the block's 1024 bytes of shared memory"

RIGHT = [
    "exchange in a block",
    "exchange in a warp",
    "matrices",
    "poison",
    "copies",
    "own copy",
    "pipeline",
    "shuffles",
    "split, all fence",
    "split, one fences",
    "earlier kernel",
]
FAULTS = {
    "exchange in a block: no first barrier": RACE,
    "exchange in a block: no second barrier": RACE,
    "exchange in a block: barrier of the warp only": RACE,
    "exchange in a warp: no first barrier": RACE,
    "exchange in a warp: no second barrier": RACE,
    "warps apart": RACE,
    "one of two readers writes, one warp": RACE,
    "one of two readers writes, two warps": RACE,
    "one of two readers writes, global": r"race: byte \d+ of 'scratch' was (read|written) by",
    "matrices: no first barrier": RACE,
    "matrices: no second barrier": RACE,
    "copies: no barrier after the wait": f"{RACE}|{PENDING}",
    "copies: wait off by one": PENDING,
    "copies: barrier before the wait": f"{RACE}|{PENDING}",
    "copies: no commit": PENDING,
    "own copy: no wait": PENDING,
    "pipeline: wait off by one": PENDING,
    "pipeline: no barrier before reading": f"{RACE}|{PENDING}",
    "pipeline: no barrier before overwriting": RACE,
    "pipeline: output shifted": OUTSIDE.format("c"),
    "global read past the end": "load_global .*" + OUTSIDE.format("c"),
    "global read before the start": "load_constant .*" + OUTSIDE.format("input"),
    "global write past the end": "store_global .*" + OUTSIDE.format("c"),
    "global read across the end": "16 bytes at offset 0 of 'counter' reach past its 4 bytes",
    "global read misaligned": "offset 2 of 'input' is misaligned for 4 bytes",
    "global write misaligned": "offset 4 of 'output' is misaligned for 8 bytes",
    "write to a constant": "write to 'input', which is read-only",
    "constant load of an output": "'output' is written while this kernel runs",
    "shared read outside": f"load_shared .*4 bytes at offset 1024 {SHARED}",
    "shared write outside": f"store_shared .*2 bytes at offset 1024 {SHARED}",
    "shared offset wraps": SHARED,
    "shared read misaligned": "offset 2 of shared memory is misaligned for 4 bytes",
    "matrix outside": f"load_matrices .*16 bytes at offset [0-9]+ {SHARED}",
    "matrix misaligned": "offset [0-9]+ of shared memory is misaligned for 16 bytes",
    "copy to outside": f"copy_async .*16 bytes at offset 1024 {SHARED}",
    "copy misaligned": "offset 4 of 'input' is misaligned for 16 bytes",
    "copy from outside": "16 bytes at offset 1016 of 'input' reach past its 1024 bytes",
    "shuffle masks differ": "lanes of a warp disagree on the lane mask",
    "warp diverges": "its warp diverges: lane .* is at (sync_warp|shuffle_xor)",
    "lanes end": "deadlock: .*lanes 0-7 wait in sync_warp .*lanes 8-31 ended",
    "warp skips a barrier": "deadlock: .*all lanes wait in sync_threads .*all lanes ended",
    "lane skips a barrier": "deadlock: .*lanes 0-4, 6-31 wait in sync_threads .*lane 5 ended",
    "barrier and warp": "deadlock: .*lanes 16-31 wait in sync_warp .*lanes 0-15 wait in sync_th",
    "bad selector": "permute_bytes .*a selector above 7",
    "kernel throws": "the kernel's own",
    "two threads write": r"byte \d+ of 'output' was written before, by thread \d+",
    "two blocks write": r"byte \d+ of 'output' was written before, by thread \d+",
    "reads another block's": r"race: byte \d+ of 'scratch' was (read|written) by",
    "writes what another block read": r"race: byte \d+ of 'scratch' was (read|written) by",
    "split, all fence: no release": "which has not released it",
    "split, all fence: no barrier": "which has not released it",
    "split, all fence: no acquire": "this block has not acquired it",
    "split, one fences: no release": "which has not released it",
    "split, one fences: no barrier": "which has not released it",
    "split, one fences: no acquire": "this block has not acquired it",
    "earlier kernel: one thread does not wait": "thread 3 .*has not called wait_for_prerequisites",
    "earlier kernel: copy without waiting": "has not called wait_for_prerequisites",
    "earlier kernel: as a constant": "'earlier' is written while this kernel runs",
}
SPECIAL = {"late source", "order of blocks"}

Outcomes = dict[str, dict[tuple[int, str], str]]


def run(seeds: list[int], **defines: None) -> str:
    program = compile_executable(
        "emulator_test",
        (TESTING / "emulator_test.cpp", *EMULATOR_SOURCES),
        Recipe(defines=defines),
    )
    arguments = [str(program), *map(str, seeds)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Of each case, by seed and policy of copies."""
    table: Outcomes = defaultdict(dict)
    for line in run(list(range(SEEDS))).splitlines():
        seed, policy, case, outcome = line.split("\t")
        table[case][int(seed), policy] = outcome
    return table


def test_every_case_is_judged_here(outcomes: Outcomes):
    assert set(outcomes) == {*RIGHT, *FAULTS, *SPECIAL}
    assert {len(each) for each in outcomes.values()} == {SEEDS * len(POLICIES)}


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_kernel_passes(outcomes: Outcomes, case: str):
    assert set(outcomes[case].values()) == {"ok"}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_found_in_every_order(outcomes: Outcomes, case: str):
    for key, outcome in outcomes[case].items():
        assert re.search(FAULTS[case], outcome), (key, outcome)
        if case != "kernel throws":
            assert re.match(
                r"block \(\d, 0\): (thread \d+ \(warp \d, lane \d+\)|deadlock)", outcome
            )


def test_errors_name_the_line(outcomes: Outcomes):
    lines = (TESTING / "emulator_test_kernels.h").read_text().splitlines()
    found = re.search(r"emulator_test_kernels.h:(\d+)", outcomes["bad selector"][0, "early"])
    assert found is not None
    assert "permute_bytes" in lines[int(found[1]) - 1]


def test_a_copy_reads_and_lands_when_the_policy_says(outcomes: Outcomes):
    seen = outcomes["late source"]
    assert {seen[seed, "early"] for seed in range(SEEDS)} == {"ok"}
    assert {seen[seed, "late"] for seed in range(SEEDS)} == {"ok, later"}


def test_blocks_run_once_each_in_several_orders(outcomes: Outcomes):
    orders = set(outcomes["order of blocks"].values())
    assert len(orders) > 2
    assert {tuple(sorted(order.split())) for order in orders} == {
        ("0", "1", "2", "3", "4", "5", "ok")
    }


def test_a_seed_fixes_everything():
    assert run([3]) == run([3])


def test_fibers_of_other_processors_run_alike():
    assert run([3], MMCOMPILE_UCONTEXT=None) == run([3])
