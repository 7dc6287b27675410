"""The back end `tensorrt`: engines by TensorRT, on the GPU that they are for."""

from __future__ import annotations

from collections.abc import Sequence

from mmcompile.backends.engines.backend import EngineBackend
from mmcompile.backends.engines.bundle import COSINE, ORIGINAL, polygraphy_lines
from mmcompile.backends.engines.meta import BundleMeta
from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.backends.engines.product import Product
from mmcompile.backends.engines.shapes import polygraphy_shapes, trtexec_shapes
from mmcompile.backends.protocol import Step
from mmcompile.output import MODEL_FILE

PRODUCT = Product(
    backend="tensorrt",
    title="TensorRT",
    module="tensorrt",
    runtimes=("tensorrt", "tensorrt_lean", "tensorrt_dispatch"),
    registries=(
        "tensorrt",
        "tensorrt_lean",
        "tensorrt_lean_bindings",
        "tensorrt_dispatch",
        "tensorrt_dispatch_bindings",
    ),
    distributions=("tensorrt",),
    install="pip install 'tensorrt>=10.13,<12'",
    # Before 10.13, MXFP8 and plugin namespaces are incomplete (see docs/deploy.md).
    oldest=(10, 13),
    newest_major=11,
    typed_since=11,
    compatible=True,
    triton=True,
)


class TensorRTBackend(EngineBackend):
    """TensorRT, with the tools that come with it."""

    def steps(self, bundle: BundleMeta) -> Sequence[Step]:
        """NVIDIA's trtexec, and polygraphy."""
        first, _ = polygraphy_lines(ORIGINAL, MODEL_FILE)
        return (
            Step("trtexec", "an engine and its timing, with NVIDIA's trtexec", (_trtexec(bundle),)),
            Step(
                "polygraphy",
                "an engine by TensorRT, run and held against the original's outputs",
                (first, _polygraphy(bundle)),
            ),
        )


BACKEND = TensorRTBackend(PRODUCT)


def _trtexec(bundle: BundleMeta) -> str:
    choices = bundle.choices
    parts = ["trtexec", f"--onnx={MODEL_FILE}", "--stronglyTyped"]
    parts.append(f"--dynamicPlugins=./{LIBRARY}")
    for number, profile in enumerate(choices.profiles):
        parts += [f"--profile={number}"] if len(choices.profiles) > 1 else []
        parts += trtexec_shapes(profile)
    if choices.optimization_level is not None:
        parts.append(f"--builderOptimizationLevel={choices.optimization_level}")
    if choices.workspace_bytes is not None:
        parts.append(f"--memPoolSize=workspace:{choices.workspace_bytes}B")
    if choices.embed_plugin:
        parts += ["--versionCompatible", f"--setPluginsToSerialize=./{LIBRARY}"]
    if choices.weight_streaming:
        parts.append("--allowWeightStreaming")
    return " ".join([*parts, "--saveEngine=trtexec.plan"])


def _polygraphy(bundle: BundleMeta) -> str:
    """Builds, runs and compares; needs the original's outputs."""
    choices = bundle.choices
    parts = ["polygraphy run", MODEL_FILE, "--trt --strongly-typed", f"--plugins ./{LIBRARY}"]
    # polygraphy loads plugins before TensorRT, which a library then cannot register with, unless
    # an option makes it import TensorRT while it reads its command line. This one does.
    parts.append("--profiling-verbosity detailed")
    for profile in choices.profiles:
        parts += polygraphy_shapes(profile)
    if choices.optimization_level is not None:
        parts.append(f"--builder-optimization-level {choices.optimization_level}")
    if choices.workspace_bytes is not None:
        parts.append(f"--pool-limit workspace:{choices.workspace_bytes}")
    if choices.weight_streaming:
        parts.append("--weight-streaming")
    parts.append("--save-engine polygraphy.plan")
    return " ".join([*parts, "--load-inputs inputs.json --load-outputs outputs.json", COSINE])
