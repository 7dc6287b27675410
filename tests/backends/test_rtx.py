"""Engines by NVIDIA's own builder TensorRT-RTX, for sm_120, without a GPU; and all its failures."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from mmcompile.backends.engines.api.names import AHEAD_OF_TIME, FULL_ONLY, RUNTIME
from mmcompile.backends.engines.interface import Interface, model_interface
from mmcompile.backends.engines.meta import BuildChoices, describe_file
from mmcompile.backends.engines.product import version_of
from mmcompile.backends.engines.shapes import make_profiles
from mmcompile.backends.protocol import Job
from mmcompile.backends.tensorrt_rtx import BACKEND, NAME, PRODUCT, _name
from mmcompile.ops import OP_TYPE
from tests.backends.conftest import real_plugin
from tests.backends.test_tensorrt_api import reached
from tests.plugin import building
from tests.workplace import Workplace, call, command, spawn

pytestmark = pytest.mark.slow
RTX = ("--backend", "tensorrt-rtx")
ROOM = 10_000_000
"""Bytes of an engine besides packed weights: what of a small model is not ours, and its graph."""
SECONDS = 60.0


@pytest.fixture
def rtx(monkeypatch):
    """The real builder, taken back, and the real plugin library."""
    if version_of(PRODUCT.distributions) is None:
        pytest.skip("no TensorRT-RTX; pip install 'mmcompile[rtx]'")
    monkeypatch.delitem(sys.modules, PRODUCT.module)
    return real_plugin(monkeypatch)


@pytest.fixture
def built(work, rtx):
    """An earlier run with its engine, which no failure may touch."""
    result = work.compile()
    assert result.code == 0, result.err
    assert (work.out / "engine.plan").exists()
    return work


def dynamic(interface: Interface) -> list[tuple[str, str, tuple[int | None, ...]]]:
    """Names, types and shapes; None for what is dynamic."""
    return [
        (spec.name, spec.dtype, tuple(n if isinstance(n, int) else None for n in spec.shape))
        for spec in (*interface.inputs, *interface.outputs)
    ]


def refused(work, code, exit_code=4, *arguments):
    """`mmcompile build` fails with one line and leaves every file as it was."""
    before = work.contents()
    result = call("build", work.out, *RTX, *arguments)
    assert result.code == exit_code, result
    line = result.line()
    assert line.endswith(f"[{code}]"), line
    assert work.contents() == before
    return line


# What is built


def test_it_has_all_names_that_are_used(rtx):
    module = pytest.importorskip(PRODUCT.module)
    for name in sorted(RUNTIME | FULL_ONLY | AHEAD_OF_TIME):
        assert reached(module, name) is not None, name
    capabilities = module.ComputeCapability.__members__
    numbers = [name.removeprefix("SM") for name in capabilities if name.startswith("SM")]
    assert tuple(map(int, numbers)) == PRODUCT.capabilities


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_compiled_language_models(exported, home, rtx, name):
    original = exported(name)
    out = home / "out"
    shapes = ("--shapes", "input_ids:[1x1,1x8,2x16]", "--shapes", "input_ids:[1x64,4x64,8x64]")
    options = ("--calib", "random", "--samples", "4", "--granularity", "32", "--no-html", *shapes)
    result = call(original, "--gpu", "sm_120", *options, *RTX, "-o", out)
    assert result.code == 0, result.err
    words = "TensorRT-RTX 1.7.1.116, built ahead of time, not loaded here"
    assert f"Engine for sm_120, {words}." in result.out
    meta = json.loads((out / "engine.meta.json").read_text())
    assert (meta["backend"], meta["version"]) == ("tensorrt-rtx", "1.7.1.116")
    assert (meta["target"], meta["device"], meta["loaded"]) == ("sm_120", None, False)
    assert len(meta["choices"]["profiles"]) == 2
    plan = (out / "engine.plan").read_bytes()
    assert b"[profile 1]" in plan
    assert len(plan) <= (out / "model.onnx.data").stat().st_size + ROOM
    # The builder's own word for inputs and outputs, of the original and of what it was built of.
    model = onnx.load(out / "model.onnx", load_external_data=False)
    nodes = [node.name for node in model.graph.node if node.op_type == OP_TYPE]
    assert nodes and all(node.encode() in plan for node in nodes)
    before = dynamic(model_interface(onnx.load(original, load_external_data=False)))
    built = BACKEND.build(job(out / "model.onnx", home, out / building.prebuilt_plugin().name))
    assert dynamic(built.interface) == before


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_original_language_models(exported, tmp_path, rtx, name):
    original = exported(name)
    built = BACKEND.build(job(original, tmp_path, None))
    assert dynamic(built.interface) == dynamic(model_interface(onnx.load(original)))
    weights = original.with_name(f"{original.name}.data").stat().st_size
    assert weights <= built.file.stat().st_size <= weights + ROOM
    assert built.version == "1.7.1.116" and built.device is None
    assert BACKEND.check(job(original, tmp_path, None), built) is None


def job(path: Path, folder: Path, library: Path | None) -> Job:
    model = onnx.load(path, load_external_data=False)
    interface = model_interface(model)
    choices = BuildChoices(profiles=make_profiles((), interface, {}))
    return Job(BACKEND.lower(model), path, library, "sm_120", choices, interface, folder)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--weight-streaming", "--optimization-level", "1", "--workspace", "1G"),
        ("--shapes", "x:[1x1x96,1x8x96,2x8x96] x:[4x16x96,4x16x96,8x32x96]"),
    ],
)
def test_polygraphy_builds_the_same_engine(work, rtx, options):
    """Byte for byte: so every option has reached the builder."""
    assert work.compile(*options).code == 0
    plan = (work.out / "engine.plan").read_bytes()
    assert polygraphys(work) == plan
    if options:
        assert call("build", work.out, *RTX).code == 0  # the bundle's options are kept
        assert (work.out / "engine.plan").read_bytes() == plan


def polygraphys(work: Workplace) -> bytes:
    """The engine that reproduce.sh makes with polygraphy."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["sh", str(work.out / "reproduce.sh"), "polygraphy-rtx"],
        env={**os.environ, "PATH": tools},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return (work.out / "polygraphy-rtx.plan").read_bytes()


