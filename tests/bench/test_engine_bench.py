"""`mmcompile bench` from a model to a table, on TensorRT's double and a GPU that is host memory."""

import pytest

from mmcompile.backends.baselines import baselines
from mmcompile.backends.none import NoBackend
from mmcompile.backends.protocol import Timeable
from mmcompile.backends.registry import BACKENDS, find_backend
from mmcompile.bench import engine_bench
from mmcompile.cuda.driver import GpuFacts
from mmcompile.cuda.machine import HostMachine
from mmcompile.model.passes.baselines import KINDS
from tests.backends.conftest import install, library, tensorrt  # noqa: F401
from tests.workplace import Workplace, call


class Gpu(HostMachine):
    facts = GpuFacts("NVIDIA GeForce RTX 5090", 120, 170, 32 * 2**30, 96 * 2**20, "13.0", "GPU-0")


@pytest.fixture
def work(home, library, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engine_bench, "GpuMachine", Gpu)
    # The double runs graphs in ONNX Runtime, which does not know TensorRT's own operators.
    known = {name: KINDS[name] for name in ("fp16", "fp8")}
    monkeypatch.setattr("mmcompile.backends.baselines.KINDS", known)
    monkeypatch.setattr("mmcompile.cuda.timing.REPLAYS", (1, 1))
    monkeypatch.setattr("mmcompile.cuda.timing.MOST_WARM_ROUNDS", 0)
    monkeypatch.setattr("mmcompile.bench.engines.PROFILED_RUNS", 1)
    return Workplace(home)


def bench(work, *more):
    return call("bench", work.model, "--point", "1x1", "--point", "2x3", "--json", *more)


@pytest.mark.slow
def test_stock_variants_and_a_compiled_model(work, tensorrt):  # noqa: F811
    assert work.compile().code == 0
    compiled = work.out / "model.onnx"
    shown = bench(work, "--calib", work.data, "--engine", f"MicroMix={compiled}")
    assert shown.code == 0, shown.err
    document = shown.json()
    assert document["kind"] == "measured"
    assert document["gpu"]["name"] == "NVIDIA GeForce RTX 5090"
    assert document["versions"]["TensorRT"] == "11.4.0.106"
    names = [variant["name"] for variant in document["variants"]]
    assert names == ["FP16", "FP8", "MicroMix"]
    for variant in document["variants"]:
        assert variant["error"] is None
        assert variant["engine_bytes"] > 0 and variant["build_seconds"] > 0
        assert variant["precision"]["asked"] == 2 == len(variant["precision"]["unverified"])
        assert [(p["batch"], p["sequence"]) for p in variant["points"]] == [(1, 1), (2, 3)]
        for point in variant["points"]:
            assert point["error"] is None and point["seconds"] > 0
            assert "no CUDA graph" in point["note"]  # host memory has none
            assert point["layers"][0]["name"] == "a layer"


@pytest.mark.slow
def test_micromix_is_compiled_from_the_fp16_baseline(work, tensorrt):  # noqa: F811
    variants = bench(work, "--calib", work.data).json()["variants"]
    assert [variant["name"] for variant in variants] == ["FP16", "FP8", "MicroMix"]
    assert all(variant["error"] is None for variant in variants)


def test_stock_variants_that_need_data():
    builder = find_backend("tensorrt")
    names = [[each.name for each in baselines(builder, data=data)] for data in (True, False)]
    assert names == [["fp16", "fp8", "mxfp8", "nvfp4"], ["fp16", "mxfp8"]]


def test_baselines_are_back_ends_that_can_be_timed():
    (fp16, *_) = baselines(find_backend("tensorrt"), data=False)
    assert isinstance(fp16, Timeable)


class Untimed(NoBackend):
    name, file = "untimed", "engine.txt"

    def missing(self, _):
        return None


def test_a_back_end_that_cannot_be_timed(work, tensorrt):  # noqa: F811
    BACKENDS.add("untimed", Untimed())
    try:
        shown = bench(work, "--backend", "untimed")
    finally:
        BACKENDS.remove("untimed")
    assert shown.code == 2
    assert "[not-timeable]" in shown.line()


def test_without_data_fp8_and_nvfp4_are_left_out(work, tensorrt):  # noqa: F811
    names = [variant["name"] for variant in bench(work).json()["variants"]]
    assert names == ["FP16"]


def test_a_build_that_fails_is_told_beside_the_others(work, tensorrt):  # noqa: F811
    tensorrt.faults.build = ["2: [virtualMemoryBuffer.cpp] OutOfMemory"]
    shown = bench(work)
    assert shown.code == 4
    for variant in shown.json()["variants"]:
        assert "build-out-of-memory" in variant["error"]


def test_a_model_that_is_not_there(work, tensorrt):  # noqa: F811
    document = bench(work, "--engine", "A=none.onnx").json()
    assert "none.onnx" in document["variants"][-1]["error"]
    assert document["variants"][0]["points"][0]["seconds"] > 0


def test_tensorrt_that_is_too_old(work, install):  # noqa: F811
    install("10.9.0.34")
    shown = bench(work)
    assert shown.code == 4
    assert "10.9.0.34" in shown.line() and "--modelled" in shown.line()


def test_another_gpu_than_asked_for(work, tensorrt):  # noqa: F811
    shown = bench(work, "--gpu", "rtx5080")
    assert shown.code == 2 and "not rtx5080" in shown.line()
