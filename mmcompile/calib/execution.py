"""`Execution`: how a model is run over samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import onnxruntime as ort

from mmcompile.data.sample import InputSpec
from mmcompile.model.session import open_session
from mmcompile.model.source import SourceModel
from mmcompile.progress import Progress, Silent


@dataclass(frozen=True)
class Execution:
    """How a model is run over samples.

    Attributes:
        source: where the weights lie.
        skeleton: the graph to run; `source.proto`, or a version of it that this machine can run.
        specs: the model's inputs.
        seed: of random choices, together with a sample's content.
        progress: told after every sample.
    """

    source: SourceModel
    skeleton: onnx.ModelProto
    specs: tuple[InputSpec, ...]
    seed: int = 0
    progress: Progress = field(default_factory=Silent)

    def session(self, graph: onnx.ModelProto | None = None) -> ort.InferenceSession:
        """A session on the skeleton, or on a graph made of it.

        Raises:
            UnsupportedModelError: ONNX Runtime does not accept it.
        """
        return open_session(self.skeleton if graph is None else graph, self.source.folder)
