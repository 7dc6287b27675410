"""One run of another quantizer, by the Python that it is installed in: not part of mmcompile.

    PEER_PYTHON benchmarks/peer.py quark-mxfp8 MODEL.onnx CALIBRATION.npz OUTPUT.onnx

benchmarks/compile_time.py calls it as a process of its own and measures it from outside.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = {"quark-mxfp8": "quark", "quark-mxfp4": "quark", "modelopt-fp8": "modelopt"}
"""The peers, and what has to be importable."""
INSTALL = {
    "quark": "pip install amd-quark==0.13 onnx onnxruntime torch==2.13.0",
    "modelopt": "pip install 'nvidia-modelopt[onnx]==0.47'",
}


class Samples:
    """The archive's samples one by one, as ONNX Runtime's calibration data readers give them."""

    def __init__(self, path: Path) -> None:
        self._arrays = dict(np.load(path))
        self._next = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next feed of batch 1, None at the end."""
        row = slice(self._next, self._next + 1)
        feed = {name: array[row] for name, array in self._arrays.items()}
        if not all(len(array) for array in feed.values()):
            return None
        self._next += 1
        return feed


def quark(peer: str, model: Path, data: Path, output: Path) -> None:
    """AMD Quark: weights and activations of all nodes that it knows, with its defaults."""
    from quark.onnx import (  # type: ignore[import-not-found]
        ModelQuantizer,
        MXFP4E2M1Spec,
        MXFP8E4M3Spec,
        QConfig,
        QLayerConfig,
    )

    spec = MXFP8E4M3Spec if peer.endswith("mxfp8") else MXFP4E2M1Spec
    config = QConfig(
        global_config=QLayerConfig(activation=spec(), weight=spec()),
        use_external_data_format=True,
    )
    ModelQuantizer(config).quantize_model(str(model), str(output), Samples(data))


def modelopt(model: Path, data: Path, output: Path) -> None:
    """NVIDIA modelopt.onnx in fp8, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        str(model),
        quantize_mode="fp8",
        calibration_data=dict(np.load(data)),
        calibration_eps=["cpu"],
        use_external_data_format=True,
        high_precision_dtype="fp32",
        output_path=str(output),
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run another quantizer.")
    parser.add_argument("peer", choices=[*PACKAGES])
    parser.add_argument("paths", type=Path, nargs="*", help="MODEL DATA OUTPUT; none: is it here?")
    arguments = parser.parse_args()
    if not arguments.paths:
        return 0 if importlib.util.find_spec(PACKAGES[arguments.peer]) else 1
    model, data, output = (path.resolve() for path in arguments.paths)
    os.chdir(output.parent)  # some leave files where they are started
    if arguments.peer.startswith("quark"):
        quark(arguments.peer, model, data, output)
    else:
        modelopt(model, data, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
