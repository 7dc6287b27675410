"""Every way in which an engine can fail to come about: one line, and what was there stays."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from mmcompile.errors import EnvironmentProblem, MMCompileError
from mmcompile.runtime import Engine
from tests.models import model_of, weight
from tests.workplace import call, samples


def refused(work, code, exit_code=4, *arguments):
    """`mmcompile build` fails with one line and leaves every file as it was."""
    before = work.contents()
    result = call("build", work.out, *arguments)
    assert result.code == exit_code
    line = result.line()
    assert line.endswith(f"[{code}]"), line
    assert work.contents() == before
    return line


# TensorRT and the GPU


def test_tensorrt_is_absent(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    line = refused(built, "tensorrt-missing")
    words = "TensorRT is not installed here; TensorRT-RTX is not installed here; pip install"
    assert words in line


def test_tensorrt_cannot_be_imported(built, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    assert "libnvinfer.so.11: cannot open" in refused(built, "tensorrt-missing")


@pytest.mark.parametrize(
    ("version", "too"), [("10.12.0.36", "old"), ("8.6.1", "old"), ("12.0.0.1", "new")]
)
def test_tensorrt_of_an_unsupported_release(built, install, version, too):
    install(version)
    assert f"TensorRT {version} is too {too}" in refused(built, f"tensorrt-too-{too}")


def test_the_driver_is_too_old(built, tensorrt):
    tensorrt.faults.builder = True
    line = refused(built, "tensorrt-no-builder")
    assert "CUDA initialization failure with error: 35" in line


def test_there_is_no_gpu(work, tensorrt, monkeypatch):
    def none(*_):
        raise EnvironmentProblem("no-gpu", "GPU", "no driver (libcuda.so.1)", "use another machine")

    assert work.compile().code == 0
    monkeypatch.setattr("mmcompile.backends.engines.backend.read_device", none)
    refused(work, "no-gpu")
    result = work.compile()
    assert result.code == 0
    words = "no driver (libcuda.so.1); TensorRT-RTX is not installed here; where one can be built"
    assert f"No engine: {words}, run:" in " ".join(result.out.split())


def test_the_gpu_is_another(built, install):
    install(architecture="sm_90")
    line = refused(built, "gpu-mismatch")
    assert "compiled for sm_120; here is double of sm_90 (sm_90)" in line
    assert "--gpu sm_90 --plan plan.json" in line


@pytest.mark.parametrize("cause", ["absent", "old", "gpu"])
def test_compiling_hands_over_the_bundle(work, install, monkeypatch, cause):
    if cause != "absent":
        install(*{"old": ("10.9.0",), "gpu": ("11.0.0", "sm_80")}[cause])
    else:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = work.compile()
    assert result.code == 0
    (line,) = (x for x in result.out.splitlines() if x.startswith("No engine: "))
    assert line.endswith(f"where one can be built, run: mmcompile build {work.out}.")
    assert (work.out / "libmmcompile_plugin.so").exists()
    before = work.contents()
    assert work.compile("--engine").code == 4  # demanded: an error, and nothing is written
    assert work.contents() == before


# The plugin


def test_the_plugin_library_is_not_found(work, monkeypatch):
    monkeypatch.delenv("MMCOMPILE_PLUGIN")
    monkeypatch.setattr("mmcompile.libraries.PACKAGE", work.folder / "nowhere" / "mmcompile")
    result = work.compile()
    assert result.code == 0
    (line,) = (x for x in result.out.splitlines() if x.startswith("No engine: "))
    assert "make plugin" in line
    assert not (work.out / "libmmcompile_plugin.so").exists()
    assert "make plugin" in refused(work, "plugin-not-found")


def test_the_variable_names_no_library(work, monkeypatch):
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(work.model))
    result = work.compile()
    assert result.code == 0
    assert "MMCOMPILE_PLUGIN names it, but it is no shared library" in result.out


def test_tensorrt_refuses_the_library(built, install):
    install().faults.library = True
    refused(built, "plugin-unloadable")


def test_the_bundles_library_is_damaged(built, install, monkeypatch):
    monkeypatch.delenv("MMCOMPILE_PLUGIN")
    install()
    library = built.out / "libmmcompile_plugin.so"
    content = library.read_bytes()
    library.write_bytes(content[:-1])
    assert "31 of 32 bytes" in refused(built, "plugin-truncated")
    library.write_bytes(content[:-1] + b"?")
    refused(built, "plugin-changed")


# Parser and builder


def test_the_parser_objects_to_a_node(built, tensorrt):
    tensorrt.faults.node = "relu"
    line = refused(built, "parser-error", 3)
    assert "node relu: TensorRT's parser does not take it: UNSUPPORTED_NODE Relu" in line
    assert "dims.nbDims <= 8" in line


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        ([], "build-failed", "returned nothing and logged no error"),
        (
            ["2: [virtualMemoryBuffer.cpp] OutOfMemory (Requested size was 9 bytes.)", "failed"],
            "build-out-of-memory",
            "--workspace",
        ),
        (
            ["10: Could not find any implementation for node first + bias."],
            "build-no-implementation",
            "node first:",
        ),
        (["mmcompile: MicroMixLinear layer 'second': bad field"], "plugin-refused", "node second"),
        (["Error: No space left on device"], "disk-full", "TMPDIR"),
        (["something new"], "build-failed", "something new"),
        (MemoryError(), "build-out-of-memory", "out of memory"),
        (RuntimeError("unknown"), "build-failed", "unknown"),
    ],
)
def test_the_builder_gives_nothing(built, tensorrt, log, code, words):
    tensorrt.faults.build = log
    assert words in refused(built, code)


def test_a_failing_engine_keeps_the_earlier_output_of_compile(built, tensorrt):
    before = built.contents()
    tensorrt.faults.build = ["out of memory"]
    result = built.compile()
    assert result.code == 4
    assert "[build-out-of-memory]" in result.line()
    assert built.contents() == before


def test_an_engine_with_other_outputs_is_refused(built, tensorrt):
    tensorrt.faults.rename = True
    assert "y_other" in refused(built, "not-drop-in", 5)


def test_a_network_in_another_order_is_refused(work, tensorrt):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="linear"),
        helper.make_node("Add", ["h", "z"], ["s"], name="sum"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    other = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ("batch", 64))
    sizes = {"x": ("batch", 96), "y": ("batch", 64)}
    model = model_of(nodes, {"W": weight(96, 64)}, **sizes, inputs=[other])
    onnx.save(model, work.model)
    assert work.compile(data="random").code == 0
    tensorrt.faults.swap = True
    line = refused(work, "not-drop-in", 5)
    assert "inputs are z float32[?, 64], x float32[?, 96]" in line


# The disk


def test_the_disk_is_full(built, monkeypatch):
    write = Path.write_bytes

    def full(path, data):
        if path.name == "engine.plan":
            write(path, bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    refused(built, "disk-full")


# The bundle


def test_a_folder_without_a_bundle(work):
    work.out.mkdir()
    result = call("build", work.out)
    assert result.code == 2
    assert "[meta-missing]" in result.line()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _: b"{", "meta-damaged"),
        (lambda text: text.replace(b'"format": 2', b'"format": 7'), "meta-version"),
        (lambda text: text.replace(b'"target"', b'"tarGet"'), "meta-damaged"),
    ],
)
def test_a_damaged_description(built, change, code):
    path = built.out / "build.json"
    path.write_bytes(change(path.read_bytes()))
    refused(built, code, 2)


def test_a_model_that_was_changed_behind_the_bundles_back(built):
    data = built.out / "model.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    refused(built, "bundle-truncated")
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(built, "bundle-changed")
    data.unlink()
    refused(built, "bundle-missing")


@pytest.mark.parametrize(
    "option", [("--workspace", "much"), ("--shapes", "x"), ("--triton", "a/b")]
)
def test_options_are_checked_before_anything_is_done(built, option):
    before = built.contents()
    assert call("build", built.out, *option).code == 2
    assert built.compile(*option).code == 2
    assert built.contents() == before


# Loading the engine


def loading_fails(path, code):
    with pytest.raises(MMCompileError) as caught:
        Engine(path)
    assert caught.value.code == code
    return caught.value


def test_an_engine_that_is_cut_short(built):
    path = built.out / "engine.plan"
    path.write_bytes(path.read_bytes()[:-5])
    assert "cut short" in loading_fails(path, "engine-truncated").reason


def test_an_engine_that_was_replaced(built):
    path = built.out / "engine.plan"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    loading_fails(path, "engine-changed")
    path.unlink()
    loading_fails(path, "engine-missing")


def test_an_engine_without_its_description(built):
    (built.out / "engine.meta.json").unlink()
    loading_fails(built.out / "engine.plan", "meta-missing")


def test_an_engine_of_another_release(built, install):
    install("11.4.1.0")
    error = loading_fails(built.out / "engine.plan", "engine-version")
    assert "built with TensorRT 11.4.0.106 and runs with it only; here is 11.4.1.0" in error.reason


def test_an_engine_of_another_gpu(built, install):
    install(architecture="sm_121")
    error = loading_fails(built.out / "engine.plan", "engine-gpu")
    assert "double of sm_120 (sm_120); here is double of sm_121 (sm_121)" in error.reason


def test_version_compatible_engines_run_in_later_releases_of_their_major(work, install):
    install("10.13.0.1")
    assert work.compile("--embed-plugin").code == 0
    for version, runs in (("10.14.0", True), ("10.13.0.0", False), ("11.0.0", False)):
        install(version)
        if runs:
            assert Engine(work.out / "engine.plan")({"x": samples(1)})["y"].shape == (1, 8, 48)
        else:
            loading_fails(work.out / "engine.plan", "engine-version")


def test_an_engine_with_another_plugin_library(built, install, monkeypatch, tmp_path):
    install()
    other = tmp_path / "other.so"
    other.write_bytes(b"\x7fELF another library of the same siz")
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(other))
    loading_fails(built.out / "engine.plan", "plugin-changed")


def test_tensorrt_rejects_the_engine(built):
    path = built.out / "engine.plan"
    meta = json.loads((built.out / "engine.meta.json").read_text())
    path.write_bytes(b"no engine at all")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    meta["engine"] |= {"bytes": 16, "sha256": digest}
    (built.out / "engine.meta.json").write_text(json.dumps(meta))
    assert "Magic tag" in loading_fails(path, "engine-rejected").reason


def test_the_gpu_has_too_little_memory(built, tensorrt):
    tensorrt.faults.context = True
    assert "OutOfMemory" in loading_fails(built.out / "engine.plan", "gpu-out-of-memory").reason


def test_running_fails(built, tensorrt):
    engine = Engine(built.out / "engine.plan")
    tensorrt.faults.enqueue = True
    with pytest.raises(EnvironmentProblem, match="illegal address"):
        engine({"x": samples(1)})
