"""The kernels' benchmark on the emulated library: what it writes, and how it fails."""

import pytest

from mmcompile.bench import kernel_bench, kernels
from mmcompile.bench.kernels import KernelBench, bench_kernels
from mmcompile.cuda.clocks import Clocks
from mmcompile.cuda.driver import GpuFacts
from mmcompile.cuda.layers import open_place
from mmcompile.cuda.machine import HostMachine
from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.kernels import KernelError
from mmcompile.model.selection import Selection
from mmcompile.progress import Silent
from tests.doctor.cuda import install
from tests.kernels.emulated import compile_library, configure, emulated_library
from tests.workplace import Workplace, call

pytestmark = pytest.mark.slow

FACTS = GpuFacts("NVIDIA GeForce RTX 5090", 120, 170, 32 * 2**30, 4096, "13.0", "GPU-0")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A replay of each; the clock is the CPU's and means nothing."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("mmcompile.cuda.timing.REPLAYS", (4, 4))
    monkeypatch.setattr("mmcompile.cuda.timing.MOST_WARM_ROUNDS", 0)
    monkeypatch.setattr(kernels, "read_clocks", lambda _: Clocks(sm_mhz=2407, source="NVML"))


@pytest.fixture
def place():
    configure(emulated_library())
    return open_place(HostMachine(), emulated_library())


def baseline(calls):
    def make(k, n, rows, copies):
        calls.append((k, n, rows, copies))
        return [lambda _: sum(range(1000))] * copies

    return make


def test_every_kernel_on_every_shape(place):
    calls = []
    found = bench_kernels(
        place,
        [(64, 32, 1), (64, 32, 3), (96, 16, 1), (96, 16, 3)],
        {"cuBLAS BF16": baseline(calls)},
        FACTS,
        mixes=("micromix", "mxfp8"),
    )
    assert found.kind == "measured" and found.notes == ()
    assert len(found.timings) == 2 * 2 * 3
    assert [call[:3] for call in calls] == [(64, 32, 1), (64, 32, 3), (96, 16, 1), (96, 16, 3)]
    ours = found.timings[1]
    assert (ours.kernel, ours.rows, ours.error) == ("micromix", 1, None)
    assert ours.seconds > 0 and ours.launch.startswith("decode8")
    # 64 channels: 5/8, 2/8 and the rest in runs of 32: 32 at 4 bits and 32 at 8, and scales.
    assert ours.bytes_per_second * ours.seconds == pytest.approx(32 * (16 + 32 + 4 + 4))
    assert ours.clocks.sm_mhz == 2407
    assert not ours.graph


def test_rehearsals_are_called_so(place):
    found = bench_kernels(place, [(64, 32, 1)], {}, None, mixes=("mxfp4",))
    assert found.kind == "rehearsed" and "no baseline" in found.notes[0]


def test_what_fails_has_its_reason_and_others_are_timed(monkeypatch, place):
    def refuse(*_):
        raise RuntimeError("cublasLt: not supported")

    real = kernels.mixed_segments

    def segments(mix, channels):
        if mix == "nvfp4":
            raise KernelError(2, "no kernel for it")
        if mix == "mxfp8":
            raise MemoryError("64 MiB on the GPU")
        return real(mix, channels)

    monkeypatch.setattr(kernels, "mixed_segments", segments)
    mixes = ("mxfp4", "nvfp4", "mxfp8")
    found = bench_kernels(place, [(64, 32, 1)], {"cuBLAS FP8": refuse}, FACTS, mixes=mixes)
    reasons = {timing.kernel: timing.error for timing in found.timings}
    assert reasons["mxfp4"] is None
    assert "not supported" in reasons["cuBLAS FP8"]
    assert "no kernel for it" in reasons["nvfp4"] and "64 MiB" in reasons["mxfp8"]


class Gpu(HostMachine):
    facts = FACTS


@pytest.fixture
def gpu(monkeypatch):
    configure(emulated_library())
    monkeypatch.setattr(kernel_bench, "GpuMachine", Gpu)
    monkeypatch.setattr(kernel_bench, "LLAMA", ((64, 32),))
    monkeypatch.setenv("MMCOMPILE_KERNELS", str(compile_library()))


def test_the_command(gpu, tmp_path):
    page = tmp_path / "page.html"
    shown = call("bench", "--kernels", "--point", "2x1", "-v", "--html", page)
    assert shown.code == 0, shown.err
    for word in ("MEASURED on NVIDIA GeForce RTX 5090", "64 → 32", "micromix", "2407 MHz"):
        assert word in shown.out
    assert "decode8" in shown.out  # -v tells what was launched
    assert "<svg" in page.read_text() and "measured" in page.read_text()
    document = call("bench", "--kernels", "--point", "2x1", "--json").json()
    assert document["kind"] == "measured"
    assert {timing["kernel"] for timing in document["timings"]} == set(kernels.MIXES)


def test_shapes_of_a_model(gpu, tmp_path):
    workplace = Workplace(tmp_path)
    found = kernel_bench.kernel_bench(workplace.model, (1,), None, Selection(), Silent())
    assert isinstance(found, KernelBench)
    shapes = {(timing.in_channels, timing.out_channels) for timing in found.timings}
    assert shapes == {(96, 64), (64, 48)}


def test_equal_shapes_are_timed_once(gpu, monkeypatch):
    monkeypatch.setattr(kernel_bench, "LLAMA", ((64, 32), (96, 16), (64, 32)))
    found = kernel_bench.kernel_bench(None, (1,), None, Selection(), Silent())
    ours = [timing for timing in found.timings if timing.kernel == "mxfp4"]
    assert [(t.in_channels, t.out_channels, t.rows) for t in ours] == [(64, 32, 1), (96, 16, 1)]


def test_without_a_gpu(monkeypatch):
    install(monkeypatch)
    shown = call("bench", "--kernels")
    assert shown.code == 4
    assert "no driver" in shown.line() and "--modelled" in shown.line()


def test_without_the_library(monkeypatch, gpu, tmp_path):
    monkeypatch.setenv("MMCOMPILE_KERNELS", str(tmp_path / "none.so"))
    shown = call("bench", "--kernels")
    assert shown.code == 4 and "make plugin" in shown.line()
    monkeypatch.delenv("MMCOMPILE_KERNELS")
    monkeypatch.setattr("mmcompile.libraries.PACKAGE", tmp_path / "package")
    assert "not built" in call("bench", "--kernels").line()


@pytest.mark.parametrize(
    ("asked", "right"),
    [("rtx5090", True), ("sm_120", True), ("rtx5080", False), ("sm_90", False)],
)
def test_the_gpu_that_was_asked_for(asked, right):
    if right:
        kernel_bench.check_gpu(asked, FACTS)
    else:
        with pytest.raises(UsageError, match="not " + asked):
            kernel_bench.check_gpu(asked, FACTS)


def test_gpus_without_figures_can_be_measured_as_their_family():
    unknown = GpuFacts("NVIDIA GeForce RTX 5060", 120, 30, 2**33, 2**25, "13.0", "GPU-1")
    kernel_bench.check_gpu("sm_120", unknown)
    with pytest.raises(UsageError):
        kernel_bench.check_gpu("rtx5090", unknown)


def test_no_gpu_is_an_environment_problem(monkeypatch):
    install(monkeypatch)
    with pytest.raises(EnvironmentProblem):
        kernel_bench.open_gpu("rtx5090")
