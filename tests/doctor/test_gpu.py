"""The driver, the GPU and its clocks, on doubles of libcuda and NVML."""

import pytest

from mmcompile.cuda.clocks import Clocks, read_clocks
from mmcompile.cuda.driver import Driver, DriverError
from mmcompile.doctor import libraries, machine
from mmcompile.doctor.environment import examine
from mmcompile.errors import EnvironmentProblem
from tests.doctor.cuda import UUID_TEXT, FakeDriver, FakeNvml, install


@pytest.mark.parametrize(
    ("cuda", "present", "found"),
    [
        (FakeDriver(), True, "RTX 5090, sm_120, 170 SMs, 32 GiB, rtx5090 in bench --modelled"),
        (FakeDriver(name=b"Other"), True, "Other, sm_120, 170 SMs, 32 GiB"),
        (FakeDriver(devices=0), False, "the driver finds 0 GPUs"),
        (FakeDriver(status=100), False, "cuInit: no CUDA-capable device is detected (100)"),
        (object(), False, "has no attribute 'cuInit'"),
        (None, False, "no driver (libcuda.so.1)"),
    ],
)
def test_the_gpu(monkeypatch, cuda, present, found):
    install(monkeypatch, cuda)
    finding, facts = machine.gpu()
    assert finding.present == present == (facts is not None)
    assert found in finding.found
    assert present or (finding.cost and finding.remedy)
    assert not finding.required


def test_the_driver(monkeypatch):
    install(monkeypatch, FakeDriver(), FakeNvml())
    assert machine.driver(machine.gpu()[1]).found == "580.95.05, CUDA 13.0"
    install(monkeypatch, FakeDriver(version=12080))
    old = machine.driver(machine.gpu()[1])
    assert not old.present and old.found == "CUDA 12.8 is too old"
    assert not machine.driver(None).present


def test_facts(monkeypatch):
    install(monkeypatch, FakeDriver())
    facts = Driver().facts()
    assert (facts.architecture, facts.multiprocessors, facts.l2_bytes) == (120, 170, 96 * 2**20)
    assert (facts.driver, facts.uuid) == ("13.0", UUID_TEXT)
    with pytest.raises(EnvironmentProblem, match="none has the number 1"):
        Driver(1)


def test_a_call_that_fails_says_which_and_why(monkeypatch):
    cuda = FakeDriver()
    cuda.do_cuCtxSynchronize = lambda: 700
    install(monkeypatch, cuda)
    with pytest.raises(DriverError, match=r"cuCtxSynchronize: .* \(700\)") as caught:
        Driver().call("cuCtxSynchronize")
    assert caught.value.status == 700


def test_clocks_by_nvml(monkeypatch):
    nvml = FakeNvml()
    install(monkeypatch, nvml=nvml)
    assert read_clocks(UUID_TEXT) == Clocks(
        2407, 3090, 14001, pytest.approx(412.345), pytest.approx(575), 61, "580.95.05", "NVML"
    )
    assert nvml.stopped


def test_figures_that_a_gpu_does_not_tell_are_none(monkeypatch):
    install(monkeypatch, nvml=FakeNvml(missing=("power", "temperature")))
    reading = read_clocks(UUID_TEXT)
    assert reading.power_w is None and reading.temperature_c is None
    assert reading.sm_mhz == 2407


@pytest.mark.parametrize(
    ("answer", "clock"),
    [
        ("2407, 3090, 14001, 412.3, 575.00, 61, 580.95.05", 2407),
        ("[N/A], 3090, 14001, [Not Supported], 575.00, 61, 580.95.05", None),
        ("No devices were found", None),
    ],
)
def test_clocks_by_nvidia_smi(monkeypatch, tmp_path, answer, clock):
    install(monkeypatch)
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\ntest "$1" = "--id={UUID_TEXT}" && echo "{answer}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    reading = read_clocks(UUID_TEXT)
    assert reading.sm_mhz == clock
    if "," in answer:
        assert reading.source == "nvidia-smi"
        assert (reading.highest_sm_mhz, reading.driver) == (3090, "580.95.05")


def test_no_clocks_at_all(monkeypatch, tmp_path):
    install(monkeypatch, FakeDriver())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_clocks(UUID_TEXT).source.startswith("unknown")
    assert not machine.clocks(machine.gpu()[1]).present


@pytest.mark.parametrize(
    ("architectures", "device", "fit"),
    [
        ("80 90 120f", 120, True),
        ("80 90 120f", 121, True),
        ("80 90 120a", 121, False),
        ("80 90 120a", 120, True),
        ("80 90", 120, False),
        ("80 90", 86, True),
        ("80 90", 75, False),
        ("89", 80, False),
        ("", 90, False),
        ("emulated", 90, False),
    ],
)
def test_architectures_of_a_library(architectures, device, fit):
    assert libraries.fits(architectures, device) == fit


def test_the_doctor_names_the_gpu_that_the_library_lacks(monkeypatch, tmp_path):
    install(monkeypatch, FakeDriver(), FakeNvml())

    class Library:
        architectures = "80 90"

        def __init__(self, path):
            assert path == tmp_path

    monkeypatch.setenv("MMCOMPILE_KERNELS", str(tmp_path))
    monkeypatch.setattr(libraries, "KernelLibrary", Library)
    found = {finding.name: finding for finding in examine()}
    assert "nothing for sm_120" in found["kernel library"].found
    assert found["NVIDIA GPU"].present and found["GPU clocks"].present
