"""The mixed GEMM against float64 products of the operands, in the block emulator.

Within the bound of docs/spec.md, section 7; to the bit where every sum is exact in fp32.
"""

from __future__ import annotations

import numpy as np
import pytest

from mmcompile.cuda.layers import E2M3, E3M2, MXFP4, MXFP8, NVFP4
from mmcompile.formats import E4M3_NAN, E8M0_NAN
from tests.kernels.emulated import (
    EARLY,
    LATE,
    NATIVE,
    PORTABLE,
    RANDOM,
    configure,
    emulated_library,
)
from tests.kernels.operands import TYPES, Draw, Problem

pytestmark = pytest.mark.slow

TILES = {NATIVE: range(1, 7), PORTABLE: range(1, 5)}
DEVICE_TILES = [(device, tactic) for device, tactics in TILES.items() for tactic in tactics]

# Borders at 32 channels, every instruction, every way that weights come in.
EVERYTHING = [
    (96, NVFP4, NVFP4),
    (160, MXFP4, MXFP4),
    (32, MXFP8, MXFP8),
    (96, E3M2, E3M2),
    (32, E2M3, E2M3),
    (64, MXFP8, MXFP4),
    (96, MXFP4, MXFP8),
    (32, MXFP8, E2M3),
]


def check(problem, device, tactic=0):
    y = problem.run(device, tactic).astype(np.float64)
    exact = problem.exact()
    wrong = np.argwhere(~(np.abs(y - exact) <= problem.bound()))
    assert wrong.size == 0, (
        f"{len(wrong)} of {y.size} wrong, first at {tuple(wrong[0])}: "
        f"{y[tuple(wrong[0])]} for {exact[tuple(wrong[0])]}"
    )
    return y


@pytest.fixture
def library():
    library = emulated_library()
    configure(library)
    return library


@pytest.mark.parametrize(("device", "tactic"), DEVICE_TILES)
def test_all_segments_on_every_tile(library, device, tactic):
    gpu = library.open_device(device)
    for seed, (rows, channels) in enumerate([(1, 40), (19, 67), (130, 33)]):
        configure(library, seed=seed)
        draw = Draw(seed=seed, bias=True, residual=True)
        check(Problem(library, rows, channels, EVERYTHING, draw), gpu, tactic)


@pytest.mark.parametrize(("device", "tactic"), DEVICE_TILES)
def test_exact_sums_come_out_to_the_bit(library, device, tactic):
    draw = Draw(seed=tactic, exact=True, bias=True)
    problem = Problem(library, 21, 70, EVERYTHING, draw)
    y = problem.run(library.open_device(device), tactic)
    np.testing.assert_array_equal(y, problem.exact().astype(np.float32))


