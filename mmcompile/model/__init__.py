"""Models on disk: `load_model` reads one without its weights, `ModelWriter` writes one."""

from mmcompile.model.source import SourceModel, load_model
from mmcompile.model.store import WeightStore
from mmcompile.model.tensors import INLINE_LIMIT, TensorRef
from mmcompile.model.writer import ModelWriter

__all__ = [
    "INLINE_LIMIT",
    "ModelWriter",
    "SourceModel",
    "TensorRef",
    "WeightStore",
    "load_model",
]
