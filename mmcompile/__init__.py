"""mmcompile: mixed-precision MXFP4/6/8 linear layers for ONNX models and TensorRT."""

__version__ = "0.1.0"

__all__ = ["CompileOptions", "CompileResult", "compile_model"]


def __getattr__(name: str) -> object:
    """Loads the Python API on first use, so that importing the package costs nothing."""
    if name == "compile_model":
        from mmcompile.pipeline.compile import compile_model

        return compile_model
    if name in ("CompileOptions", "CompileResult"):
        from mmcompile.pipeline import options

        return getattr(options, name)
    raise AttributeError(f"module 'mmcompile' has no attribute '{name}'")
