"""ONNX Runtime sessions on the CPU for models whose weights lie on disk."""

from __future__ import annotations

import enum
from pathlib import Path

import onnx
import onnxruntime as ort

from mmcompile.errors import UnsupportedModelError


class Purpose(enum.Enum):
    """What a session is tuned for."""

    FEW_RUNS = "few runs"
    """Little memory and a quick start: weights stay in the mapped file instead of being packed for
    the kernels, and buffers come from the arena as they are needed, not from a plan made ahead
    (making it takes time quadratic in the number of nodes)."""
    DEPLOYMENT = "deployment"
    """The runtime's defaults, as a user would run the model."""


def open_session(
    model: onnx.ModelProto | Path,
    folder: Path,
    purpose: Purpose = Purpose.FEW_RUNS,
    *,
    fold_constants: bool = True,
) -> ort.InferenceSession:
    """A session on a model, or on a skeleton whose external data lies in a folder.

    Args:
        model: the model's file, or a skeleton.
        folder: where a skeleton's external data lies.
        purpose: what the session is tuned for.
        fold_constants: whether values that depend on weights alone are computed once and kept.

    Raises:
        UnsupportedModelError: ONNX Runtime does not accept the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if purpose is Purpose.FEW_RUNS:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_reuse = options.enable_mem_pattern = False
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if isinstance(model, onnx.ModelProto):
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder.resolve())
        )
    payload = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    left_out = [] if fold_constants else ["ConstantFolding"]
    try:
        return ort.InferenceSession(
            payload, options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
    except Exception as error:  # the runtime raises unrelated classes of its own
        raise UnsupportedModelError(
            "model-not-runnable",
            model if isinstance(model, Path) else folder,
            f"ONNX Runtime cannot load the model: {first_line(error)}",
            "check that the original model runs in ONNX Runtime on the CPU",
        ) from error


def first_line(error: Exception) -> str:
    """The first line of a foreign error's message, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else repr(error)
