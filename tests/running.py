"""Models run in ONNX Runtime with its own optimizations, as users run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def session_of(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    """A session on the CPU, of a model in memory or on disk."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    payload = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None
) -> list[np.ndarray]:
    """The model's outputs."""
    return session_of(model).run(outputs, dict(feeds))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity of two tensors."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