def test_the_plugin_in_the_engine(built, rtx):
    plain = (built.out / "engine.plan").read_bytes()
    library = rtx.read_bytes()
    assert library not in plain
    assert call("build", built.out, "--embed-plugin").code == 0
    embedded = (built.out / "engine.plan").read_bytes()
    assert library in embedded
    assert len(embedded) < len(plain) + len(library) + 100_000


def test_nothing_deprecated_is_called(built, monkeypatch):
    """The timing cache, for one, which makes it look for a GPU and has no effect."""
    monkeypatch.setenv("PYTHONWARNINGS", "error::DeprecationWarning")
    assert call("build", built.out, *RTX).code == 0
    assert not (built.folder / "cache" / "timing").exists()


def test_the_parent_does_not_import_it(built):
    assert call("build", built.out, *RTX).code == 0
    assert PRODUCT.module not in sys.modules


# GPUs and packages


def test_gpus_that_it_does_not_serve(work, rtx):
    result = work.compile("--gpu", "sm_90", *RTX)
    assert result.code == 4
    served = "sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"
    assert f"TensorRT-RTX builds for {served}, not for sm_90" in result.line()
    assert not work.out.exists()
    assert work.compile("--gpu", "sm_90").code == 0  # unless it is demanded
    assert "polygraphy-rtx" not in (work.out / "reproduce.sh").read_text()
    assert call("build", work.out).line().endswith("[gpu-unserved]")


def test_another_gpu_of_its(work, rtx):
    result = work.compile("--gpu", "dgxspark", *RTX)
    assert result.code == 0, result.err
    assert "Engine for sm_121, TensorRT-RTX" in result.out
    plan = (work.out / "engine.plan").read_bytes()
    assert polygraphys(work) == plan
    assert work.compile(*RTX).code == 0
    assert (work.out / "engine.plan").read_bytes() != plan


