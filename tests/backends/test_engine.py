"""`mmcompile` and `mmcompile build` where TensorRT (its double) and the GPU are present."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from mmcompile.cache import cache_folder
from mmcompile.errors import UsageError
from mmcompile.runtime import Engine
from tests.backends.conftest import ELF
from tests.running import run
from tests.workplace import call, samples


def meta(work):
    return json.loads((work.out / "engine.meta.json").read_text())


def test_the_command_ends_in_an_engine(built, tensorrt):
    names = {path.name for path in built.out.iterdir()}
    assert {"engine.plan", "engine.meta.json", "libmmcompile_plugin.so", "reproduce.sh"} <= names
    found = meta(built)
    assert (found["backend"], found["product"]) == ("tensorrt", "TensorRT")
    assert found["version"] == "11.4.0.106"
    assert found["target"] == "sm_120" and found["loaded"]
    assert found["device"]["architecture"] == "sm_120"
    assert found["plugin"]["layout_version"] == 2
    assert found["engine"]["bytes"] == (built.out / "engine.plan").stat().st_size
    # The calibration data's samples are float[1, 8, 96].
    assert found["choices"]["profiles"] == [
        {"x": {"min": [1, 1, 96], "opt": [1, 8, 96], "max": [8, 8, 96]}}
    ]
    report = json.loads((built.out / "report.json").read_text())
    assert report["engine"]["gpu"] == "double of sm_120"
    assert report["engine"]["builder"] == "TensorRT 11.4.0.106"
    assert report["engine"]["profiles"] == ["x:[1x1x96,1x8x96,8x8x96]"]


def test_tensorrt_gets_the_model_without_bodies(built, tensorrt):
    assert onnx.load(built.out / "model.onnx").functions
    assert tensorrt.seen.bodies == 0


@pytest.mark.parametrize(("version", "flags"), [("10.13.0.35", 2), ("11.0.0.1", 0)])
def test_networks_are_strongly_typed(work, install, version, flags):
    module = install(version)
    assert work.compile().code == 0
    assert module.seen.flags == flags  # 1 << STRONGLY_TYPED; 11.0 has no other kind


def test_options_reach_the_builder(work, tensorrt):
    options = ["--optimization-level", "5", "--workspace", "2G", "--embed-plugin"]
    assert work.compile(*options, "--shapes", "x:[1x1x96,2x16x96,4x64x96]").code == 0
    assert tensorrt.seen.level == 5
    assert tensorrt.seen.workspace == 2 << 30
    assert [Path(path).name for path in tensorrt.seen.plugins] == ["libmmcompile_plugin.so"]
    assert meta(work)["choices"]["profiles"][0]["x"]["max"] == [4, 64, 96]


def test_an_engine_whose_weights_are_streamed(work, tensorrt):
    assert work.compile("--weight-streaming").code == 0
    file = work.out / "engine.plan"
    x = samples(1)
    expected = Engine(file)({"x": x})["y"]
    assert tensorrt.seen.budget is None
    np.testing.assert_array_equal(Engine(file, weight_bytes=1 << 20)({"x": x})["y"], expected)
    assert tensorrt.seen.budget == 1 << 20
    assert "--allowWeightStreaming" in (work.out / "reproduce.sh").read_text()


def test_weights_that_cannot_be_streamed(built):
    with pytest.raises(UsageError, match=r"weight_streaming \[no-streaming\]"):
        Engine(built.out / "engine.plan", weight_bytes=0)


def test_the_timing_cache_is_kept(work, tensorrt):
    assert work.compile().code == 0
    assert tensorrt.seen.cache == b""
    assert call("build", work.out).code == 0
    assert tensorrt.seen.cache == b"+measured"
    assert len(list((cache_folder() / "timing").iterdir())) == 1
    tensorrt.faults.cache = True  # one of another GPU: TensorRT refuses it, we start anew
    assert call("build", work.out).code == 0
    assert tensorrt.seen.cache == b""


def test_a_timing_cache_that_cannot_be_written_is_no_error(work, tensorrt):
    folder = cache_folder()
    folder.mkdir(parents=True)
    (folder / "timing").write_text("in the way")
    assert work.compile().code == 0


def test_the_engine_answers_as_the_model_does(built):
    engine = Engine(built.out / "engine.plan")
    x = samples(4)
    (expected,) = run(built.out / "model.onnx", {"x": x})
    np.testing.assert_array_equal(engine({"x": x})["y"], expected)
    np.testing.assert_array_equal(engine({"x": x[:1, :3]})["y"], expected[:1, :3])


def test_build_finishes_a_bundle(work, install, monkeypatch):
    result = work.compile()
    assert result.code == 0
    assert "run: mmcompile build" in result.out
    assert not (work.out / "engine.plan").exists()
    moved = work.folder / "elsewhere"
    work.out.rename(moved)
    monkeypatch.delenv("MMCOMPILE_PLUGIN")
    install()
    result = call("build", moved)
    assert result.code == 0, result.err
    assert (moved / "libmmcompile_plugin.so").read_bytes() == ELF
    assert Engine(moved / "engine.plan")({"x": samples(1)})["y"].shape == (1, 8, 48)


def test_options_of_build_win(built, tensorrt):
    result = call("build", built.out, "--shapes", "x:[3x7x96]", "--optimization-level", "0")
    assert result.code == 0
    span = meta(built)["choices"]["profiles"][0]["x"]
    assert span == {"min": [3, 7, 96], "opt": [3, 7, 96], "max": [3, 7, 96]}
    assert tensorrt.seen.level == 0


def test_no_engine_where_none_is_wanted(work, tensorrt):
    result = work.compile("--no-engine")
    assert result.code == 0
    assert "no engine was asked for" in result.out
    assert not (work.out / "engine.plan").exists()


def test_an_earlier_engine_does_not_stay_beside_a_new_model(built):
    assert built.compile("--no-engine").code == 0
    assert not (built.out / "engine.plan").exists()
    assert not (built.out / "engine.meta.json").exists()


def test_triton(built):
    assert call("build", built.out, "--triton", "small.model").code == 0
    model = built.out / "triton" / "small.model"
    assert (model / "1" / "model.plan").read_bytes() == (built.out / "engine.plan").read_bytes()
    assert call("build", built.out, "--triton", "small.model").code == 0  # in its place


@pytest.mark.slow
def test_verify_against_the_engine(built):
    arguments = ["verify", built.model, built.out / "model.onnx", "--data", built.data]
    result = call(*arguments, "--against", built.out / "engine.plan", "--layers", "--json")
    assert result.code == 0, result.err
    compiled, original = result.json()
    assert compiled["outputs"][0]["max_abs_error"] == 0
    assert original["outputs"][0]["max_abs_error"] > 0
    assert [layer["name"] for layer in compiled["layers"]] == ["first", "second"]
    assert compiled["layers"][0]["cosine"] == pytest.approx(1)
    assert "double of sm_120" in compiled["measured_on"]
    assert "against the compiled model" in compiled["note"]
    text = call(*arguments, "--against", built.out / "engine.plan").out
    assert "against the compiled model" in text and "against the original model" in text


@pytest.mark.slow
def test_verify_against_the_engine_demands(built):
    arguments = ["verify", built.model, built.out / "model.onnx", "--data", built.data]
    against = ["--against", built.out / "engine.plan"]
    assert call(*arguments, *against, "--fail-below", "0.9").code == 0
    assert call(*arguments, *against, "--fail-below", "0.9999999").code == 5


def test_verify_against_without_tensorrt(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    arguments = ["verify", built.model, built.out / "model.onnx", "--data", built.data]
    result = call(*arguments, "--against", built.out / "engine.plan")
    assert result.code == 4
    assert "[tensorrt-missing]" in result.line()
