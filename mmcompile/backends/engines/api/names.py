"""Every name of TensorRT's Python API that this package uses.

Names in `RUNTIME` are in NVIDIA's lean and dispatch packages, too, and tests look them up there.
Those in `FULL_ONLY` need the full package; tests hold them against the binding sources of the
supported releases (tests/backends/tensorrt_names.json). TensorRT-RTX has them all, and those in
`AHEAD_OF_TIME` besides.
"""

from __future__ import annotations

RUNTIME = frozenset(
    {
        "__version__",
        "get_plugin_registry",
        "BuilderFlag.VERSION_COMPATIBLE",
        "BuilderFlag.WEIGHT_STREAMING",
        "DataType.BF16",
        "DataType.BOOL",
        "DataType.FLOAT",
        "DataType.HALF",
        "DataType.INT32",
        "DataType.INT64",
        "DataType.INT8",
        "DataType.UINT8",
        "ICudaEngine.create_engine_inspector",
        "ICudaEngine.create_execution_context",
        "ICudaEngine.get_tensor_dtype",
        "ICudaEngine.get_tensor_mode",
        "ICudaEngine.get_tensor_name",
        "ICudaEngine.get_tensor_profile_shape",
        "ICudaEngine.get_tensor_shape",
        "ICudaEngine.num_io_tensors",
        "ICudaEngine.num_optimization_profiles",
        "ICudaEngine.weight_streaming_budget_v2",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.get_tensor_shape",
        "IExecutionContext.infer_shapes",
        "IExecutionContext.profiler",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_tensor_address",
        "ILogger.__init__",
        "IOptimizationProfile.set_shape",
        "IProfiler.__init__",
        "IPluginRegistry.get_creator",
        "IPluginRegistry.load_library",
        "ITimingCache.serialize",
        "LayerInformationFormat.JSON",
        "MemoryPoolType.WORKSPACE",
        "ProfilingVerbosity.DETAILED",
        "Runtime.__init__",
        "Runtime.deserialize_cuda_engine",
        "Runtime.engine_host_code_allowed",
        "TensorIOMode.INPUT",
    }
)

FULL_ONLY = frozenset(
    {
        "Builder.__init__",
        "Builder.build_serialized_network",
        "Builder.create_builder_config",
        "Builder.create_network",
        "Builder.create_optimization_profile",
        "EngineInspector.get_engine_information",
        "IBuilderConfig.add_optimization_profile",
        "IBuilderConfig.builder_optimization_level",
        "IBuilderConfig.create_timing_cache",
        "IBuilderConfig.get_timing_cache",
        "IBuilderConfig.plugins_to_serialize",
        "IBuilderConfig.profiling_verbosity",
        "IBuilderConfig.set_flag",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.set_timing_cache",
        "INetworkDefinition.get_input",
        "INetworkDefinition.get_output",
        "INetworkDefinition.num_inputs",
        "INetworkDefinition.num_outputs",
        "ITensor.dtype",
        "ITensor.is_shape_tensor",
        "ITensor.name",
        "ITensor.shape",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "OnnxParser.__init__",
        "OnnxParser.get_error",
        "OnnxParser.num_errors",
        "OnnxParser.parse",
        "ParserError.code",
        "ParserError.desc",
        "ParserError.node",
        "ParserError.node_name",
        "ParserError.node_operator",
        "init_libnvinfer_plugins",
    }
)

AHEAD_OF_TIME = frozenset(
    {
        "ComputeCapability.SM120",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
    }
)
