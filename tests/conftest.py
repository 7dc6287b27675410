"""Fixtures that several test files share."""

import fcntl
import os
import sys

import pytest

# What builds engines is not installed, as far as tests in this process see: else every compilation
# would end in one. Those that want a builder bring a double, or take the real one back.
for _module in ("tensorrt", "tensorrt_rtx"):
    sys.modules[_module] = None


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
