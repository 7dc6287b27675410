"""A builder in a process of its own: it dies, it hangs, it is interrupted; and nobody is hurt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from mmcompile.backends.engines.building import BuildRequest
from mmcompile.backends.engines.isolation import build_isolated
from mmcompile.backends.engines.meta import BuildChoices
from mmcompile.backends.tensorrt_rtx import PRODUCT
from mmcompile.errors import EnvironmentProblem

DYING = msgspec.structs.replace(PRODUCT, module="tests.backends.dying_builder", title="Mortal")
SECONDS = 60.0
"""How long something that takes a moment may take on a busy machine."""


def request(folder: Path) -> BuildRequest:
    return BuildRequest(
        product=DYING,
        model=b"",
        nodes=(),
        path=str(folder / "model.onnx"),
        library=None,
        creator=("", "", ""),
        target="sm_120",
        device=None,
        choices=BuildChoices(),
        interface=None,
        output=str(folder / "engine.plan"),
    )


def fails(folder, monkeypatch, fate):
    monkeypatch.setenv("MMCOMPILE_TEST_FATE", fate)
    with pytest.raises(EnvironmentProblem) as caught:
        build_isolated(request(folder))
    assert str(caught.value).count("\n") == 0
    assert not list(folder.iterdir())
    return caught.value


@pytest.mark.parametrize(
    ("fate", "code", "words"),
    [
        (
            "abort",
            "builder-died",
            "ended with signal SIGABRT while building: the last error; terminate called",
        ),
        ("fault", "builder-died", "ended with signal SIGSEGV while building"),
        ("killed", "build-out-of-memory", "was killed while building, mostly for lack of memory"),
        ("exit", "builder-died", "ended with code 3 while building"),
        ("raise", "tensorrt-no-builder", "no builder after all"),
    ],
)
def test_what_becomes_of_a_builder(tmp_path, monkeypatch, fate, code, words):
    error = fails(tmp_path, monkeypatch, fate)
    assert error.code == code
    assert words in error.reason
    assert error.where.startswith("Mortal")


def test_errors_cross_over_whole(tmp_path):
    lacking = msgspec.structs.replace(request(tmp_path), product=PRODUCT, library="/nowhere.so")
    missing = msgspec.structs.replace(PRODUCT, module="no_such_module", install="get it")
    with pytest.raises(EnvironmentProblem) as caught:
        build_isolated(msgspec.structs.replace(lacking, product=missing))
    error = caught.value
    assert (error.code, error.where) == ("tensorrt-missing", "TensorRT-RTX")
    assert (error.reason, error.remedy) == ("TensorRT-RTX is not installed here", "get it")


# A process that builds, from outside

BUILD = """
import sys
from pathlib import Path
from tests.backends.test_isolation import build_isolated, request
try:
    build_isolated(request(Path(sys.argv[1])))
except KeyboardInterrupt:
    sys.exit(7)
"""


def running(pid: int) -> bool:
    """Whether a process is there and no corpse."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_builder_ends_with_who_asked(tmp_path, number):
    mark = tmp_path / "mark"
    environment = {**os.environ, "MMCOMPILE_TEST_FATE": "sleep", "MMCOMPILE_TEST_MARK": str(mark)}
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    parent = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path)], env=environment | {"PYTHONPATH": path}
    )
    with parent:
        eventually(lambda: mark.exists() and mark.read_text())
        builder = int(mark.read_text())
        assert running(builder)
        parent.send_signal(number)
        assert parent.wait(SECONDS) == (7 if number == signal.SIGINT else -number)
    eventually(lambda: not running(builder))
