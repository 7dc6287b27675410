"""The host's half of the kernel library: checks of arguments, choice of launches, workspaces."""

from __future__ import annotations

import ctypes
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcompile.cuda.layers import E3M2, MXFP4
from mmcompile.kernels import Arguments, Device, KernelError, LinearSegment
from tests.kernels.emulated import NATIVE, PORTABLE, configure, emulated_library

pytestmark = pytest.mark.slow


DECODE8, DECODE16, SMALL, MEDIUM, LARGE, HUGE = range(1, 7)


def library_of(multiprocessors):
    library = emulated_library()
    configure(library, multiprocessors=multiprocessors)
    return library


def linear_of(library, channels=4096, out=4096, *formats):
    formats = formats or (MXFP4,)
    part = channels // len(formats)
    return library.linear(channels, out, [LinearSegment(part, f, f) for f in formats])


def launch(text):
    """Tile, number of tiles, splits and modelled cycles of a described launch."""
    found = re.fullmatch(
        r"(\w+): (\d+) rows x (\d+) channels x \d+ bytes of K, (\d+) tiles, K split by (\d+), "
        r"(\d+) chunks, (\d+) threads, (\d+) bytes of shared memory, modelled (\d+) cycles",
        text,
    )
    assert found, text
    return found[1], int(found[4]), int(found[5]), int(found[9])


def test_few_rows_take_the_tiles_that_read_weights_once():
    library = library_of(170)
    device, linear = library.open_device(NATIVE), linear_of(library)
    for rows in (1, 5, 8):
        assert linear.choose_tactic(device, rows) == DECODE8
    for rows in (9, 16):
        assert linear.choose_tactic(device, rows) == DECODE16
    assert linear.choose_tactic(device, 17) > DECODE16


def test_many_rows_take_the_largest_tile_and_no_split():
    library = library_of(170)
    device, linear = library.open_device(NATIVE), linear_of(library, 4096, 28672)
    assert linear.choose_tactic(device, 8192) == HUGE
    assert launch(linear.describe(device, 8192))[2] == 1
    portable = library.open_device(PORTABLE)
    assert library.tactics(portable) == ("decode8", "decode16", "small", "medium")
    assert linear.choose_tactic(portable, 8192) == MEDIUM


def test_the_choice_is_the_cheapest_of_all_tiles():
    library = library_of(170)
    device = library.open_device(NATIVE)
    for rows, (k, n) in itertools.product((20, 64, 300, 2048), ((4096, 6144), (14336, 4096))):
        linear = linear_of(library, k, n, MXFP4, E3M2)
        chosen = launch(linear.describe(device, rows))
        costs = [launch(linear.describe(device, rows, t))[3] for t in range(SMALL, HUGE + 1)]
        assert chosen[3] == min(costs)


def test_a_split_fills_a_gpu_that_has_few_tiles():
    library = library_of(170)
    device, linear = library.open_device(NATIVE), linear_of(library, 14336, 4096)
    _, tiles, splits, _ = launch(linear.describe(device, 64, MEDIUM))
    assert tiles == 32 and splits > 1
    assert launch(linear_of(library, 128, 4096).describe(device, 64, MEDIUM))[2] == 1


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40000),
    st.integers(1, 300).map(lambda steps: 32 * steps),
    st.integers(1, 20000),
    st.integers(1, 200),
    st.sampled_from([NATIVE, PORTABLE]),
)
def test_a_workspace_serves_all_tactics_and_fewer_rows(rows, channels, out, multiprocessors, kind):
    library = library_of(multiprocessors)
    device, linear = library.open_device(kind), linear_of(library, channels, out)
    layout = linear.workspace_layout(device, rows)
    assert linear.workspace_bytes(device, rows) == layout.bytes
    assert linear.workspace_bytes(device, max(1, rows // 2)) <= layout.bytes
    assert layout.scales - layout.codes >= rows * linear.info.act_row_bytes
    assert layout.counters - layout.scales >= 4 * rows * linear.info.act_scale_words
    sizes = {"decode8": 256, "decode16": 512, "small": 2048, "medium": 8192, "large": 16384}
    for tactic in range(1, len(library.tactics(device)) + 1):
        name, tiles, splits, _ = launch(linear.describe(device, rows, tactic))
        if splits > 1:
            assert layout.partials - layout.counters >= 4 * tiles
            assert layout.bytes - layout.partials >= 4 * tiles * splits * sizes[name]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40000),
    st.integers(1, 300).map(lambda steps: 32 * steps),
    st.integers(1, 20000),
    st.integers(1, 192),
    st.sampled_from([NATIVE, PORTABLE]),
)
def test_the_largest_gpus_workspace_serves_all(rows, channels, out, multiprocessors, kind):
    library = library_of(multiprocessors)
    linear, largest = linear_of(library, channels, out), Device()
    library.functions.mmc_largest_device(ctypes.byref(largest))
    assert (largest.ordinal, largest.architecture, largest.multiprocessors) == (-1, 120, 192)
    needed = linear.workspace_bytes(library.open_device(kind), rows)
    assert linear.workspace_bytes(largest, rows) >= needed


