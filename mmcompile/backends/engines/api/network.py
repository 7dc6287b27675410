"""Parsing an ONNX model and building an engine of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmcompile.backends.engines.api.library import TensorRT
from mmcompile.backends.engines.api.tensors import dimensions, dtype_name
from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.backends.engines.messages import ParserMessage, last_error
from mmcompile.backends.engines.product import release
from mmcompile.backends.engines.shapes import Profile
from mmcompile.errors import EnvironmentProblem


@dataclass(frozen=True)
class BuildSettings:
    """What the builder is told besides the network.

    Attributes:
        profiles: optimization profiles; empty where no input is dynamic.
        optimization_level: 0 to 5; None is TensorRT's default.
        workspace_bytes: limit on scratch memory; None is TensorRT's default, all there is.
        embedded_plugin: library to put into the engine.
        version_compatible: an engine for later releases, too; only with an embedded plugin.
        weight_streaming: an engine whose weights need not all be on the GPU.
        architecture: build for this one, e.g. `sm_120`, whatever GPU is here; None builds for the
            GPU that is here.
        timing_cache: what an earlier build measured; empty for none, None to measure nothing.
    """

    profiles: tuple[Profile, ...] = ()
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    embedded_plugin: Path | None = None
    version_compatible: bool = False
    weight_streaming: bool = False
    architecture: str | None = None
    timing_cache: bytes | None = b""


@dataclass
class Network:
    """A parsed network with its builder; TensorRT wants them alive together.

    Attributes:
        tensorrt: the TensorRT.
        errors: what the parser objected to; nothing may be built where there is anything.
    """

    tensorrt: TensorRT
    errors: tuple[ParserMessage, ...] = ()
    _builder: Any = field(default=None, repr=False)
    _network: Any = field(default=None, repr=False)
    _parser: Any = field(default=None, repr=False)

    def interface(self) -> Interface:
        """Inputs and outputs in order; dynamic dimensions are None."""
        network = self._network
        return Interface(
            tuple(self._spec(network.get_input(i)) for i in range(network.num_inputs)),
            tuple(self._spec(network.get_output(i)) for i in range(network.num_outputs)),
        )

    def shape_inputs(self) -> tuple[str, ...]:
        """Inputs whose values, not only whose shapes, decide the shapes of other tensors."""
        inputs = (self._network.get_input(i) for i in range(self._network.num_inputs))
        return tuple(tensor.name for tensor in inputs if tensor.is_shape_tensor)

    def build(self, settings: BuildSettings) -> tuple[memoryview | None, bytes]:
        """Builds.

        Returns:
            The engine, or None where the builder fails (its messages say why), and the timing
            cache with what was measured.

        Raises:
            ValueError, RuntimeError, MemoryError: as TensorRT's bindings raise them.
        """
        config = self._configure(settings)
        cache = settings.timing_cache
        if cache is None:
            plan, kept = self._builder.build_serialized_network(self._network, config), b""
        else:
            if not config.set_timing_cache(config.create_timing_cache(cache), False):
                # It is one of another release or GPU.
                config.set_timing_cache(config.create_timing_cache(b""), False)
            plan = self._builder.build_serialized_network(self._network, config)
            measured = config.get_timing_cache()
            kept = b"" if measured is None else bytes(memoryview(measured.serialize()))
        return (None if plan is None else memoryview(plan)), kept

    def _configure(self, settings: BuildSettings) -> Any:
        """The builder's configuration.

        Raises:
            ValueError: TensorRT does not take the architecture or a profile.
        """
        trt, builder = self.tensorrt.module, self._builder
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if settings.architecture is not None:
            name = settings.architecture.upper().replace("_", "")
            capability = getattr(trt.ComputeCapability, name, None)
            config.num_compute_capabilities = 1
            if capability is None or not config.set_compute_capability(capability, 0):
                raise ValueError(f"this release does not build for compute capability {name}")
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        if settings.embedded_plugin is not None:
            config.plugins_to_serialize = [str(settings.embedded_plugin)]
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if settings.weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        for shapes in settings.profiles:
            profile = builder.create_optimization_profile()
            for name, span in shapes.items():
                profile.set_shape(name, span.min, span.opt, span.max)
            if config.add_optimization_profile(profile) < 0:
                raise ValueError("TensorRT does not take the optimization profile")
        return config

    @staticmethod
    def _spec(tensor: Any) -> TensorSpec:
        return TensorSpec(tensor.name, dtype_name(tensor.dtype), dimensions(tensor.shape))


def parse(tensorrt: TensorRT, model: bytes, path: Path) -> Network:
    """Parses an ONNX model into a strongly typed network.

    Args:
        tensorrt: a full TensorRT.
        model: the serialized model without its external weights.
        path: where the model lies, for its external weights.

    Raises:
        EnvironmentProblem: TensorRT gives no builder: mostly a driver that is too old for it.
    """
    trt = tensorrt.module
    try:
        builder = trt.Builder(tensorrt.logger)
    except (RuntimeError, TypeError) as error:  # pybind11: "factory function returned nullptr"
        reason = last_error(tensorrt.messages) or str(error)
        remedy = "check the driver with nvidia-smi; TensorRT's release notes name the oldest one"
        raise EnvironmentProblem("tensorrt-no-builder", tensorrt.name, reason, remedy) from error
    flags = 0
    if release(tensorrt.version)[0] < tensorrt.product.typed_since:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    trt.init_libnvinfer_plugins(tensorrt.logger, "")
    parser = trt.OnnxParser(network, tensorrt.logger)
    good = parser.parse(model, str(path))
    errors = [_parser_message(parser.get_error(index)) for index in range(parser.num_errors)]
    if not good and not errors:
        reason = last_error(tensorrt.messages) or "the parser gives no reason"
        errors.append(ParserMessage("", "", -1, "", reason))
    return Network(tensorrt, tuple(errors), builder, network, parser)


def _parser_message(error: Any) -> ParserMessage:
    return ParserMessage(
        node=error.node_name() or "",
        operator=error.node_operator() or "",
        position=error.node(),
        code=str(error.code()),
        text=error.desc() or "",
    )
