"""What goes wrong from outside: each case is one line, the right exit code, and no change."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.models import model_of
from tests.workplace import (
    CHANNELS,
    TOKENS,
    Workplace,
    call,
    command,
    samples,
    save_external,
    spawn,
    two_layers,
)

EARLIER = {"model.onnx": b"an earlier model", "model.onnx.data": b"its weights"}


@pytest.fixture
def work(home):
    place = Workplace(home)
    place.out.mkdir()
    for name, data in EARLIER.items():
        (place.out / name).write_bytes(data)
    return place


def refused(work, result, code, *words):
    """Checks the one line, the exit code, and that earlier output is as it was."""
    assert result.code == code, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.line(), result.err
    assert work.contents() == EARLIER
    assert not [p for p in work.out.iterdir() if p.name.startswith(".")]


# The model


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        (None, 2, "no such file"),
        (b"", 3, "empty"),
        (b"\x00" * 64, 3, "[not-onnx]"),
        (b"this is text\n" * 40, 3, "[not-onnx]"),
        (np.random.default_rng(3).bytes(4000), 3, "[not-onnx]"),
        (b"PK\x03\x04" + bytes(60), 3, "[not-onnx]"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", 3, "git lfs pull"),
    ],
    ids=["missing", "empty", "zeros", "text", "random", "zip", "git-lfs"],
)
@pytest.mark.parametrize("verb", ["compile", "inspect", "calibrate", "verify", "dry run"])
def test_files_that_are_no_models(work, content, code, word, verb):
    work.model.unlink()
    if content is not None:
        work.model.write_bytes(content)
    arguments = {
        "compile": work.arguments(),
        "inspect": ["inspect", work.model],
        "calibrate": ["calibrate", work.model, "--calib", work.data],
        "verify": ["verify", work.model, work.model, "--data", work.data],
        "dry run": [work.model, "--dry-run"],
    }
    refused(work, call(*arguments[verb]), code, word, "model.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_models_that_are_cut_short(work, share):
    data = work.model.read_bytes()
    work.model.write_bytes(data[: int(len(data) * share)])
    refused(work, work.compile(), 3, "model.onnx")


def test_a_damaged_model_in_a_process_of_its_own(work):
    data = bytearray(work.model.read_bytes())
    data[:200] = bytes(reversed(data[:200]))
    work.model.write_bytes(bytes(data))
    refused(work, spawn(*work.arguments()), 3, "model.onnx")


@pytest.mark.parametrize("dims", [(2**40, 2**40), (2**62, 4), (-96, -64), (96, 65), (2**31, 1)])
def test_weights_of_impossible_shapes(work, dims):
    model = two_layers()
    weight = next(t for t in model.graph.initializer if t.name == "W1")
    weight.dims[:] = dims
    onnx.save(model, work.model)
    refused(work, work.compile(), 3, "W1")


@pytest.mark.parametrize("size", [2**62, -1])
def test_inputs_of_impossible_shapes(work, size):
    model = two_layers()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = size
    onnx.save(model, work.model)
    result = work.compile()
    refused(work, result, result.code)
    assert result.code in (2, 3)


def test_activations_that_no_memory_holds(work):
    """A model that asks the runtime for terabytes, by one Expand."""
    model = two_layers()
    shape = numpy_helper.from_array(np.array([2**20, 2**20, CHANNELS], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("Expand", ["x", "shape"], ["big"], name="expand"))
    model.graph.node[1].input[0] = "big"
    onnx.save(model, work.model)
    np.savez(work.data, x=samples()[:, :1])
    result = work.compile()
    refused(work, result, result.code)
    assert result.code in (2, 4)


@pytest.mark.parametrize(
    ("damage", "word"),
    [("missing", "model.onnx.data"), ("short", "model.onnx.data"), ("empty", "model.onnx.data")],
)
def test_external_data_that_is_not_whole(work, damage, word):
    save_external(two_layers(), work.model)
    data = work.folder / "model.onnx.data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:-8] if damage == "short" else b"")
    refused(work, work.compile(), 3, word)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "link"])
def test_external_data_outside_the_folder_of_the_model(work, location):
    inside = work.folder / "inside"
    inside.mkdir()
    (work.folder / "secret").write_bytes(bytes(10**6))
    (inside / "link").symlink_to(work.folder / "secret")
    path = save_external(two_layers(), inside / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)
    refused(work, work.compile(model=path), 3, "weight")


def test_external_data_that_shrinks_during_the_run(work, monkeypatch):
    from mmcompile.pipeline import compile as module

    save_external(two_layers(), work.model)
    real = module.rewrite_linears

    def shrinking(*arguments):
        os.truncate(work.folder / "model.onnx.data", 100)
        return real(*arguments)

    monkeypatch.setattr(module, "rewrite_linears", shrinking)
    # Nothing runs the model between planning and packing.
    refused(work, work.compile("--weights", "nearest"), 4, "model.onnx.data")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [[], ["--policy", "mxfp8"], ["--policy", "nvfp4"]])
def test_weights_that_are_not_finite(work, bad, options):
    def spoil(value):
        value[3, 5] = bad
        return value

    work.replace_weight("W2", spoil)
    result = work.compile(*options)
    refused(work, result, 3, "W2", "second", "NaN or infinity")
    # Leaving the layer out is the remedy, and it works.
    assert work.compile(*options, "--exclude", "second", "--no-verify").code == 0


def test_weights_that_are_not_finite_without_data(work):
    work.replace_weight("W1", lambda value: value * np.float32(np.nan))
    result = call(work.model, "--policy", "mxfp4", "-o", work.out)
    refused(work, result, 3, "W1")


def test_a_layer_whose_input_overflows(work):
    work.replace_weight("b1", lambda bias: bias + np.float32(np.inf))
    refused(work, work.compile(), 3, "activation-not-finite")


def test_a_compiled_model(work):
    assert call(*work.arguments("-o", "first")).code == 0
    result = work.compile(model=work.folder / "first" / "model.onnx")
    refused(work, result, 3, "compiled it before", "compile the original")


@pytest.mark.parametrize("version", [14, 26, 9999])
def test_opsets_that_are_not_known(work, version):
    model = two_layers()
    model.opset_import[0].version = version
    onnx.save(model, work.model)
    refused(work, work.compile(), 3, str(version))


def test_operators_that_the_runtime_does_not_have(work):
    model = two_layers()
    model.graph.node[2].domain = "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(model, work.model)
    refused(work, work.compile(), 3, "model-not-runnable")


@pytest.mark.parametrize("kind", ["sequence", "no shape"])
def test_inputs_that_no_data_can_be_made_for(work, kind):
    model = two_layers()
    make = {
        "sequence": helper.make_tensor_sequence_value_info,
        "no shape": helper.make_tensor_value_info,
    }
    value = make[kind]("more", TensorProto.FLOAT, None)
    model.graph.input.append(value)
    onnx.save(model, work.model)
    refused(work, work.compile(data="random"), 3, "more")


# The data


def spoiled(change):
    values = samples()
    change(values)
    return {"x": values}


@pytest.mark.parametrize(
    ("arrays", "code", "words"),
    [
        ({"y": samples()}, 2, ["'y'", "x float32"]),
        ({"x": samples(), "z": samples()}, 2, ["'z'"]),
        ({}, 2, ["data.npz"]),
        ({"x": samples()[0, 0]}, 2, ["shape"]),
        ({"x": samples()[..., :-1]}, 2, ["shape", str(CHANNELS)]),
        ({"x": samples()[:0]}, 2, ["data.npz"]),
        ({"x": samples().astype(complex)}, 2, ["complex"]),
        ({"x": samples().astype(str)}, 2, ["'x'"]),
        ({"x": np.array([None, 1], object)}, 2, ["objects"]),
        (spoiled(lambda x: x.__setitem__((0, 0, 0), np.nan)), 2, ["nan at [0, 0, 0]"]),
        (spoiled(lambda x: x.__setitem__((0, 0, 0), np.inf)), 2, ["inf at [0, 0, 0]"]),
    ],
    ids=[
        "name",
        "more",
        "none",
        "rank",
        "size",
        "empty",
        "complex",
        "text",
        "objects",
        "nan",
        "inf",
    ],
)
def test_data_that_does_not_fit(work, arrays, code, words):
    np.savez(work.data, **arrays)
    refused(work, work.compile(), code, *words)
    clean = call(*work.arguments("--verify-data", work.data, data="random"))
    refused(work, clean, code, *words)


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "folder"])
def test_data_files_that_cannot_be_read(work, damage):
    data = work.data.read_bytes()
    work.data.unlink()
    if damage == "cut":
        work.data.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        work.data.write_text("no archive")
    elif damage == "folder":
        work.data.mkdir()
    refused(work, work.compile(), 2, "data.npz")


def test_text_for_a_model_without_tokens(work):
    Path("text.txt").write_text("Some text.\n")
    refused(work, work.compile(data="text.txt"), 2, "text.txt", "tokenizer")


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("raise ValueError('no data today')", "no data today"),
        ("def load_data():\n    yield {'x': 1 / 0}", "ZeroDivisionError"),
        ("def load_data():\n    return 3", "not iterable"),
        ("import sys\nsys.exit(7)", "7"),
        ("def load_data(", "SyntaxError"),
        ("load_data = 5", "load_data"),
        ("", "load_data"),
    ],
)
def test_scripts_of_users_that_fail(work, script, word):
    Path("feed_data.py").write_text(script)
    refused(work, work.compile(data="feed_data.py"), 2, "feed_data.py", word)


def test_damaged_plans(work):
    # MicroMix pads K = 96 to 128 and keeps mxfp8.
    made = call("calibrate", work.model, "--calib", work.data, "--policy", "micromix")
    assert made.code == 0
    text = Path("plan.json").read_text()
    for bad in (
        "",
        "{}",
        "[1]",
        text[:-20],
        text.replace('"version": 1', '"version": 2'),
        text.replace("mxfp8", "int8"),
        text.replace('"channels": 128', '"channels": 96'),
        text.replace('"in_channels": 96', '"in_channels": 9666666'),
        text.replace('"in_channels": 96', '"in_channels": 64'),
        text.replace('"order": "-1', '"order": "-7'),
    ):
        assert bad != text
        Path("plan.json").write_text(bad)
        result = call(work.model, "--plan", "plan.json", "-o", work.out)
        refused(work, result, 2, "plan.json")


# The output


def test_the_output_is_a_file(work):
    Path("file").write_text("mine")
    for place in ("file", "file/below"):
        result = call(*work.arguments("-o", place))
        refused(work, result, 4, "file")
    assert Path("file").read_text() == "mine"


def test_the_output_would_replace_the_model(work):
    before = work.model.read_bytes()
    result = work.compile("-o", ".")
    refused(work, result, 2, "output-is-source")
    assert work.model.read_bytes() == before
    external = work.folder / "m"
    external.mkdir()
    save_external(two_layers(), external / "x.onnx")
    (external / "x.onnx.data").rename(external / "model.onnx.data")
    model = onnx.load(external / "x.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "model.onnx.data"
    onnx.save(model, external / "x.onnx")
    data = (external / "model.onnx.data").read_bytes()
    refused(work, work.compile("-o", external, model=external / "x.onnx"), 2, "output-is-source")
    assert (external / "model.onnx.data").read_bytes() == data


def test_a_refused_output_is_known_before_calibration(work, monkeypatch):
    def late(*_):
        raise AssertionError("calibrated first")

    monkeypatch.setattr("mmcompile.pipeline.evidence.collect", late)
    refused(work, work.compile("-o", "."), 2, "output-is-source")


@pytest.mark.parametrize("place", ["/proc/mmcompile-out", "/sys/mmcompile-out"])
def test_an_output_that_cannot_be_made(work, place):
    refused(work, work.compile("-o", place), 4, place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_may_not_be_written(work):
    work.out.chmod(0o500)
    try:
        refused(work, work.compile(), 4, "output-unwritable")
    finally:
        work.out.chmod(0o700)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 4096, 8000])
def test_a_disk_that_is_full(work, limit):
    """A limit on the size of files stands for the disk: the write fails in the same way."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = spawn(*work.arguments("--policy", "mxfp8"), preexec_fn=limited)
    refused(work, result, 4, "disk-full", "free some space")


