"""Fixtures that several test files share."""

import fcntl
import os
import shutil
import sys

import pytest

# Products here are small: BLAS's threads would spend more on waiting for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What builds engines is not installed, as far as tests in this process see: else every compilation
# would end in one. Those that want a builder bring a double, or take the real one back.
for _module in ("tensorrt", "tensorrt_rtx"):
    sys.modules[_module] = None


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder to work in, with a cache of its own, and tables of no terminal's width."""
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def work(home):
    """A small model and data in a folder; see `Workplace`."""
    # Tests of the GPU alone run where there may be no onnx.
    from tests.workplace import Workplace

    return Workplace(home)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A folder in which the model of `work` was compiled."""
    from tests.workplace import Workplace

    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCOMPILE_CACHE_DIR", str(folder / "cache"))
        assert Workplace(folder).compile().code == 0
    return folder


@pytest.fixture
def compiled(template, home):
    """`work` after a compilation: a copy of one, whose report names the folder it was made in."""
    from tests.workplace import Workplace

    shutil.copytree(template, home, dirs_exist_ok=True)
    return Workplace(home)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`exported(name, dtype)` is the path of a model's ONNX file, made once for all workers.

    The names are those of `SMALL_MODELS` and `REAL_MODELS`.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    root.mkdir(exist_ok=True)

    def export(name, dtype="fp32"):
        for package in ("torch", "transformers", "onnxscript"):
            pytest.importorskip(package, reason=f"exports need {package}")
        folder = root / f"{name}-{dtype}"
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            model = folder / "model.onnx"
            if not model.exists():
                from tests.models import export_small_model
                from tests.real_models import REAL_MODELS, export_real_model

                if name in REAL_MODELS:
                    export_real_model(name, folder)
                else:
                    export_small_model(name, folder, dtype=dtype)
            return model

    return export
