"""Engines: deserializing, asking, running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmcompile.backends.engines.api.library import TensorRT
from mmcompile.backends.engines.api.tensors import dimensions, dtype_name
from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.backends.engines.messages import last_error
from mmcompile.errors import EnvironmentProblem


def deserialize(tensorrt: TensorRT, plan: memoryview, *, host_code: bool) -> tuple[Any, Any]:
    """An engine from its bytes.

    Args:
        tensorrt: a TensorRT, lean and dispatch ones included.
        plan: the engine.
        host_code: allow code inside the engine: an embedded plugin or lean runtime.

    Returns:
        The runtime and the engine; the runtime must live as long as the engine.

    Raises:
        EnvironmentProblem: TensorRT does not take it.
    """
    try:
        runtime = tensorrt.module.Runtime(tensorrt.logger)
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        cause = None
    except (RuntimeError, TypeError, MemoryError) as error:
        engine, cause = None, str(error)
    if engine is None:
        reason = last_error(tensorrt.messages) or cause or "TensorRT gives no reason"
        remedy = "build it again on this machine with `mmcompile build`"
        raise EnvironmentProblem("engine-rejected", tensorrt.name, reason, remedy)
    return runtime, engine


def engine_interface(tensorrt: TensorRT, engine: Any) -> Interface:
    """Inputs and outputs of an engine, each in the engine's order."""
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype, shape = engine.get_tensor_dtype(name), engine.get_tensor_shape(name)
        spec = TensorSpec(name, dtype_name(dtype), dimensions(shape))
        is_input = engine.get_tensor_mode(name) == tensorrt.module.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(spec)
    return Interface(tuple(inputs), tuple(outputs))


def engine_profiles(engine: Any, inputs: Sequence[TensorSpec]) -> tuple[Mapping[str, Any], ...]:
    """Per profile, the smallest and the largest shape of every input."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        spans = {}
        for spec in inputs:
            least, _, most = engine.get_tensor_profile_shape(spec.name, index)
            spans[spec.name] = (tuple(least), tuple(most))
        profiles.append(spans)
    return tuple(profiles)


def stream_weights(engine: Any, size: int) -> None:
    """Keeps so many bytes of weights on the GPU; before a context is made."""
    engine.weight_streaming_budget_v2 = size


class Context:
    """An execution context: one call at a time.

    Raises:
        EnvironmentProblem: the GPU has too little memory for it.
    """

    def __init__(self, tensorrt: TensorRT, engine: Any) -> None:
        self._tensorrt = tensorrt
        self._context = engine.create_execution_context()
        if self._context is None:
            reason = last_error(tensorrt.messages) or "TensorRT gives no execution context"
            remedy = "free GPU memory, or build with smaller --shapes or --workspace"
            raise EnvironmentProblem("gpu-out-of-memory", "execution context", reason, remedy)

    def select_profile(self, index: int, stream: int) -> bool:
        """Makes a profile the current one."""
        return bool(self._context.set_optimization_profile_async(index, stream))

    def set_input(self, name: str, shape: tuple[int, ...], address: int) -> bool:
        """Gives an input's shape and device memory."""
        context = self._context
        return bool(
            context.set_input_shape(name, shape) and context.set_tensor_address(name, address)
        )

    def set_output(self, name: str, address: int) -> bool:
        """Gives an output's device memory."""
        return bool(self._context.set_tensor_address(name, address))

    def unresolved(self) -> list[str]:
        """Tensors whose shapes the inputs do not decide; empty where all is known."""
        return list(self._context.infer_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the coming call; -1 where only running will tell."""
        return tuple(self._context.get_tensor_shape(name))

    def enqueue(self, stream: int) -> bool:
        """Starts the call."""
        return bool(self._context.execute_async_v3(stream))

    def profile(self, stream: int, synchronize: Callable[[], None]) -> dict[str, float]:
        """Runs once under TensorRT's profiler: seconds by layer, in the engine's order."""
        seconds: dict[str, float] = {}
        self._context.profiler = self._profiler(seconds)
        started = self.enqueue(stream)
        synchronize()
        if not started:
            raise RuntimeError("TensorRT did not start the profiled run")
        return seconds

    def _profiler(self, seconds: dict[str, float]) -> Any:
        module = self._tensorrt.module

        class Profiler(module.IProfiler):  # type: ignore[misc, name-defined]
            """Adds up what TensorRT reports, in milliseconds, layer by layer."""

            def __init__(self) -> None:
                module.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                seconds[layer_name] = seconds.get(layer_name, 0.0) + ms / 1e3

        return Profiler()


def inspection(tensorrt: TensorRT, engine: Any) -> str:
    """What the engine inspector says of all layers, as JSON; empty where there is no inspector."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return ""
    text = inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON)
    return str(text)