def test_a_full_disk_where_a_plan_goes(work):
    Path("plan.json").write_text("earlier")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    arguments = ["calibrate", work.model, "--calib", work.data, "-o", "plan.json"]
    result = spawn(*arguments, preexec_fn=limited)
    refused(work, result, 4, "disk-full")
    assert Path("plan.json").read_text() == "earlier"
    assert not list(work.folder.glob("*.partial")) + list(work.folder.glob(".*.partial"))


def test_another_run_in_the_same_folder(work):
    script = (
        "import sys\nfrom pathlib import Path\nfrom mmcompile.output import StagedOutput\n"
        "with StagedOutput(Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, work.out],
        env=command()["env"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        other.stdout.readline()
        result = work.compile()
        other.stdin.close()
    refused(work, result, 4, "another run")


# Interruption


PAUSE = """
import sys, time
import {module} as module
real = module.{function}
def paused(*arguments):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
module.{function} = paused
from mmcompile.cli import main
main()
"""

STAGES = {
    "calibration": ("mmcompile.pipeline.evidence", "collect"),
    "packing": ("mmcompile.pipeline.compile", "pack_group"),
    "verification": ("mmcompile.pipeline.verification", "compare_outputs"),
    "report": ("mmcompile.pipeline.compile", "render_html"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [*((stage, signal.SIGINT) for stage in STAGES), ("packing", signal.SIGTERM)],
)
def test_interrupted_runs_leave_nothing(work, stage, number):
    module, function = STAGES[stage]
    started = command(*work.arguments("--html"))
    script = PAUSE.format(module=module, function=function)
    started["args"] = [sys.executable, "-c", script, *started["args"][3:]]
    process = subprocess.Popen(**started, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        assert [p.name for p in work.out.iterdir() if p.name.startswith(".mmcompile")]
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert f"interrupted by {signal.Signals(number).name}; no file is half written" in lines[0]
    assert out == ""
    assert work.contents() == EARLIER
    assert set(work.out.iterdir()) == {work.out / name for name in EARLIER}


def test_an_interrupted_first_run_leaves_no_folder(work):
    shutil.rmtree(work.out)
    started = command(*work.arguments())
    script = PAUSE.format(module="mmcompile.pipeline.compile", function="pack_group")
    started["args"] = [sys.executable, "-c", script, *started["args"][3:]]
    process = subprocess.Popen(**started, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not work.out.exists()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from mmcompile.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_a_signal_at_any_time(work, share):
    """Wherever the signal arrives, the folder holds the earlier files or the new ones.

    PyTorch is kept from being imported on the way: interrupted, its import ends the process.
    """
    started = command(*work.arguments())
    started["args"] = [sys.executable, "-c", WITHOUT_TORCH, *started["args"][3:]]
    start = time.perf_counter()
    subprocess.run(**started, capture_output=True, check=True)
    seconds = time.perf_counter() - start
    new = work.contents()
    for name, data in EARLIER.items():
        (work.out / name).write_bytes(data)
    with subprocess.Popen(**started, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(share * seconds)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    found = work.contents()
    # Python itself answers while it starts.
    assert process.returncode in (0, 130, -signal.SIGINT), error
    models = [{name: files[name] for name in EARLIER} for files in (found, new)]
    assert models[0] in (EARLIER, models[1])
    if process.returncode == 0:
        assert models[0] == models[1]
    assert not [p for p in work.out.iterdir() if p.name.startswith(".")]


def test_a_fixed_model_with_too_little_data_in_a_batch(work):
    model = two_layers()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, work.model)
    np.savez(work.data, x=samples(2))
    result = work.compile()
    refused(work, result, 2, "data.npz")


@pytest.mark.slow
def test_models_that_are_deep(work):
    """Long chains must not exhaust a recursion."""
    nodes = [helper.make_node("Relu", ["x"], ["t0"], name="r")]
    nodes += [helper.make_node("Abs", [f"t{i}"], [f"t{i + 1}"], name=f"a{i}") for i in range(3000)]
    nodes.append(helper.make_node("MatMul", ["t3000", "W"], ["h"], name="linear"))
    nodes.append(helper.make_node("Relu", ["h"], ["y"], name="end"))
    values = {"W": np.ones((CHANNELS, 64), np.float32)}
    sizes = ("batch", TOKENS)
    onnx.save(model_of(nodes, values, x=(*sizes, CHANNELS), y=(*sizes, 64)), work.model)
    result = work.compile()
    assert (result.code, result.err) == (0, "")
