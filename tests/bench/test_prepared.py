"""`mmcompile bench --prepare` and `--run`, on TensorRT-RTX's double: no real one runs here."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import msgspec
import pytest

from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.backends.registry import BACKENDS
from mmcompile.backends.tensorrt_rtx import BACKEND, PRODUCT, TensorRTRTXBackend
from mmcompile.bench import prepared
from mmcompile.bench.prepared import MANIFEST, NOTICE, read_prepared
from tests.backends.conftest import install, library  # noqa: F401
from tests.bench.test_engine_bench import Gpu, work  # noqa: F401
from tests.workplace import ROOT, call

pytestmark = pytest.mark.slow
VERSION = "1.7.1.116"
POINTS = ("--point", "1x1", "--point", "2x3")


@pytest.fixture
def rtx(install, monkeypatch):  # noqa: F811
    """`rtx(version)` installs the double; it builds in this process, on a GPU that it needs not."""
    here = TensorRTRTXBackend(msgspec.structs.replace(PRODUCT, isolated=False))
    BACKENDS.add(here.name, here)
    monkeypatch.setattr(prepared, "GpuMachine", Gpu)
    yield lambda version=VERSION: install(version, "sm_120", PRODUCT.module)
    BACKENDS.add(BACKEND.name, BACKEND)


@pytest.fixture
def folder(work, rtx):  # noqa: F811
    """A prepared folder, all by itself: model, data and plugin library are gone."""
    rtx()
    shown = prepare(work, "--calib", work.data)
    assert shown.code == 0, shown.err
    moved = work.folder / "elsewhere" / "bench"
    moved.parent.mkdir()
    (work.folder / "prepared").rename(moved)
    for path in (work.model, work.data, work.folder / "plugin.so"):
        path.unlink()
    rtx()
    return moved


def prepare(work, *more):  # noqa: F811
    target = work.folder / "prepared"
    return call("bench", work.model, "--prepare", target, *POINTS, *more)


def refused(folder, code, exit_code=4):
    shown = call("bench", "--run", folder)
    assert shown.code == exit_code
    assert shown.line().endswith(f"[{code}]"), shown.line()
    return shown.line()


def test_what_is_printed(work, rtx):  # noqa: F811
    rtx()
    shown = prepare(work, "--calib", work.data)
    assert shown.code == 0, shown.err
    plain = " ".join(shown.out.split())
    assert f"PREPARED for sm_120 by TensorRT-RTX {VERSION}, not timed" in plain
    assert "nothing was timed" in plain and "To be timed at 1 × 1, 2 × 3." in plain
    found = read_prepared(work.folder / "prepared")
    first = found.variants[0].engine.bytes
    for variant in found.variants:
        size = f"{variant.engine.bytes / 1e6:.2f} MB"
        assert f"{size} {variant.engine.bytes / first:.2f}" in plain
    assert f"wrote {work.folder / 'prepared'}" in shown.out


def test_the_folder_holds_all_of_it(folder):
    found = read_prepared(folder)
    assert (found.kind, found.notice) == ("prepared", NOTICE)
    assert (found.target, found.builder, found.builder_version) == (
        "sm_120",
        "TensorRT-RTX",
        VERSION,
    )
    assert [variant.name for variant in found.variants] == ["FP16", "FP8", "MicroMix"]
    assert [variant.needs_plugin for variant in found.variants] == [False, False, True]
    assert [variant.model for variant in found.variants][:2] == [
        "fp16/model.onnx",
        "fp8/model.onnx",
    ]
    assert all(variant.precision.asked for variant in found.variants)
    assert [point.shapes["x"] for point in found.points] == [(1, 1, 96), (2, 3, 96)]
    assert found.linears == ("first", "second")
    assert {file.name for file in found.files} | {MANIFEST} == {p.name for p in folder.iterdir()}
    assert found.plugin.library.name == LIBRARY
    assert found.plugin.library.bytes == (folder / LIBRARY).stat().st_size > 0


def test_it_is_timed_where_the_gpu_is(folder):
    shown = call("bench", "--run", folder, "--json")
    assert shown.code == 0, shown.err
    document = shown.json()
    assert document["kind"] == "measured"
    assert document["gpu"]["name"] == Gpu.facts.name
    assert document["versions"]["TensorRT-RTX"] == VERSION
    before = {variant.name: variant for variant in read_prepared(folder).variants}
    assert [variant["name"] for variant in document["variants"]] == list(before)
    for variant in document["variants"]:
        assert variant["error"] is None
        assert variant["engine_bytes"] == before[variant["name"]].engine.bytes
        assert variant["build_seconds"] == before[variant["name"]].build_seconds
        assert variant["precision"]["asked"] == before[variant["name"]].precision.asked
        assert [(p["batch"], p["sequence"]) for p in variant["points"]] == [(1, 1), (2, 3)]
        assert all(point["seconds"] > 0 and point["layers"] for point in variant["points"])


def test_its_tables_are_those_of_a_bench(folder):
    shown = call("bench", "--run", folder)
    assert shown.code == 0, shown.err
    assert "MEASURED on NVIDIA GeForce RTX 5090" in shown.out


def test_its_library_is_taken_not_another(folder, rtx):
    (folder / LIBRARY).unlink()
    refused(folder, "bench-missing")


def test_a_changed_byte_is_found_in_every_file(folder):
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        place = content.index(b'"linears"') - 20 if path.name == MANIFEST else len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        line = call("bench", "--run", folder).line()
        assert path.name in line and ("-changed]" in line or "-malformed]" in line), line
        path.write_bytes(content)
    assert call("bench", "--run", folder).code == 0


def test_a_cut_file_is_found(folder):
    engine = folder / read_prepared(folder).variants[1].engine.name
    engine.write_bytes(engine.read_bytes()[:-1])
    assert engine.name in refused(folder, "bench-truncated")


def test_a_manifest_that_is_none(folder):
    (folder / MANIFEST).write_text("{")
    refused(folder, "bench-malformed", 2)
    (folder / MANIFEST).unlink()
    refused(folder, "bench-unreadable", 2)


def test_another_mmcompile(folder, monkeypatch):
    monkeypatch.setattr(prepared, "__version__", "99.0")
    assert "99.0" in refused(folder, "bench-mmcompile", 2)


def test_another_version_of_the_file(folder, monkeypatch):
    later = dataclasses.replace(prepared.DOCUMENT, version=99)
    monkeypatch.setattr(prepared, "DOCUMENT", later)
    refused(folder, "bench-version", 2)


def test_another_release_of_the_builder(folder, rtx):
    rtx("1.8.0.1")
    line = refused(folder, "bench-builder")
    assert VERSION in line and "1.8.0.1" in line


def test_another_gpu(folder, monkeypatch):
    class Other(Gpu):
        facts = dataclasses.replace(Gpu.facts, name="NVIDIA GB10", architecture=121)

    monkeypatch.setattr(prepared, "GpuMachine", Other)
    line = refused(folder, "gpu-mismatch")
    assert "sm_120" in line and "NVIDIA GB10 (sm_121)" in line and "--gpu sm_121" in line


def test_a_build_that_fails_is_told_and_the_others_are_there(work, rtx):  # noqa: F811
    rtx()
    shown = prepare(work, "--engine", "Mine=none.onnx")
    assert shown.code == 0, shown.err
    assert "✗ Mine: none.onnx" in shown.out
    target = work.folder / "prepared"
    rtx()
    document = call("bench", "--run", target, "--json").json()
    assert [bool(variant["error"]) for variant in document["variants"]] == [False, True]
    assert document["variants"][1]["error"] == read_prepared(target).variants[1].error


def test_nothing_is_written_where_nothing_can_be_built(work, rtx):  # noqa: F811
    rtx().faults.build = ["2: [virtualMemoryBuffer.cpp] OutOfMemory"]
    shown = prepare(work)
    assert shown.code == 4
    assert "nothing was written" in shown.out and "build-out-of-memory" in shown.out
    assert not (work.folder / "prepared").exists()


def test_earlier_engines_go_and_other_files_stay(work, rtx):  # noqa: F811
    rtx()
    target = work.folder / "prepared"
    assert prepare(work, "--calib", work.data).code == 0
    (target / "notes.txt").write_text("mine")
    rtx()
    assert prepare(work).code == 0
    assert {path.name for path in target.iterdir()} == {MANIFEST, "0-fp16.plan", "notes.txt"}


def test_two_plugin_libraries_are_one_too_many(work, rtx, monkeypatch):  # noqa: F811
    rtx()
    assert work.compile().code == 0
    other = work.folder / "other"
    shutil.copytree(work.out, other)
    monkeypatch.delenv("MMCOMPILE_PLUGIN")
    (other / LIBRARY).write_bytes((other / LIBRARY).read_bytes() + b"!")
    models = ("--engine", f"A={work.out}/model.onnx", "--engine", f"B={other}/model.onnx")
    shown = prepare(work, *models)
    assert shown.code == 0, shown.err
    _, first, second = read_prepared(work.folder / "prepared").variants
    assert first.error is None and "plugin-differs" in second.error
    files = {path.name for path in (work.folder / "prepared").iterdir()}
    assert files == {MANIFEST, LIBRARY, "0-fp16.plan", "1-a.plan"}


def test_two_variants_of_one_name(work, rtx):  # noqa: F811
    rtx()
    shown = prepare(work, "--engine", f"FP16={work.model}")
    assert shown.code == 2 and "[variant-twice]" in shown.line()


def test_a_back_end_that_needs_the_gpu(work, rtx):  # noqa: F811
    rtx()
    shown = prepare(work, "--backend", "tensorrt")
    assert shown.code == 2 and "[not-ahead-of-time]" in shown.line()


def test_json_is_the_manifest(work, rtx):  # noqa: F811
    rtx()
    shown = prepare(work, "--json")
    assert shown.json() == json.loads((work.folder / "prepared" / MANIFEST).read_text())


def test_running_imports_neither_onnx_nor_the_compiler():
    code = (
        "import sys, mmcompile.bench.prepared, mmcompile.cli.bench, mmcompile.cli.bench_tables;"
        "import mmcompile.backends.engines.timing;"
        "heavy = {'onnx', 'onnxruntime', 'polygraphy', 'torch', 'mmcompile.bench.variants'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
