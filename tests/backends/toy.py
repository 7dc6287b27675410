"""A back end from outside: its engine is the compiled model with its functions inlined.

It runs in ONNX Runtime. Nothing of mmcompile knows it.
"""

from __future__ import annotations

import onnx
import onnx.inliner
import onnxruntime as ort

from mmcompile.backends.engines.interface import model_interface
from mmcompile.backends.protocol import Built, Loaded, Step
from mmcompile.finding import Finding


class Toy:
    """See `mmcompile.backends.protocol.Backend`."""

    name = "toy"
    title = "Toy"
    file = "engine.toy"
    automatic = False
    needs_plugin = False
    triton = False
    ahead_of_time = False
    problem = None

    def missing(self, _target):
        return self.problem

    def version(self):
        return "1.0"

    def lower(self, model):
        return onnx.inliner.inline_local_functions(model)

    def build(self, job):
        assert not job.model.functions
        file = job.folder / self.file
        file.write_bytes(job.model.SerializeToString())
        return Built(file, self.version(), None, model_interface(job.model))

    def check(self, _job, built):
        return Loaded(built.interface)

    def open(self, file, meta, _device, _weight_bytes):
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = [spec.name for spec in meta.interface.outputs]
        return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def steps(self, bundle):
        return (Step("toy", f"toys for {bundle.target}", ("echo playing",)),)

    def examine(self):
        return (Finding("toy", True, "a box of them", "", ""),)


BACKEND = Toy()
