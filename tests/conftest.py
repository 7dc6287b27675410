"""Fixtures that several test files share."""

import fcntl
import os

import pytest


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`exported(name, dtype)` is the path of a small model's ONNX file, made once for all."""
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
                # Not for tests of the GPU alone, whose machine may have no onnx.
                from tests.models import export_small_model

                export_small_model(name, folder, dtype=dtype)
            return model

    return export
