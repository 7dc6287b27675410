"""`StagedOutput`: an output folder that receives all of a run's files or none of them.

Files are written into a hidden folder inside the output folder, hence on the same file system,
and moved to their names in one step at the end. A run that fails or is interrupted leaves what
was there before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from mmcompile.errors import EnvironmentProblem, UsageError

MODEL_FILE = "model.onnx"
"""Name of the compiled model in the output folder."""
DATA_FILE = "model.onnx.data"
"""Name of the compiled model's weights, beside it."""
_STAGE = ".mmcompile-stage-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


class StagedOutput:
    """Context manager for one run's output; leaving it without `commit` discards the files.

    Args:
        out_dir: the output folder; made if it does not exist.
        protect: files that must not be replaced: those of the model that is read.

    Raises:
        UsageError: on entering, if the output's model would replace a protected file.
        EnvironmentProblem: on entering, if the folder cannot be made or written to, or if
            another run writes to it.
    """

    def __init__(self, out_dir: Path, protect: Iterable[Path] = ()) -> None:
        self._out_dir = out_dir.absolute()
        self._protect = tuple(protect)
        self._exit = contextlib.ExitStack()
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The hidden folder that takes this run's files."""
        if self._folder is None:
            raise RuntimeError("StagedOutput is used outside its with statement")
        return self._folder

    def __enter__(self) -> Self:
        """Makes the folders, and removes what killed runs have left."""
        with contextlib.ExitStack() as undo, disk_errors(self._out_dir):
            self._refuse_protected((MODEL_FILE, DATA_FILE))
            for made in _make_folders(self._out_dir):
                undo.callback(_remove_if_empty, made)
            if _lock(self._out_dir, undo):
                for stale in self._out_dir.glob(_STAGE + "*"):
                    shutil.rmtree(stale, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_STAGE, dir=self._out_dir))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            self._folder = folder
            self._exit = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes the hidden folder, and the output folder if it was made here and is empty."""
        with signals_deferred():
            self._exit.close()
        self._folder = None

    def commit(self) -> tuple[Path, ...]:
        """Moves all staged files into the output folder; returns where they are.

        The model's old file goes first and its new one comes last, so that even a power cut
        cannot leave a model beside the weights of another.

        Raises:
            UsageError: one of the files would replace a protected one.
            EnvironmentProblem: a file cannot be moved; then the earlier files are back in place.
        """
        names = sorted(
            (path.name for path in self.folder.iterdir() if path.is_file()),
            key=lambda name: (name == MODEL_FILE, name),
        )
        self._refuse_protected(names)
        with signals_deferred(), disk_errors(self._out_dir):
            replaced = Path(tempfile.mkdtemp(dir=self.folder))
            with contextlib.ExitStack() as undo:
                for name in reversed(names):
                    if os.path.lexists(self._out_dir / name):
                        _move(self._out_dir / name, replaced / name, undo)
                for name in names:
                    _move(self.folder / name, self._out_dir / name, undo)
                undo.pop_all()
            shutil.rmtree(replaced, ignore_errors=True)
        return tuple(self._out_dir / name for name in names)

    def _refuse_protected(self, names: Iterable[str]) -> None:
        for name in names:
            target = self._out_dir / name
            if target.is_dir():
                reason = "a folder of that name is in the way"
                remedy = "move it, or choose another output folder"
                raise EnvironmentProblem("output-blocked", target, reason, remedy)
            for path in self._protect:
                if target.exists() and target.samefile(path):
                    reason = "the output would replace the model that is read"
                    raise UsageError("output-is-source", target, reason, "choose another folder")


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turns the operating system's errors on writing into errors for the user.

    Raises:
        EnvironmentProblem: instead of any `OSError`.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in _FULL:
            code, remedy = "disk-full", "free some space, or choose a folder on another disk"
        elif error.errno in _DENIED:
            code, remedy = "output-unwritable", "choose a folder that you may write to"
        elif error.errno in _NO_FOLDER:
            code, remedy = "output-no-folder", "give a folder, not a file, as output"
        else:
            code, remedy = "output-failed", "check the disk, or choose another folder"
        place = error.filename2 or error.filename or where
        raise EnvironmentProblem(code, place, f"cannot write: {cause}", remedy) from error


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the block is done.

    Only the main thread can do so; elsewhere, where signals do not arrive, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for late in dict.fromkeys(arrived):
            signal.raise_signal(late)


def _move(source: Path, target: Path, undo: contextlib.ExitStack) -> None:
    source.replace(target)
    undo.callback(target.replace, source)


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder with its parents; returns those that did not exist, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _lock(folder: Path, undo: contextlib.ExitStack) -> bool:
    """Keeps other runs out of a folder until `undo` runs or the process ends.

    Returns:
        Whether the lock is held; False on file systems that cannot lock a folder.

    Raises:
        EnvironmentProblem: another run holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    undo.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        reason = "another run of mmcompile is writing to this folder"
        remedy = "wait for it, or choose another folder"
        raise EnvironmentProblem("output-busy", folder, reason, remedy) from None
    except OSError:
        return False
    return True
