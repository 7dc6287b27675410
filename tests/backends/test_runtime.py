"""`mmcompile.runtime`: what it takes, what it refuses, and what it does not import."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from mmcompile.errors import UsageError
from mmcompile.runtime import Engine
from tests.workplace import ROOT, call, samples


@pytest.fixture
def built(work, tensorrt):
    assert work.compile("--shapes", "x:[1x1x96,1x8x96,4x8x96]").code == 0
    return work


@pytest.fixture
def engine(built):
    return Engine(built.out / "engine.plan")


def test_outputs_stand_in_the_models_order(engine):
    assert [spec.name for spec in engine.interface.outputs] == ["y"]
    outputs = engine({"x": samples(2)})
    assert list(outputs) == ["y"]
    assert outputs["y"].dtype == np.float32 and outputs["y"].shape == (2, 8, 48)


def test_arrays_of_any_strides_are_taken(engine):
    x = samples(2)
    backwards = np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    assert not backwards.flags.c_contiguous
    np.testing.assert_array_equal(engine({"x": backwards})["y"], engine({"x": x})["y"])


def test_results_are_the_callers(engine):
    first = engine({"x": samples(1)})["y"]
    kept = first.copy()
    engine({"x": samples(1, seed=1)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({}, "input-name", "it is missing"),
        ({"x": samples(1), "z": samples(1)}, "input-name", "none of the model's"),
        ({"x": samples(1).astype(np.float64)}, "input-type", "it is float64"),
        ({"x": samples(5)}, "input-shape", "(5, 8, 96) is outside the engine's (1, 1, 96) to"),
        ({"x": samples(1)[0]}, "input-shape", "(8, 96) is outside"),
    ],
)
def test_what_is_refused(engine, inputs, code, words):
    with pytest.raises(UsageError) as caught:
        engine(inputs)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_the_profile_follows_the_shapes(work, tensorrt):
    shapes = ("--shapes", "x:[1x1x96,1x8x96,2x8x96] x:[3x8x96,4x8x96,8x8x96]")
    assert work.compile(*shapes).code == 0
    engine = Engine(work.out / "engine.plan")
    for count in (1, 4, 5, 2):
        assert engine({"x": samples(count)})["y"].shape == (count, 8, 48)
    assert tensorrt.seen.profiles_set == [1, 0]


def test_torch_tensors_stay_on_the_gpu(engine, monkeypatch):
    """On the CPU's torch, whose memory stands for the GPU's: the calls, not the GPU, are tested."""
    torch = pytest.importorskip("torch", reason="needs torch")
    stream = types.SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    started = []
    context = engine._runner._context
    enqueue = context.enqueue
    monkeypatch.setattr(context, "enqueue", lambda s: started.append(s) or enqueue(s))
    x = torch.from_numpy(samples(3))
    outputs = engine({"x": x})
    assert isinstance(outputs["y"], torch.Tensor)
    assert started == [77]
    np.testing.assert_array_equal(outputs["y"].numpy(), engine({"x": samples(3)})["y"])
    with pytest.raises(UsageError, match="it is float64"):
        engine({"x": x.double()})


def test_inspection_and_profile(engine):
    from mmcompile.backends.engines import api as trt

    runner = engine._runner
    assert '"Layers"' in trt.inspection(runner._tensorrt, runner._engine)
    engine({"x": samples(1)})
    assert runner._context.profile(0, lambda: None) == {"a layer": 0.0005}


def test_it_imports_neither_onnx_nor_the_compiler():
    code = (
        "import sys, mmcompile.runtime;"
        "heavy = {'onnx', 'onnxruntime', 'polygraphy', 'torch', 'tensorrt', 'mmcompile.ops'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_build_command_says_what_it_wrote(built):
    result = call("build", built.out)
    assert result.out.splitlines()[0] == "engine for double of sm_120, TensorRT 11.4.0.106"
    assert f"wrote {built.out / 'engine.plan'}" in result.out
