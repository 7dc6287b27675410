"""`LoadedEngine`: an engine for timing, with its inputs and outputs in device memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmcompile.backends.engines import api as trt
from mmcompile.backends.engines.interface import TensorSpec

if TYPE_CHECKING:
    from mmcompile.cuda.machine import Machine


class LoadedEngine:
    """A `protocol.TimedEngine` of TensorRT's.

    Args:
        tensorrt: what runs it; the plugin, where it needs one, is loaded.
        plan: the engine.
        machine: where it runs.

    Raises:
        EnvironmentProblem: it is refused, or the GPU has too little memory.
    """

    def __init__(self, tensorrt: trt.TensorRT, plan: bytes, machine: Machine) -> None:
        runtime, engine = trt.deserialize(tensorrt, memoryview(plan), host_code=False)
        interface = trt.engine_interface(tensorrt, engine)
        self.inputs: Sequence[TensorSpec] = interface.inputs
        self.outputs: Sequence[TensorSpec] = interface.outputs
        self._tensorrt, self._machine = tensorrt, machine
        self._runtime, self._engine = runtime, engine  # which the context needs alive
        self._context = trt.Context(tensorrt, engine)

    def set_input(self, name: str, shape: tuple[int, ...], address: int) -> bool:
        """Gives an input's shape and device memory."""
        return self._context.set_input(name, shape, address)

    def set_output(self, name: str, address: int) -> bool:
        """Gives an output's device memory."""
        return self._context.set_output(name, address)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the coming call."""
        return self._context.shape(name)

    def enqueue(self, stream: int) -> bool:
        """Starts a call."""
        return self._context.enqueue(stream)

    def inspection(self) -> str:
        """The inspector's JSON."""
        return trt.inspection(self._tensorrt, self._engine)

    def profile(self, stream: int) -> Mapping[str, float]:
        """Seconds by layer of one run."""
        return self._context.profile(stream, self._machine.synchronize)
