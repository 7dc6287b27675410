"""What a bundle holds, and that the commands in it work as printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.backends.engines.triton import configuration
from mmcompile.errors import UnsupportedModelError
from tests.backends.conftest import real_plugin
from tests.workplace import ROOT, samples

SHAPES = ("--shapes", "x:[1x1x96,2x8x96,4x16x96]", "--workspace", "1G", "--optimization-level", "2")


@pytest.fixture
def bundle(work):
    result = work.compile(*SHAPES)
    assert result.code == 0, result.err
    return work


def run_script(work, *arguments, path="", **variables):
    places = [path, str(Path(sys.executable).parent), os.environ["PATH"]]
    tools = os.pathsep.join(filter(None, places))
    return subprocess.run(
        ["sh", str(work.out / "reproduce.sh"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables, "PATH": tools},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_bundle_is_complete(bundle):
    names = {path.name for path in bundle.out.iterdir()}
    assert names == {
        "build.json",
        "libmmcompile_plugin.so",
        "model.onnx",
        "model.onnx.data",
        "plan.json",
        "report.json",
        "reproduce.sh",
    }
    found = json.loads((bundle.out / "build.json").read_text())
    assert found["target"] == "sm_120"
    assert found["interface"]["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["batch", "sequence", 96]}
    ]
    assert found["choices"]["workspace_bytes"] == 1 << 30


def test_the_report_holds_the_command_that_finishes(bundle):
    report = json.loads((bundle.out / "report.json").read_text())
    assert report["reproduce"][-1] == f"mmcompile build {bundle.out}"
    assert report["engine"]["bytes"] is None
    assert "TensorRT is not installed here" in report["engine"]["summary"]


def test_without_a_step_the_script_says_what_there_is(bundle):
    ran = run_script(bundle)
    assert ran.returncode == 2
    assert "onnxruntime" in ran.stdout and "trtexec" in ran.stdout


@pytest.mark.slow
def test_the_onnxruntime_step_works_as_printed(work):
    """With a path that a shell would take apart."""
    folder = work.folder / "it's $HOME; a place"
    folder.mkdir()
    model = folder / "model.onnx"
    work.model.rename(model)
    assert work.compile(model=model).code == 0
    ran = run_script(work, "onnxruntime")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert "PASSED" in ran.stdout


def recorded(work, tool, step):
    """The arguments with which the script calls a tool that is not on this machine."""
    tools = work.folder / "tools"
    tools.mkdir()
    fake = tools / tool
    fake.write_text('#!/bin/sh\nfor a in "$@"; do printf "%s\\n" "$a"; done\n')
    fake.chmod(0o755)
    ran = run_script(work, step, path=str(tools))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_trtexec_step(bundle):
    assert recorded(bundle, "trtexec", "trtexec") == [
        "--onnx=model.onnx",
        "--stronglyTyped",
        "--dynamicPlugins=./libmmcompile_plugin.so",
        "--minShapes=x:1x1x96",
        "--optShapes=x:2x8x96",
        "--maxShapes=x:4x16x96",
        "--builderOptimizationLevel=2",
        "--memPoolSize=workspace:1073741824B",
        "--saveEngine=trtexec.plan",
    ]


def test_the_original_may_have_moved(bundle):
    assert recorded(bundle, "polygraphy", "onnxruntime")[1] == str(bundle.model)
    ran = run_script(bundle, "onnxruntime", path=str(bundle.folder / "tools"), ORIGINAL="a b.onnx")
    assert ran.stdout.splitlines()[1] == "a b.onnx"


def test_the_build_step(bundle):
    assert recorded(bundle, "mmcompile", "build") == ["build", "."]


def polygraphy_line(work):
    text = (work.out / "reproduce.sh").read_text()
    (line,) = re.findall(r"^  (polygraphy run model.onnx --trt .*)$", text, re.MULTILINE)
    return line


def test_polygraphy_accepts_the_engine_line(bundle):
    """It parses it and writes the script that it would run; TensorRT is not needed."""
    line = polygraphy_line(bundle).split(" --load-inputs")[0]
    done = subprocess.run(
        ["sh", "-c", f"{line} --gen-script - 2>&1"],
        cwd=bundle.out,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "tensorrt" in done.stdout and "No module" in done.stdout:
        pytest.skip("this polygraphy wants TensorRT to write a script")
    assert done.returncode == 0, done.stdout[-1500:]


SHIM = """
from tensorrt_lean_bindings import *
from tensorrt_lean_bindings import __version__
import tensorrt_lean_bindings as _lean