def test_it_is_not_installed(built, monkeypatch):
    monkeypatch.setitem(sys.modules, PRODUCT.module, None)
    assert "pip install 'mmcompile[rtx]'" in refused(built, "tensorrt-missing")


def test_a_release_that_takes_no_plugins(built, monkeypatch):
    monkeypatch.setattr("mmcompile.backends.engines.api.library.version_of", lambda _: "1.6.0.1")
    assert "TensorRT-RTX 1.6.0.1 is too old" in refused(built, "tensorrt-too-old")


# The plugin


def test_the_plugin_library_is_missing(built, monkeypatch, tmp_path):
    monkeypatch.delenv("MMCOMPILE_PLUGIN", raising=False)
    monkeypatch.setattr("mmcompile.libraries.PACKAGE", tmp_path / "nowhere" / "mmcompile")
    (built.out / "libmmcompile_plugin.so").unlink()
    assert "make plugin" in refused(built, "plugin-not-found")
    before = built.contents()
    result = built.compile(*RTX)
    assert result.code == 4 and "[plugin-not-found]" in result.line()
    assert built.contents() == before
    assert built.compile().code == 0  # not demanded: the bundle
    assert not (built.out / "engine.plan").exists()


@pytest.mark.parametrize("kind", ["no library at all", "another library"])
def test_a_plugin_library_that_is_none(built, monkeypatch, tmp_path, kind):
    import mmcompile._native

    content = b"\x7fELF" + b"?" * 100
    if kind == "another library":
        content = Path(mmcompile._native.__file__).read_bytes()
    other = tmp_path / "other.so"
    other.write_bytes(content)
    monkeypatch.setenv("MMCOMPILE_PLUGIN", str(other))
    refused(built, "plugin-unloadable")


def change_node(work: Workplace, change: Callable[[onnx.NodeProto], None]) -> None:
    """Changes the second of our nodes behind the bundle's back, and its description with it."""
    path = work.out / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change([node for node in model.graph.node if node.op_type == OP_TYPE][1])
    path.write_bytes(model.SerializeToString())
    meta = json.loads((work.out / "build.json").read_text())
    changed = describe_file(path)
    for file in meta["files"]:
        if file["name"] == changed.name:
            file |= {"bytes": changed.bytes, "sha256": changed.sha256}
    (work.out / "build.json").write_text(json.dumps(meta))


def attribute(name: str, value: object) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        kept = [each for each in node.attribute if each.name != name]
        assert len(kept) < len(node.attribute)
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return change


def swap(node: onnx.NodeProto) -> None:
    node.input[2], node.input[3] = node.input[3], node.input[2]


def drop(node: onnx.NodeProto) -> None:
    del node.input[4:]