def test_descriptions_and_names():
    library = library_of(4)
    device, linear = library.open_device(NATIVE), linear_of(library)
    assert library.tactics(device) == ("decode8", "decode16", "small", "medium", "large", "huge")
    assert launch(linear.describe(device, 33, LARGE))[0] == "large"
    assert library.architectures.startswith("emulated")


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([], "1 to 32"),
        ([(128, 0, 0)] * 33, "33 segments; the kernels take 1 to 32"),
        ([(0, 0, 0)], "segment 0: 0 channels are no positive multiple of 32"),
        ([(64, 0, 0), (48, 0, 0)], "segment 1: 48 channels"),
        ([(64, -1, 0)], "format id -1 is not in 0..4"),
        ([(64, 0, 5)], "format id 5"),
        ([(64, 4, 0)], "no tensor-core instruction multiplies NVFP4"),
        ([(64, 0, 0, 0.5)], "threshold 0.5 is outside [1, 2]"),
        ([(64, 0, 0, float("nan"))], "threshold"),
        ([(1 << 30, 0, 0), (1 << 30, 0, 0)], "more than 67108864 channels"),
    ],
)
def test_bad_layers_are_refused(segments, said):
    library = library_of(4)
    with pytest.raises(KernelError, match=re.escape(said)):
        library.linear(64, 64, [LinearSegment(*segment) for segment in segments])


@pytest.mark.parametrize(("k", "n"), [(0, 64), (64, 0), (-1, 64), (64, 1 << 27)])
def test_bad_sizes_are_refused(k, n):
    library = library_of(4)
    with pytest.raises(KernelError, match=r"channels is .*, needed is 1"):
        library.linear(k, n, [LinearSegment(64, 0, 0)])


@pytest.mark.parametrize("scale", [0.0, 3.0, -1.0, float("inf"), float("nan"), 2.0**101])
def test_bad_tensor_scales_are_refused(scale):
    library = library_of(4)
    with pytest.raises(KernelError, match="no power of two"):
        library.linear(64, 64, [LinearSegment(64, 4, 4)], act_tensor_scale=scale)


def aligned(array: np.ndarray, alignment: int = 256) -> np.ndarray:
    """A copy whose memory starts at a multiple of `alignment` bytes."""
    block = np.empty(array.nbytes + alignment, np.uint8)
    start = -block.ctypes.data % alignment
    view = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


class TestArguments:
    @pytest.fixture
    def call(self):
        library = library_of(4)
        device, linear = library.open_device(NATIVE), linear_of(library, 64, 32)
        arrays = {
            "x": aligned(np.zeros((3, 64), np.float32)),
            "order": aligned(np.arange(64, dtype=np.int32)),
            "weight": aligned(np.zeros((32, 32), np.uint8)),
            "scales": aligned(np.zeros((1, 32, 4), np.uint8)),
            "y": aligned(np.full((3, 32), 7, np.float32)),
            "workspace": aligned(np.zeros(linear.workspace_bytes(device, 3), np.uint8)),
        }

        def run(**changed):
            values = {name: array.ctypes.data for name, array in arrays.items()}
            values |= {"rows": 3, "workspace_bytes": arrays["workspace"].size}
            linear.run(device, Arguments(**(values | changed)))
            return arrays["y"]

        return run

    def test_good_ones_run(self, call):
        assert (call() == 0).all()

    def test_no_rows_launch_nothing(self, call):
        assert (call(rows=0, x=None, workspace=None) == 7).all()

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"rows": -1}, "rows is -1"),
            ({"rows": 1 << 31}, "rows is 2147483648"),
            ({"x_type": 3}, "x_type 3"),
            ({"y_type": -1}, "y_type -1"),
            ({"tactic": 7}, "tactic 7 is not in 0..6"),
            ({"x": None}, "is null"),
            ({"workspace": None}, "is null"),
            ({"workspace_bytes": 100}, "need a workspace of"),
        ],
    )
    def test_bad_ones_are_refused(self, call, changed, said):
        with pytest.raises(KernelError, match=re.escape(said)):
            call(**changed)

    @pytest.mark.parametrize("name", ["weight", "order", "scales", "workspace"])
    def test_misaligned_ones_are_refused(self, call, name):
        odd = aligned(np.zeros(1 << 16, np.uint8))[2:]
        with pytest.raises(KernelError, match="aligned"):
            call(**{name: odd.ctypes.data})

    def test_a_device_that_is_not_there(self):
        with pytest.raises(KernelError, match="not 9"):
            library_of(4).open_device(9)
