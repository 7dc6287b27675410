"""The seam of back ends: the registry, the choice, and a back end that comes from outside."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mmcompile.backends.none import NoBackend
from mmcompile.backends.protocol import Backend, Timeable
from mmcompile.backends.registry import (
    AUTO,
    BACKENDS,
    NOTHING,
    Wanted,
    backend_names,
    choose,
    find_backend,
)
from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.runtime import Engine
from tests.backends.toy import Toy
from tests.running import run
from tests.workplace import ROOT, call, command, samples

TOY = Path(__file__).parent / "toy.py"


@pytest.fixture
def toy():
    backend = Toy()
    BACKENDS.add("toy", backend)
    yield backend
    BACKENDS.remove("toy")


def test_what_there_is():
    assert backend_names() == ("auto", "tensorrt", "tensorrt-rtx", "none")
    for name, backend in BACKENDS.items():
        assert backend.name == name
        assert find_backend(name) is backend
    assert [name for name, each in BACKENDS.items() if isinstance(each, Timeable)] == [
        "tensorrt",
        "tensorrt-rtx",
    ]
    members = {name for name in vars(Backend) if not name.startswith("_")}
    for backend in (*BACKENDS.values(), Toy()):
        assert all(hasattr(backend, member) for member in members)


def test_a_name_that_nobody_has(work):
    result = call("build", work.out, "--backend", "tensorflow")
    assert result.code == 2
    assert "'tensorflow' is none of auto, tensorrt, tensorrt-rtx, none" in result.line()
    with pytest.raises(UsageError, match="use one of auto, tensorrt"):
        find_backend("tensorflow")


def test_names_come_from_the_registry(work, toy):
    assert "auto, tensorrt, tensorrt-rtx, none, toy" in " ".join(call("build", "-h").out.split())
    work_config = work.folder / "c.toml"
    work_config.write_text('backend = "toy"\n')
    assert work.compile("--config", work_config).code == 0
    assert (work.out / "engine.toy").exists()


# The choice


def test_auto_takes_the_first_that_can(toy):
    problem = EnvironmentProblem("no-toys", "toys", "there are no toys", "buy some")
    assert choose(Wanted(AUTO, "sm_120")).backend is None  # a toy is not chosen unasked
    toy.automatic = True
    choice = choose(Wanted(AUTO, "sm_120"))
    assert choice.backend is toy
    assert "TensorRT is not installed here" in choice.reasons
    toy.problem = problem
    choice = choose(Wanted(AUTO, "sm_120"))
    assert choice.backend is None
    with pytest.raises(EnvironmentProblem) as caught:
        choice.demand()
    # What is more than a missing package leads, with its remedy; the others are told, too.
    assert (caught.value.code, caught.value.remedy) == ("no-toys", "buy some")
    assert "TensorRT-RTX is not installed here; there are no toys" in caught.value.reason


def test_the_plugin_library_is_asked_of_those_that_need_it(toy):
    toy.automatic = True
    problem = EnvironmentProblem("plugin-not-found", "plugin", "there is none", "build it")
    assert choose(Wanted(AUTO, "sm_120", library=problem)).backend is toy
    toy.needs_plugin = True
    choice = choose(Wanted(AUTO, "sm_120", library=problem))
    assert choice.backend is None and choice.reasons.endswith("there is none")


def test_triton_runs_no_engines_of_others(work, toy):
    assert choose(Wanted(AUTO, "sm_120", triton=True)).backend is None
    with pytest.raises(UsageError, match="does not run engines by Toy"):
        choose(Wanted("toy", "sm_120", triton=True))
    before = work.contents()
    result = work.compile("--backend", "toy", "--triton", "mini")
    assert result.code == 2 and "[triton-backend]" in result.line()
    assert work.contents() == before
    assert work.compile("--backend", "none", "--triton", "mini").code == 0


def test_a_named_back_end_is_demanded_before_anything_is_done(work, toy):
    toy.problem = EnvironmentProblem("no-toys", "toys", "there are no toys", "buy some")
    result = work.compile("--backend", "toy")
    assert result.code == 4
    assert result.line().endswith("toys: there are no toys; buy some [no-toys]")
    assert not work.out.exists()


@pytest.mark.parametrize(
    ("options", "contradicted"),
    [
        (("--no-engine", "--backend", "toy"), "--no-engine"),
        (("--engine", "--backend", "none"), "--engine"),
    ],
)
def test_contradictions(work, toy, options, contradicted):
    result = work.compile(*options)
    assert result.code == 2
    assert f"{contradicted}: it contradicts" in result.line()


@pytest.mark.parametrize("option", [("--no-engine",), ("--backend", "none")])
def test_none(work, option):
    result = work.compile(*option)
    assert result.code == 0
    assert "no engine was asked for (--backend none)" in " ".join(result.out.split())
    result = call("build", work.out, "--backend", "none")
    assert result.code == 4 and "[no-engine]" in result.line()


def test_none_does_nothing():
    backend = NoBackend()
    assert backend.name == NOTHING and backend.check(None, None) is None
    for refused in (backend.version, lambda: backend.build(None)):
        with pytest.raises(EnvironmentProblem, match="no-engine"):
            refused()
    with pytest.raises(EnvironmentProblem, match="no-engine"):
        backend.open(Path("x"), None, 0, None)


# A back end from outside


def test_a_toy_builds_checks_and_runs(work, toy):
    result = work.compile("--backend", "toy")
    assert result.code == 0, result.err
    assert "Engine for sm_120, Toy 1.0." in result.out
    meta = json.loads((work.out / "engine.meta.json").read_text())
    assert (meta["backend"], meta["product"], meta["version"]) == ("toy", "Toy", "1.0")
    assert meta["loaded"] and meta["device"] is None
    assert meta["engine"]["name"] == "engine.toy"
    report = json.loads((work.out / "report.json").read_text())
    assert report["engine"]["builder"] == "Toy 1.0"
    x = samples(3)
    (expected,) = run(work.out / "model.onnx", {"x": x})
    np.testing.assert_array_equal(Engine(work.out / "engine.toy")({"x": x})["y"], expected)


def test_the_commands_know_a_toy(work, toy):
    assert work.compile("--no-engine").code == 0
    result = call("build", work.out, "--backend", "toy")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "engine for sm_120, Toy 1.0"
    compiled = work.out / "model.onnx"
    arguments = ("verify", work.model, compiled, "--data", work.data, "--json")
    shown = call(*arguments, "--against", work.out / "engine.toy")
    assert shown.code == 0, shown.err
    assert shown.json()[0]["outputs"][0]["max_abs_error"] == 0
    assert shown.json()[0]["measured_on"] == "Toy 1.0 on sm_120"
    assert "a box of them" in call("doctor", "--json").out
    script = (work.out / "reproduce.sh").read_text()
    assert "toys for sm_120" in script
    ran = subprocess.run(
        ["sh", work.out / "reproduce.sh", "toy"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "playing\n"


def test_engines_of_others_do_not_stay(work, toy, install):
    install()
    assert work.compile().code == 0
    assert (work.out / "engine.plan").exists()
    assert call("build", work.out, "--backend", "toy").code == 0
    assert not (work.out / "engine.plan").exists()  # nothing describes it any more
    assert (work.out / "engine.toy").exists()
    assert work.compile("--no-engine").code == 0
    assert not (work.out / "engine.toy").exists()


def test_an_engine_whose_back_end_is_gone(work):
    BACKENDS.add("toy", Toy())
    try:
        assert work.compile("--backend", "toy").code == 0
    finally:
        BACKENDS.remove("toy")
    with pytest.raises(UsageError, match=r"engine\.toy: there is no back end 'toy'"):
        Engine(work.out / "engine.toy")


@pytest.mark.slow
def test_an_entry_point_registers_one(work):
    """One file in another package; nothing of mmcompile changes."""
    packages = work.folder / "packages"
    metadata = packages / "toys-0.1.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(TOY, packages / "toys.py")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 0.1\n")
    entries = metadata / "entry_points.txt"
    entries.write_text("[mmcompile.backends]\ntoy = toys:BACKEND\n")
    path = os.pathsep.join([str(packages), str(ROOT)])
    arguments = command(*work.arguments("--backend", "toy"), PYTHONPATH=path)
    done = subprocess.run(**arguments, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Engine for sm_120, Toy 1.0." in done.stdout
    entries.write_text("[mmcompile.backends]\ntoy = toys:NOTHING\n")
    done = subprocess.run(**arguments, capture_output=True, check=False)
    assert done.returncode == 4
    assert "entry point toy = toys:NOTHING: it cannot be loaded" in done.stderr


# Names


def compared(source: str, name: str) -> bool:
    """Whether a source text compares something with a name."""
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        constants = (each for part in parts for each in ast.walk(part))
        if any(isinstance(each, ast.Constant) and each.value == name for each in constants):
            return True
    return False


def test_nothing_is_compared_with_none():
    """A word that may stand elsewhere; tests/test_names.py looks after the other names."""
    files = (ROOT / "mmcompile").rglob("*.py")
    assert [path for path in files if compared(path.read_text(), NOTHING)] == []


def test_what_is_compared_is_seen():
    for source in ("x == 'none'", "x in ('none',)", "match x:\n case 'none': pass"):
        assert compared(source, "none")
    assert not compared("print('none' if x == 'some' else 'none')", "none")