@pytest.mark.parametrize("tactic", [2, 3, 4])
@pytest.mark.parametrize("y_type", [0, 1, 2])
def test_y_may_lie_at_any_element(library, tactic, y_type):
    gpu = library.open_device(NATIVE)
    problem = Problem(library, 19, 34, EVERYTHING, Draw(y_type=y_type))
    y = problem.run(gpu, tactic)
    np.testing.assert_array_equal(problem.run(gpu, tactic, y_offset=1), y)


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
@pytest.mark.parametrize("y_type", [0, 1, 2])
def test_output_is_rounded_once(library, device, y_type):
    # Sums that fp32 holds exactly, so that the type's rounding is the only one.
    draw = Draw(seed=3, exact=True, y_type=y_type, bias=True, residual=True)
    for channels in (34, 35):  # stored in pairs, and one by one
        problem = Problem(library, 17, channels, [(512, MXFP8, MXFP8)], draw)
        problem.bias += np.float32(2**-9)
        y = problem.run(library.open_device(device), 4)
        expected = problem.exact().astype(np.float32).astype(TYPES[y_type])
        np.testing.assert_array_equal(y.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
@pytest.mark.parametrize("segments", [[(32, f, f)] for f in range(5)] + [[(4128, MXFP4, MXFP4)]])
def test_single_formats_and_partial_chunks(library, device, segments):
    for tactic in (1, 4):
        check(Problem(library, 9, 24, segments), library.open_device(device), tactic)


@pytest.mark.parametrize(("device", "tactic"), [(NATIVE, t) for t in range(1, 6)] + [(PORTABLE, 2)])
def test_split_k_gives_the_same_digits_in_any_order(library, device, tactic):
    segments = [(1536, NVFP4, NVFP4), (4096, MXFP4, MXFP4), (512, E3M2, E3M2), (512, MXFP8, MXFP8)]
    outputs = []
    for seed in range(3):
        configure(library, seed=seed, multiprocessors=16)
        gpu = library.open_device(device)
        problem = Problem(library, 5, 40, segments, Draw(bias=True, tensor_scales=(0.25, 8.0)))
        assert "K split by 1," not in problem.linear.describe(gpu, 5, tactic)
        outputs.append(check(problem, gpu, tactic))
    assert all(np.array_equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("copies", [EARLY, LATE, RANDOM])
@pytest.mark.parametrize("tactic", [1, 3, 5])
def test_copies_may_land_at_any_time(library, copies, tactic):
    for seed in range(4):
        configure(library, seed=seed, copies=copies)
        problem = Problem(library, 40, 130, [*EVERYTHING, (1024, MXFP4, MXFP4)])
        check(problem, library.open_device(NATIVE), tactic)


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
@pytest.mark.parametrize(
    ("scales", "weight_scales"),
    [((0, 11), (238, 249)), ((244, 255), (0, 11)), ((0, 255), (120, 135)), ((0, 61), (0, 61))],
)
def test_extreme_scales(library, device, scales, weight_scales):
    draw = Draw(seed=5, scales=scales, weight_scales=weight_scales)
    segments = [(64, MXFP4, MXFP4), (64, MXFP8, MXFP8), (64, E3M2, E3M2), (64, E2M3, MXFP4)]
    problem = Problem(library, 6, 20, segments, draw)
    gpu = library.open_device(device)
    for tactic in (1, 4):
        y = problem.run(gpu, tactic).astype(np.float64)
        exact = problem.exact()
        with np.errstate(over="ignore"):
            overflows = np.isinf(exact.astype(np.float32))
        ok = np.abs(y - exact) <= problem.bound()
        # A sum whose terms overflow may be infinite, or NaN where infinities meet.
        assert (ok | overflows | ~np.isfinite(y) & (problem.bound() > 2.0**100)).all()
        if not overflows.any():
            assert ok.all()


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
@pytest.mark.parametrize("tactic", [2, 4])
def test_nan_scales_stay_in_their_row_and_column(library, device, tactic):
    problem = Problem(library, 12, 40, EVERYTHING)
    problem.act.scales[0][3, 1] = E4M3_NAN  # NVFP4
    problem.act.scales[1][7, 4] = E8M0_NAN  # MXFP4, in its second word
    problem.weight.scales[2][30, 0] = E8M0_NAN
    y = problem.run(library.open_device(device), tactic)
    lost = np.zeros((12, 40), bool)
    lost[[3, 7]] = True
    lost[:, 30] = True
    np.testing.assert_array_equal(np.isnan(y), lost)
    assert (np.abs(y - problem.exact())[~lost] <= problem.bound()[~lost]).all()


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
def test_tensor_scales_that_would_overflow_together(library, device):
    segments = [(128, NVFP4, NVFP4), (128, MXFP4, MXFP4)]
    for scales in [(2.0**90, 2.0**-95), (2.0**-100, 2.0**99), (2.0**-60, 2.0**-70)]:
        problem = Problem(library, 4, 16, segments, Draw(tensor_scales=scales))
        check(problem, library.open_device(device), 1)


def test_residual_may_be_the_output(library):
    problem = Problem(library, 20, 64, EVERYTHING, Draw(residual=True))
    device = library.open_device(NATIVE)
    expected = problem.run(device, 4)
    np.testing.assert_array_equal(problem.run(device, 4, in_place=True), expected)
