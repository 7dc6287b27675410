"""Models on disk: `load_model` reads one without its weights, `ModelWriter` writes one."""

from mmcompile.graph.source import SourceModel, load_model
from mmcompile.graph.store import WeightStore
from mmcompile.graph.tensors import INLINE_LIMIT, TensorRef
from mmcompile.graph.writer import ModelWriter

__all__ = [
    "INLINE_LIMIT",
    "ModelWriter",
    "SourceModel",
    "TensorRef",
    "WeightStore",
    "load_model",
]
