"""mmcompile: mixed-precision MXFP4/6/8 linear layers for ONNX models and TensorRT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["CompileOptions", "CompileResult", "compile_model"]

if TYPE_CHECKING:
    from mmcompile.pipeline.compile import compile_model
    from mmcompile.pipeline.options import CompileOptions, CompileResult
else:
    _HOMES = {
        "compile_model": "mmcompile.pipeline.compile",
        "CompileOptions": "mmcompile.pipeline.options",
        "CompileResult": "mmcompile.pipeline.options",
    }

    def __getattr__(name: str) -> object:
        """Loads the Python API on first use, so that importing the package costs nothing."""
        if name not in _HOMES:
            raise AttributeError(f"module 'mmcompile' has no attribute '{name}'")
        return getattr(importlib.import_module(_HOMES[name]), name)
