"""The self-test: what it finds right, what it finds wrong, and what it says remains."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest

from mmcompile.cuda import machine as machines
from mmcompile.cuda.calls import DeviceLayer
from mmcompile.cuda.driver import DriverError, GpuFacts
from mmcompile.cuda.layers import MIXES, open_place
from mmcompile.cuda.machine import HostMachine
from mmcompile.doctor import emulation, rates, selftest
from mmcompile.doctor.checks import Size, checks_of
from mmcompile.doctor.selftest import SelfTest, self_test
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import KernelError
from tests.doctor.cuda import install
from tests.kernels.emulated import compile_library, configure, emulated_library
from tests.workplace import call

pytestmark = pytest.mark.slow


SMALL = (Size(3, 24, 160, missing=3),)
KINDS = 4
"""Of x, in each check of quantization."""
FACTS = GpuFacts("NVIDIA GeForce RTX 5090", 120, 170, 32 * 2**30, 96 * 2**20, "13.0", "GPU-0")


@pytest.fixture
def library(monkeypatch):
    """The emulated library that the tests have compiled, in place of one compiled anew."""
    found = emulated_library()
    configure(found, seed=0)
    monkeypatch.setattr(selftest, "emulated_library", lambda: found)
    monkeypatch.setattr(selftest, "emulated_checks", lambda: checks_of(MIXES, SMALL))
    return found


@pytest.fixture
def place(library):
    return open_place(HostMachine(), library)


def results(place, subject=""):
    """What the self-test finds, or a part of it."""
    chosen = [check for check in checks_of(MIXES, SMALL) if check.name.startswith(subject)]
    return [result for check in chosen for result in check.run(place)]


@pytest.fixture
def few(monkeypatch, library):
    """Two mixes, where it is not the checks that are tested."""
    for checks in ("emulated_checks", "gpu_checks"):
        monkeypatch.setattr(selftest, checks, lambda: checks_of(("mxfp4", "micromix"), SMALL))


class Gpu(HostMachine):
    """A GPU whose kernels the emulator runs."""

    facts = FACTS


@pytest.fixture
def gpu(monkeypatch, few):
    monkeypatch.setattr(selftest, "GpuMachine", Gpu)
    monkeypatch.setenv("MMCOMPILE_KERNELS", str(compile_library()))
    monkeypatch.setattr(selftest, "measure_rates", lambda *_: iter([rates.Rate("mxfp4", "us", 1)]))


def test_without_a_gpu_the_emulator_runs_every_format_and_tile(monkeypatch, library):
    install(monkeypatch)
    result = self_test()
    assert result.passed and not result.on_gpu and result.gpu is None
    native, portable = result.parts
    assert len(native.tactics) == 6 and len(portable.tactics) == 4
    for part in result.parts:
        names = {check.name for check in part.checks}
        for mix in MIXES:
            assert f"quantize/{mix}/bf16" in names
            for tile in ("chosen", *part.tactics):
                assert {f"gemm/{mix}/fp32/{tile}", f"layer/{mix}/fp16/{tile}"} <= names
        worst = [check.worst for check in part.checks if check.name.startswith("layer")]
        assert all(0 < share <= 1 for share in worst)
    assert any("on it" in line for line in result.remaining)
    assert any("no driver" in line for line in result.remaining)
    assert msgspec.json.decode(msgspec.json.encode(result), type=SelfTest) == result


def test_on_a_gpu_the_document_says_what_ran(gpu):
    result = self_test()
    assert result.passed and result.on_gpu and result.gpu == FACTS
    assert result.remaining == ()
    assert len(result.library.sha256) == 64
    assert [rate.name for rate in result.rates] == ["mxfp4"]
    assert self_test(quick=True).rates == ()
    assert "--quick" in self_test(quick=True).remaining[0]


def test_another_gpu_leaves_blackwells_instructions_open(monkeypatch, gpu):
    monkeypatch.setattr(Gpu, "facts", dataclasses.replace(FACTS, architecture=90))
    assert any("sm_120" in line for line in self_test().remaining)


@pytest.mark.parametrize("content", [None, b"no ELF"])
def test_on_a_gpu_without_the_library(monkeypatch, tmp_path, gpu, content):
    path = tmp_path / "lib.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("MMCOMPILE_KERNELS", str(path))
    result = self_test()
    assert not result.passed and str(path) in result.parts[0].error
    assert result.remaining == selftest.ON_A_GPU


def flipped(monkeypatch, method, position):
    """Flips the second bit from above of one number that a kernel gave."""
    real = getattr(DeviceLayer, method)

    def wrong(self):
        found = real(self)
        first = found[position] if isinstance(found, tuple) else found
        changed = first.copy()
        changed.reshape(-1)[5] ^= changed.dtype.type(1 << 8 * changed.itemsize - 2)
        if not isinstance(found, tuple):
            return changed
        return tuple(changed if i == position else part for i, part in enumerate(found))

    monkeypatch.setattr(DeviceLayer, method, wrong)


@pytest.mark.parametrize(("position", "what"), [(0, "codes"), (1, "scale bytes")])
def test_one_wrong_bit_of_a_code_or_scale_is_found(monkeypatch, place, position, what):
    flipped(monkeypatch, "quantized", position)
    found = results(place, "quantize")
    assert len(found) == KINDS * 3 * len(MIXES)
    assert all(not check.passed for check in found)
    assert all(what in check.detail and ": 1 of " in check.detail for check in found)
    assert "0x" in found[0].detail


def test_one_wrong_value_of_y_is_found(monkeypatch, place):
    flipped(monkeypatch, "result", 0)
    for subject in ("gemm", "layer"):
        found = results(place, subject)
        assert len(found) == 7 * 3 * len(MIXES)
        assert not any(check.passed for check in found)
    failed = next(check for check in found if not check.passed)
    assert "y[0, 5] = " in failed.detail and "allowed" in failed.detail


def test_a_byte_beyond_y_is_found(monkeypatch, place):
    real = DeviceLayer.enqueue

    def enqueue(self, function="run", tactic=0, stream=None):
        real(self, function, tactic, stream)
        self.place.machine.fill(self.y.address + self.y.size, 1, 0)

    monkeypatch.setattr(DeviceLayer, "enqueue", enqueue)
    found = results(place, "layer/mxfp4")
    assert all("1 bytes around a result" in check.detail for check in found if not check.passed)
    assert not any(check.passed for check in found)


def test_a_wrong_order_of_channels_is_found(monkeypatch, place):
    real = DeviceLayer.__init__

    def turned(self, place, shape, constants, inputs, copies=1):
        real(self, place, shape, constants, inputs, copies)
        self.arguments[0].order = self._upload(np.roll(constants.order, 1))

    monkeypatch.setattr(DeviceLayer, "__init__", turned)
    found = results(place, "quantize") + results(place, "layer")
    assert found and not any(check.passed for check in found)


def test_a_kernel_that_refuses_does_not_keep_others_from_running(monkeypatch, place):
    real = DeviceLayer.enqueue

    def enqueue(self, function="run", tactic=0, stream=None):
        if tactic == 2:
            raise KernelError(2, "no such tile")
        real(self, function, tactic, stream)

    monkeypatch.setattr(DeviceLayer, "enqueue", enqueue)
    failed = [check for check in results(place) if not check.passed]
    assert len(failed) == 2 * 3 * len(MIXES)
    assert all(check.name.endswith(place.tactics[1]) for check in failed)
    assert "no such tile" in failed[0].detail


def test_a_gpu_that_dies_ends_the_run_and_keeps_what_was_found(monkeypatch, gpu):
    calls = iter(range(1000))

    def synchronize(self):
        if next(calls) > 10:
            raise DriverError("cuCtxSynchronize", 700, "an illegal memory access")

    monkeypatch.setattr(Gpu, "synchronize", synchronize)
    result = self_test()
    part = result.parts[0]
    assert not result.passed and part.checks
    assert "illegal memory access" in part.error
    assert result.rates == ()


def test_the_command(monkeypatch, tmp_path, few):
    install(monkeypatch)
    target = tmp_path / "result.json"
    shown = call("doctor", "--selftest", "-o", target)
    assert shown.code == 0, shown.err
    assert "✓ layer/micromix" in shown.out and "bit for bit" in shown.out
    assert "in the emulator, not on a GPU" in shown.out and "remains: " in shown.out
    written = json.loads(target.read_text())
    assert written["kind"] == "selftest" and written["passed"]
    printed = call("doctor", "--selftest", "--json")
    assert printed.json()["passed"] and len(printed.json()["parts"]) == 2


def test_the_command_says_failed(monkeypatch, few):
    install(monkeypatch)
    flipped(monkeypatch, "quantized", 0)
    shown = call("doctor", "--selftest")
    assert shown.code == 5
    assert "✗ quantize/mxfp4" in shown.out and "self-test FAILED" in shown.out


def test_an_installed_wheel_has_no_sources(monkeypatch, tmp_path):
    install(monkeypatch)
    monkeypatch.setattr(selftest, "emulated_library", lambda: emulation.emulated_library(tmp_path))
    result = self_test()
    assert not result.passed and result.parts == ()
    assert "installed package" in result.remaining[0]
    shown = call("doctor", "--selftest")
    assert shown.code == 4 and "not run" in shown.out


def test_emulation_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EnvironmentProblem, match="no C\\+\\+ compiler"):
        emulation.emulated_library()


def test_emulation_that_does_not_compile(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: what is this' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentProblem, match="error: what is this"):
        emulation.emulated_library()
    assert list((tmp_path / "cache" / "emulated").iterdir()) == []


@pytest.mark.parametrize("option", [("-o", "x.json"), ("--quick",)])
def test_options_that_need_the_self_test(option):
    assert "needs --selftest" in call("doctor", *option).line()


def test_rates_per_clock():
    clocks = rates.Clocks(sm_mhz=2000)
    assert rates.per_clock(170 * 4096 * 2e9, FACTS, clocks) == pytest.approx(4096)
    assert rates.per_clock(1e12, FACTS, rates.Clocks()) is None


class RatedGpu(Gpu):
    """Copies and knows its clock; the emulator multiplies."""

    class driver:  # noqa: N801
        @staticmethod
        def call(name, *_):
            assert name == "cuMemcpyDtoDAsync_v2"


def test_rates_on_a_machine(monkeypatch, library):
    monkeypatch.setattr(rates, "ROWS", 16)
    monkeypatch.setattr(rates, "CHANNELS", 64)
    monkeypatch.setattr(rates, "OUT_CHANNELS", 32)
    monkeypatch.setattr(rates, "COPY_BYTES", 2**12)
    monkeypatch.setattr(rates, "read_clocks", lambda _: rates.Clocks(sm_mhz=2407))
    monkeypatch.setattr("mmcompile.cuda.timing.WARM_SECONDS", 0.0)
    machine = RatedGpu()
    found = {rate.name: rate for rate in rates.measure_rates(open_place(machine, library), machine)}
    assert list(found) == ["copy", "mxfp4", "nvfp4", "mxfp8", "mxfp6_e3m2"]
    assert found["mxfp4"].assumed == 4096 and found["mxfp8"].assumed == 2048
    assert found["copy"].assumed == 1.792e12
    for rate in found.values():
        assert rate.error is None and rate.reached > 0
        assert rate.clocks.sm_mhz == 2407

    def broken(*_):
        raise MemoryError("16 MiB on the GPU")

    monkeypatch.setattr(machines.HostMachine, "allocate", broken)
    failed = list(rates.measure_rates(open_place(machine, library), machine))
    assert all("16 MiB" in rate.error for rate in failed) and len(failed) == 5
