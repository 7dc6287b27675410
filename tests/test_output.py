import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.output import StagedOutput, disk_errors, signals_deferred

FILES = ("model.onnx", "model.onnx.data", "plan.json")


def stage(staged, text):
    for name in FILES:
        (staged.folder / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def produce(out, text):
    with StagedOutput(out) as staged:
        stage(staged, text)
        return staged.commit()


def test_committed_files_arrive_and_nothing_else_stays(tmp_path):
    out = tmp_path / "a" / "out"
    paths = produce(out, "first")
    assert set(paths) == {out / name for name in FILES}
    assert contents(out) == dict.fromkeys(FILES, "first")
    (out / "report.json").write_text("kept")
    produce(out, "second")
    assert contents(out) == {**dict.fromkeys(FILES, "second"), "report.json": "kept"}
    mode = (out / "model.onnx").stat().st_mode & 0o777
    (tmp_path / "usual").touch()
    assert mode == (tmp_path / "usual").stat().st_mode & 0o777


def test_committing_twice_adds_files(tmp_path):
    with StagedOutput(tmp_path / "out") as staged:
        stage(staged, "first")
        staged.commit()
        (staged.folder / "engine").write_text("later")
        assert staged.commit() == (tmp_path / "out" / "engine",)
    assert contents(tmp_path / "out") == {**dict.fromkeys(FILES, "first"), "engine": "later"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_run_leaves_what_was_there(tmp_path, error):
    def fail(out):
        with StagedOutput(out) as staged:
            stage(staged, "second")
            raise error

    produce(tmp_path / "out", "first")
    with pytest.raises(error):
        fail(tmp_path / "out")
    assert contents(tmp_path / "out") == dict.fromkeys(FILES, "first")
    with pytest.raises(error):
        fail(tmp_path / "a" / "b" / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("step", range(6))
def test_a_move_that_fails_puts_everything_back(tmp_path, monkeypatch, step):
    out = tmp_path / "out"
    produce(out, "first")
    replace = Path.replace
    calls = []

    def failing(self, target):
        calls.append(self)
        if len(calls) == step + 1:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(EnvironmentProblem, match="Input/output error"):
        produce(out, "second")
    assert contents(out) == dict.fromkeys(FILES, "first")


def test_the_old_model_goes_first_and_the_new_one_comes_last(tmp_path, monkeypatch):
    out = tmp_path / "out"
    produce(out, "first")
    replace = Path.replace
    states = []

    def watched(self, target):
        replace(self, target)
        present = {name: path.read_text() for name in FILES if (path := out / name).exists()}
        states.append(set(present.values()) if "model.onnx" in present else set())

    monkeypatch.setattr(Path, "replace", watched)
    produce(out, "second")
    assert len(states) == 6
    assert states == [set()] * 5 + [{"second"}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_all_files_are_moved(tmp_path, monkeypatch, number):
    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    before = signal.signal(number, stop)
    replace = Path.replace

    def interrupted(self, target):
        signal.raise_signal(number)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    try:
        with pytest.raises(Stopped):
            produce(tmp_path / "out", "first")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert contents(tmp_path / "out") == dict.fromkeys(FILES, "first")


def test_a_deferred_signal_does_not_hide_an_error():
    def fail():
        with signals_deferred():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("first")

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(ValueError, match="first"):
            fail()
    finally:
        signal.signal(signal.SIGTERM, before)


KILLED_SCRIPT = """
import os, signal, sys
from pathlib import Path
from mmcompile.output import StagedOutput
with StagedOutput(Path(sys.argv[1])) as staged:
    (staged.folder / "model.onnx").write_text("half")
    print(staged.folder, flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def start(out, how):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", KILLED_SCRIPT, str(out), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_next_run_removes_what_a_killed_one_left(tmp_path):
    with start(tmp_path, "kill") as killed:
        left = Path(killed.stdout.readline().strip())
    assert killed.returncode == -signal.SIGKILL
    assert left.parent == tmp_path and (left / "model.onnx").exists()
    produce(tmp_path, "first")
    assert contents(tmp_path) == dict.fromkeys(FILES, "first")


def test_two_runs_do_not_share_a_folder(tmp_path):
    with start(tmp_path, "wait") as other:
        staged = Path(other.stdout.readline().strip())
        with pytest.raises(EnvironmentProblem, match="another run"):
            produce(tmp_path, "first")
        assert (staged / "model.onnx").exists()
        other.stdin.close()
    produce(tmp_path, "first")


def test_folders_that_cannot_be_locked_are_used_without(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("mmcompile.output.fcntl.flock", unsupported)
    stale = tmp_path / ".mmcompile-stage-other"
    stale.mkdir()
    produce(tmp_path, "first")
    assert stale.exists()  # it may belong to a live run


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_source_is_never_replaced(tmp_path, name, link):
    source = tmp_path / "in" / "source"
    source.parent.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    if link:
        source.write_text("source")
        link(source, out / name)
    else:
        source = out / name
        source.write_text("source")
    with pytest.raises(UsageError, match="another folder"), StagedOutput(out, [source]):
        pass
    assert contents(out) == {name: "source"}


def test_the_source_is_not_replaced_by_another_name(tmp_path):
    source = tmp_path / "plan.json"
    source.write_text("source")
    with StagedOutput(tmp_path, [source]) as staged:
        stage(staged, "first")
        with pytest.raises(UsageError):
            staged.commit()
    assert contents(tmp_path) == {"plan.json": "source"}


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("file", "output-no-folder"),
        ("file/below", "output-no-folder"),
        ("dangling", "output-no-folder"),
        ("x" * 300, "output-failed"),
        ("/proc/mmcompile-out", "output-failed"),
        ("/sys/mmcompile-out", "output-unwritable"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, place, code):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    if place.startswith("/sys") and not Path("/sys/kernel").exists():
        pytest.skip("there is no /sys here")
    with pytest.raises(EnvironmentProblem) as caught, StagedOutput(tmp_path / place):
        pass
    assert caught.value.code == code, str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(EnvironmentProblem, match="in the way"), StagedOutput(tmp_path):
        pass


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EACCES, "output-unwritable"),
        (errno.EROFS, "output-unwritable"),
        (errno.EIO, "output-failed"),
    ],
)
def test_errors_of_the_disk_name_cause_and_remedy(number, code):
    with pytest.raises(EnvironmentProblem) as caught, disk_errors("out"):
        raise OSError(number, os.strerror(number), "file")
    assert caught.value.code == code
    assert caught.value.where == "file"
    assert os.strerror(number) in str(caught.value)


def test_the_folder_is_only_there_inside():
    with pytest.raises(RuntimeError):
        _ = StagedOutput(Path("out")).folder
