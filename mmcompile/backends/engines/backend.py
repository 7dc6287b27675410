"""`EngineBackend`: a back end over one of NVIDIA's builders; what differs is its `Product`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmcompile.backends.engines import api as trt
from mmcompile.backends.engines.building import BuildRequest, LoadRequest, build, load
from mmcompile.backends.engines.device import Device, read_device
from mmcompile.backends.engines.diagnosis import examine
from mmcompile.backends.engines.isolation import build_isolated, load_isolated
from mmcompile.backends.engines.meta import BundleMeta, EngineMeta
from mmcompile.backends.engines.plugin import PluginLibrary, plugin_creator
from mmcompile.backends.engines.product import Product
from mmcompile.backends.engines.running import EngineRunner
from mmcompile.backends.engines.timing import LoadedEngine
from mmcompile.backends.protocol import Built, Job, Loaded, Step
from mmcompile.errors import EnvironmentProblem
from mmcompile.finding import Finding

if TYPE_CHECKING:
    import onnx

    from mmcompile.cuda.machine import Machine

ENGINE_FILE = "engine.plan"


@dataclass(frozen=True)
class EngineBackend:
    """A `protocol.Backend` whose builder has TensorRT's API.

    Attributes:
        product: which of them.
        automatic: whether it may be chosen where nobody names one.
    """

    product: Product
    automatic: bool = True

    needs_plugin = True
    file = ENGINE_FILE

    @property
    def name(self) -> str:
        """What files and caches know it by."""
        return self.product.backend

    @property
    def title(self) -> str:
        """The product's name."""
        return self.product.title

    @property
    def triton(self) -> bool:
        """Whether the Triton server runs its engines."""
        return self.product.triton

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for a GPU that is not here."""
        return self.product.ahead_of_time

    def missing(self, target: str) -> EnvironmentProblem | None:
        """Why no engine can be built here: the GPU, the package or its release."""
        product = self.product
        if not product.serves(target):
            reason = f"{product.title} builds for {', '.join(product.targets)}, not for {target}"
            remedy = "choose another --backend, or build for another --gpu"
            return EnvironmentProblem("gpu-unserved", product.title, reason, remedy)
        try:
            trt.installed_version(product)
            self._device(target)
        except EnvironmentProblem as problem:
            return problem
        return None

    def version(self) -> str:
        """Version of the package.

        Raises:
            EnvironmentProblem: it is not installed or is not supported.
        """
        return trt.installed_version(self.product)

    def lower(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model without the functions that state what our nodes mean.

        Without the plugin, TensorRT would inline them and build an engine that is right and very
        slow.
        """
        from mmcompile.ops import DOMAIN

        lowered = type(model)()
        lowered.CopyFrom(model)
        others = [body for body in model.functions if body.domain != DOMAIN]
        del lowered.functions[:]
        lowered.functions.extend(others)
        return lowered

    def build(self, job: Job) -> Built:
        """Builds an engine into the job's folder.

        Raises:
            MMCompileError: with the ONNX node concerned, where the builder names one.
        """
        device = self._device(job.target)
        file = job.folder / ENGINE_FILE
        request = BuildRequest(
            product=self.product,
            model=job.model.SerializeToString(),
            nodes=tuple(node.name for node in job.model.graph.node),
            path=str(job.path),
            library=None if job.library is None else str(job.library),
            creator=plugin_creator(),
            target=job.target,
            device=device,
            choices=job.choices,
            interface=job.interface,
            output=str(file),
        )
        answer = build_isolated(request) if self.product.isolated else build(request)
        return Built(file, answer.version, device, answer.interface)

    def check(self, job: Job, built: Built) -> Loaded | None:
        """Loads an engine where its GPU is here.

        Raises:
            MMCompileError: it is refused.
        """
        if built.device is None:
            return None
        embedded = job.choices.embed_plugin
        library = None if job.library is None or embedded else str(job.library)
        request = LoadRequest(self.product, str(built.file), library, plugin_creator(), embedded)
        answer = load_isolated(request) if self.product.isolated else load(request)
        return Loaded(answer.interface, answer.inspection)

    def open(
        self, file: Path, meta: EngineMeta, device: int, weight_bytes: int | None
    ) -> EngineRunner:
        """An engine that it built, ready to run.

        Raises:
            EnvironmentProblem: package, GPU, plugin or engine are not what it was built with.
            UsageError: a limit of weights is asked for, which it was not built for.
        """
        return EngineRunner(self.product, file, meta, device, weight_bytes)

    def steps(self, bundle: BundleMeta) -> Sequence[Step]:
        """None; products have tools of their own."""
        del bundle
        return ()

    def examine(self) -> Sequence[Finding]:
        """Whether the package is here, and whether its registry takes the plugin."""
        return examine(self.product)

    def timed(self, plan: bytes, plugin: PluginLibrary | None, machine: Machine) -> LoadedEngine:
        """An engine for timing.

        Raises:
            EnvironmentProblem: it is refused.
        """
        tensorrt = trt.load(self.product)
        if plugin is not None:
            trt.load_plugin(tensorrt, plugin.path, plugin.creator)
        return LoadedEngine(tensorrt, plan, machine)

    def _device(self, target: str) -> Device | None:
        """The GPU that is built on; None where it is not here and need not be.

        Raises:
            EnvironmentProblem: it has to be here, and there is none, or another one.
        """
        try:
            device = read_device()
        except EnvironmentProblem:
            if self.product.ahead_of_time:
                return None
            raise
        if device.architecture == target:
            return device
        if self.product.ahead_of_time:
            return None
        reason = f"the model was compiled for {target}; here is {device.name}"
        reason += f" ({device.architecture})"
        remedy = (
            f"build on a {target}, or compile with --gpu {device.architecture} --plan plan.json"
        )
        raise EnvironmentProblem("gpu-mismatch", "GPU", reason, remedy)