HOSTILE = {
    "an older layout": (attribute("layout_version", 1), "'layout_version' is 1"),
    "no layout": (attribute("layout_version", 2**40), "'layout_version'"),
    "no segments": (attribute("segment_channels", None), "'segment_channels' is missing"),
    "negative": (attribute("segment_channels", [-32]), "'segment_channels' holds -32"),
    "too many": (attribute("segment_channels", [32] * 99_999), "has 99999 entries"),
    "a text": (attribute("segment_channels", "many"), "'segment_channels' has type"),
    "an unknown format": (attribute("segment_act_formats", [99]), "'segment_act_formats'"),
    "not a number": (attribute("segment_act_thresholds", [float("nan")]), "thresholds'"),
    "no scale": (attribute("act_tensor_scale", 0.0), "'act_tensor_scale' is 0"),
    "swapped inputs": (swap, "weight"),
    "an input short": (drop, "has 4 inputs"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_fields(built, case):
    change, words = HOSTILE[case]
    change_node(built, change)
    line = refused(built, "plugin-refused")
    assert "node second: its plugin is refused: " in line
    assert words in line


def test_a_plugin_of_another_version(built):
    change_node(built, attribute("plugin_version", "7"))
    assert "node second" in refused(built, "plugin-not-found")


# Parser, builder, disk, interruptions


def test_the_parser_objects(work, rtx):
    node = helper.make_node("DeformConv", ["x", "w", "o"], ["h"], name="strange")
    x = helper.make_tensor_value_info("x", 1, (1, 1, 4, 4))
    y = helper.make_tensor_value_info("y", 1, (1, 1, 3, 3))
    o = helper.make_tensor_value_info("o", 1, (1, 8, 3, 3))
    w = helper.make_tensor("w", 1, (1, 1, 2, 2), np.ones(4, np.float32))
    relu = helper.make_node("Relu", ["h"], ["y"], name="relu")
    graph = helper.make_graph([node, relu], "g", [x, o], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, work.model)
    options = ("--policy", "mxfp8", "--no-verify", "--no-html", *RTX)
    result = call(work.model, "--gpu", "sm_120", *options, "-o", work.out)
    assert result.code == 3
    assert "node strange: TensorRT-RTX's parser does not take it" in result.line()
    assert result.line().endswith("[parser-error]")
    assert not work.out.exists()


def test_shapes_that_it_does_not_take(built):
    line = refused(built, "shapes-mismatch", 2, "--shapes", "x:[1x1x95]")
    assert "axis 2 is fixed" in line


def test_the_disk_is_full(built):
    """No file may be larger than half of the engine."""
    before = built.contents()
    limit = len(before["engine.plan"]) // 2

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = spawn("build", built.out, *RTX, preexec_fn=limited)
    assert result.code == 4
    assert result.line().endswith("[disk-full]")
    assert built.contents() == before


def test_its_parser_does_not_find_the_name(built, monkeypatch):
    """The plugin library writes a file that has it; without one, the builder ends its process."""
    monkeypatch.setenv("TMPDIR", "/proc")
    line = refused(built, "builder-died")
    assert "ended with signal SIGABRT while building: " in line
    assert f"will not find {NAME}" in line and "make a link of that name" in line


def builders_of(pid: int) -> list[Path]:
    """The processes that build for a process."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [Path("/proc") / child for child in children]
        return [each for each in found if b"isolation" in (each / "cmdline").read_bytes()]
    except OSError:
        return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build(built, number):
    before = built.contents()
    arguments = command("build", built.out, *RTX)
    process = subprocess.Popen(**arguments, stderr=subprocess.PIPE)
    with process:
        deadline = time.monotonic() + SECONDS
        while not (builders := builders_of(process.pid)):
            assert time.monotonic() < deadline and process.poll() is None
        process.send_signal(number)
        told = process.communicate(timeout=SECONDS)[1]
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert call("build", built.out, *RTX).code == 0  # and what was left is taken away
    else:
        assert process.returncode == 128 + number
        lines = [line for line in told.splitlines() if line]
        name = signal.Signals(number).name
        assert lines == [f"mmcompile: error: interrupted by {name}; no file is half written"]
    after = built.contents()
    times = {"engine.meta.json"} if number == signal.SIGKILL else set()
    assert {k: v for k, v in after.items() if k not in times} == {
        k: v for k, v in before.items() if k not in times
    }
    while any((builder / "exe").exists() for builder in builders):
        assert time.monotonic() < deadline


# What doctor says


def test_the_name_that_its_parser_opens(tmp_path):
    library = tmp_path / "libtensorrt_rtx.so.1"
    library.write_bytes(b"library")
    finding = _name(tmp_path)
    assert not finding.present and finding.found == f"not beside {library}"
    assert finding.remedy == f"ln -s libtensorrt_rtx.so.1 {tmp_path / NAME}"
    (tmp_path / NAME).write_bytes(b"library")
    assert _name(tmp_path).found == f"a copy of {library}"
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).symlink_to(library.name)
    finding = _name(tmp_path)
    assert finding.present and finding.found == str(tmp_path / NAME)


def test_doctor(rtx):
    findings = {finding["name"]: finding for finding in call("doctor", "--json").json()}
    found = findings["TensorRT-RTX"]
    assert found["present"] and found["found"].startswith("1.7.1.116, builds for sm_75")
    assert findings["plugin in TensorRT-RTX"]["present"]
    assert NAME in findings
