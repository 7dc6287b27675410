"""Runs engines that mmcompile built, the way serving code would.

    from mmcompile.runtime import Engine

    engine = Engine("out/engine.plan")
    outputs = engine({"input_ids": ids, "attention_mask": mask})

Needs what built the engine (for TensorRT's version-compatible ones a lean runtime will do), numpy
and the driver; neither ONNX nor the compiler is imported.
"""

from mmcompile.runtime.engine import Engine

__all__ = ["Engine"]
