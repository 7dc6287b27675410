"""Runs engines that mmcompile built, the way serving code would.

    from mmcompile.runtime import Engine

    engine = Engine("out/engine.plan")
    outputs = engine({"input_ids": ids, "attention_mask": mask})

Needs TensorRT (a lean runtime will do for version-compatible engines), numpy and the driver;
neither ONNX nor the compiler is imported.
"""

from mmcompile.runtime.engine import Engine

__all__ = ["Engine"]