class Builder:
    def __init__(self, logger):
        import os
        creator = get_plugin_registry().get_creator("MicroMixLinear", "1", "mmcompile")
        print("REGISTERED", creator is not None, flush=True)
        os._exit(0)

def __getattr__(name):
    return getattr(_lean, name)
"""


@pytest.mark.parametrize("order", ["as printed", "without the option"])
def test_polygraphy_registers_the_plugin(work, monkeypatch, order):
    """NVIDIA's registry, in a real `polygraphy run --trt --plugins` up to the builder.

    polygraphy loads plugins with dlopen, before it imports TensorRT unless an option makes it do
    so earlier, and a library can only register itself with a TensorRT that is there.
    """
    pytest.importorskip("tensorrt_lean_bindings", reason="needs NVIDIA's lean runtime")
    real_plugin(monkeypatch)
    assert work.compile(*SHAPES[:2]).code == 0
    (work.folder / "shim").mkdir()
    (work.folder / "shim" / "tensorrt.py").write_text(SHIM)
    line = polygraphy_line(work).split(" --load-inputs")[0]
    if order != "as printed":
        line = line.replace("--profiling-verbosity detailed ", "")
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=work.out,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(work.folder / "shim"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert f"REGISTERED {order == 'as printed'}" in done.stdout, done.stdout + done.stderr


def test_polygraphys_json_is_calibration_data(bundle):
    """Inputs that polygraphy saves calibrate and verify; see also tests/data/test_calib_data.py."""
    from polygraphy.json import save_json

    save_json([{"x": x[None]} for x in samples(6)], str(bundle.folder / "inputs.json"))
    result = bundle.compile(data=bundle.folder / "inputs.json")
    assert result.code == 0, result.err
    assert np.load(bundle.data)["x"].shape[0] == 10


# Triton


def test_the_triton_repository(work):
    result = work.compile("--triton", "mini")
    assert result.code == 0
    model = work.out / "triton" / "mini"
    assert f"wrote {work.out / 'triton'}" in result.out
    text = (model / "config.pbtxt").read_text()
    assert 'name: "mini"' in text and 'platform: "tensorrt_plan"' in text
    assert "dims: [ -1, -1, 96 ]" in text and "dims: [ -1, -1, 48 ]" in text
    assert "mmcompile build . --triton mini" in (model / "1" / "model.plan.missing.txt").read_text()
    note = (model / "README.txt").read_text()
    assert f"--backend-config=tensorrt,plugins={work.out / 'libmmcompile_plugin.so'}" in note


def test_an_embedded_plugin_needs_no_library_in_triton(work):
    assert work.compile("--triton", "mini", "--embed-plugin").code == 0
    note = (work.out / "triton" / "mini" / "README.txt").read_text()
    assert "version-compatible=true" in note and "plugins=" not in note


def test_config_types_and_scalars():
    kinds = ("bfloat16", "bool", "float16", "float32", "int32", "int64", "int8", "uint8")
    inputs = tuple(TensorSpec(f'a"{kind}', kind, ()) for kind in kinds)
    text = configuration("m", Interface(inputs, ()))
    assert re.findall(r"data_type: TYPE_(\w+)", text) == [
        "BF16", "BOOL", "FP16", "FP32", "INT32", "INT64", "INT8", "UINT8",
    ]  # fmt: skip
    assert 'name: "a\\"int8"' in text
    # Triton has no scalars: one element.
    assert text.count("dims: [ 1 ]") == len(kinds)
    with pytest.raises(UnsupportedModelError, match="Triton cannot describe"):
        configuration("m", Interface((TensorSpec("c", "complex64", (1,)),), ()))
