"""Loading and running what TensorRT-RTX built, on its double: no real one loads without a GPU."""

from __future__ import annotations

import json
import sys

import msgspec
import numpy as np
import pytest

from mmcompile.backends.registry import AUTO, BACKENDS, Wanted, choose
from mmcompile.backends.tensorrt_rtx import BACKEND, PRODUCT, TensorRTRTXBackend
from mmcompile.cache import cache_folder
from mmcompile.errors import EnvironmentProblem, MMCompileError
from mmcompile.runtime import Engine
from tests.running import run
from tests.workplace import call, samples

VERSION = "1.7.1.116"


@pytest.fixture
def put(install):
    """`put(version, architecture)` installs the double; it builds in this process, to be seen."""
    here = TensorRTRTXBackend(msgspec.structs.replace(PRODUCT, isolated=False))
    BACKENDS.add(here.name, here)
    yield lambda version=VERSION, architecture="sm_120": install(
        version, architecture, PRODUCT.module
    )
    BACKENDS.add(BACKEND.name, BACKEND)


@pytest.fixture
def no_gpu(monkeypatch):
    def none(*_):
        raise EnvironmentProblem("no-gpu", "GPU", "no driver (libcuda.so.1)", "use another machine")

    return lambda: monkeypatch.setattr("mmcompile.backends.engines.backend.read_device", none)


def answers(work):
    return run(work.out / "model.onnx", {"x": samples(2)})[0]


def loading_fails(work, code):
    with pytest.raises(MMCompileError) as caught:
        Engine(work.out / "engine.plan")
    assert caught.value.code == code
    return caught.value.reason


def test_where_its_gpu_is_an_engine_is_loaded(work, put):
    module = put()
    result = work.compile()
    assert result.code == 0, result.err
    assert f"Engine for double of sm_120, TensorRT-RTX {VERSION}." in result.out
    meta = json.loads((work.out / "engine.meta.json").read_text())
    assert meta["loaded"] and meta["device"]["architecture"] == "sm_120"
    assert module.seen.flags == 0  # its networks are of no other kind than strongly typed
    assert module.seen.cache == b"" and not (cache_folder() / "timing").exists()
    engine = Engine(work.out / "engine.plan")
    np.testing.assert_array_equal(engine({"x": samples(2)})["y"], answers(work))


def test_an_engine_that_is_loaded_is_compared(work, put):
    put().faults.rename = True
    result = work.compile()
    assert result.code == 5
    assert "y_other" in result.line() and result.line().endswith("[not-drop-in]")


def test_built_ahead_of_time_it_runs_where_its_gpu_is(work, put, no_gpu):
    put()
    no_gpu()
    result = work.compile()
    assert f"TensorRT-RTX {VERSION}, built ahead of time, not loaded here." in result.out
    put()
    engine = Engine(work.out / "engine.plan")
    np.testing.assert_array_equal(engine({"x": samples(2)})["y"], answers(work))
    arguments = ["verify", work.model, work.out / "model.onnx", "--data", work.data, "--json"]
    result = call(*arguments, "--against", work.out / "engine.plan", "--layers")
    assert result.code == 0, result.err
    assert result.json()[0]["measured_on"] == f"TensorRT-RTX {VERSION} on sm_120"


def test_another_gpu_than_the_one_here(work, put):
    put(architecture="sm_90")
    result = work.compile()
    assert "Engine for sm_120, TensorRT-RTX" in result.out and "not loaded here" in result.out
    assert "built for sm_120; here is double of sm_90 (sm_90)" in loading_fails(work, "engine-gpu")


@pytest.mark.parametrize("options", [(), ("--embed-plugin",)])
def test_engines_run_with_the_very_release_only(work, put, options):
    put()
    assert work.compile(*options).code == 0
    for version in ("1.7.2.1", "1.7.0.9"):
        put(version)
        words = f"built with TensorRT-RTX {VERSION} and runs with it only; here is {version}"
        assert words in loading_fails(work, "engine-version")


def test_an_engine_that_holds_its_plugin(work, put):
    module = put()
    assert work.compile("--embed-plugin").code == 0
    assert len(module.seen.plugins) == 1
    (work.out / "libmmcompile_plugin.so").unlink()
    put()
    assert Engine(work.out / "engine.plan")({"x": samples(1)})["y"].shape == (1, 8, 48)


def test_a_smaller_runtime_will_not_do(work, put, install, monkeypatch):
    put()
    assert work.compile("--embed-plugin").code == 0
    install(name="tensorrt_lean")
    monkeypatch.setitem(sys.modules, PRODUCT.module, None)
    assert "TensorRT-RTX is not installed here" in loading_fails(work, "tensorrt-missing")


def test_tensorrt_comes_first(work, put, install):
    put()
    install()
    assert choose(Wanted(AUTO, "sm_120")).backend.name == "tensorrt"
    assert choose(Wanted(AUTO, "sm_121")).backend.name == "tensorrt-rtx"  # no such GPU is here
    result = work.compile()
    assert "Engine for double of sm_120, TensorRT 11.4.0.106." in result.out
    result = work.compile("--backend", "tensorrt-rtx")
    assert f"Engine for double of sm_120, TensorRT-RTX {VERSION}." in result.out


def test_triton_gets_no_engine_of_it(work, put):
    put()
    result = work.compile("--triton", "mini")
    assert result.code == 0
    assert "Triton's TensorRT back end does not run engines by TensorRT-RTX" in result.out
    assert (work.out / "triton" / "mini" / "1" / "model.plan.missing.txt").exists()
    assert work.compile("--triton", "mini", "--backend", "tensorrt-rtx").code == 2
