"""`EngineRunner`: checks, loads and runs one engine, from numpy arrays or torch tensors."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmcompile.backends.engines import api as trt
from mmcompile.backends.engines.device import Device, read_device
from mmcompile.backends.engines.interface import TensorSpec, check_engine
from mmcompile.backends.engines.meta import EngineMeta, check_file
from mmcompile.backends.engines.plugin import find_plugin
from mmcompile.backends.engines.product import Product
from mmcompile.cuda.driver import DriverError
from mmcompile.cuda.machine import Block, GpuMachine, Machine
from mmcompile.errors import EnvironmentProblem, UsageError

AnyArray = npt.NDArray[Any]
_REBUILD = "build it again here with `mmcompile build`"


class EngineRunner:
    """An engine with one execution context; use one per thread.

    Args:
        product: what built it.
        file: the engine; unless it holds the plugin library, that lies beside it.
        meta: what it was built with.
        device: ordinal of the GPU, as CUDA_VISIBLE_DEVICES numbers them.
        weight_bytes: weights to keep on the GPU at most; None keeps all.

    Raises:
        EnvironmentProblem: TensorRT, the GPU or the plugin is missing or not what the engine was
            built with, the engine is damaged, or the GPU has too little memory.
        UsageError: a limit of weights is asked for, which the engine was not built for.
    """

    def __init__(
        self,
        product: Product,
        file: Path,
        meta: EngineMeta,
        device: int = 0,
        weight_bytes: int | None = None,
    ) -> None:
        self.meta = meta
        if weight_bytes is not None and not meta.choices.weight_streaming:
            reason = "its weights have to be on the GPU, all of them"
            raise UsageError("no-streaming", file, reason, "build it with --weight-streaming")
        embedded = meta.choices.embed_plugin
        self._tensorrt = trt.load(product, smaller=embedded and product.compatible)
        check_engine_file(file, meta, self._tensorrt, read_device(device))
        if not embedded:
            self._load_plugin(file.parent)
        self._machine: Machine = GpuMachine(device)
        with file.open("rb") as opened:
            plan = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        self._runtime, self._engine = trt.deserialize(self._tensorrt, plan, host_code=embedded)
        found = trt.engine_interface(self._tensorrt, self._engine)
        check_engine(meta.interface, found, file)
        if weight_bytes is not None:
            trt.stream_weights(self._engine, weight_bytes)
        self._context = trt.Context(self._tensorrt, self._engine)
        self._profiles = trt.engine_profiles(self._engine, meta.interface.inputs)
        self._profile = 0
        self._buffers: dict[str, Block] = {}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the engine; see `mmcompile.runtime.Engine`.

        Raises:
            UsageError: a missing or unknown input, a wrong type, or a shape outside the profiles.
            EnvironmentProblem: the GPU has too little memory, or the run fails.
        """
        torch = sys.modules.get("torch")
        if torch is not None and any(isinstance(v, torch.Tensor) for v in inputs.values()):
            return self._run_torch(torch, inputs)
        arrays = {name: _contiguous(np.asarray(value)) for name, value in inputs.items()}
        self._check({name: (a.dtype.name, a.shape) for name, a in arrays.items()})
        return self._run_numpy(arrays)

    def _run_numpy(self, arrays: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        stream = self._machine.stream() or 0
        self._choose_profile({name: array.shape for name, array in arrays.items()}, stream)
        try:
            for name, array in arrays.items():
                address = self._buffer(name, array.nbytes)
                self._machine.write(address, array.reshape(-1).view(np.uint8))
                self._accept(self._context.set_input(name, array.shape, address), name)
            shapes = self._output_shapes()
            sizes = {}
            for spec in self.meta.interface.outputs:
                sizes[spec.name] = _dtype(spec).itemsize * int(np.prod(shapes[spec.name]))
                address = self._buffer(spec.name, sizes[spec.name])
                self._accept(self._context.set_output(spec.name, address), spec.name)
            self._start(stream)
            outputs = {}
            for spec in self.meta.interface.outputs:
                content = self._machine.read(self._buffers[spec.name].address, sizes[spec.name])
                outputs[spec.name] = content.view(_dtype(spec)).reshape(shapes[spec.name])
        except MemoryError as error:
            remedy = "free GPU memory, or use smaller batches"
            raise EnvironmentProblem("gpu-out-of-memory", "GPU", str(error), remedy) from None
        except DriverError as error:
            raise _failed(str(error)) from error
        return outputs

    def _run_torch(self, torch: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        device = torch.device("cuda", torch.cuda.current_device())
        stream = torch.cuda.current_stream(device)
        tensors = {
            name: torch.as_tensor(value).to(device, non_blocking=True).contiguous()
            for name, value in inputs.items()
        }
        self._check({n: (str(t.dtype)[6:], tuple(t.shape)) for n, t in tensors.items()})
        self._choose_profile({n: tuple(t.shape) for n, t in tensors.items()}, stream.cuda_stream)
        for name, tensor in tensors.items():
            address = tensor.data_ptr() or self._buffer(name, 1)  # an empty tensor has none
            self._accept(self._context.set_input(name, tuple(tensor.shape), address), name)
        shapes = self._output_shapes()
        outputs = {}
        for spec in self.meta.interface.outputs:
            dtype = getattr(torch, spec.dtype)
            outputs[spec.name] = torch.empty(shapes[spec.name], dtype=dtype, device=device)
            address = outputs[spec.name].data_ptr() or self._buffer(spec.name, 1)
            self._accept(self._context.set_output(spec.name, address), spec.name)
        self._start(stream.cuda_stream)
        return outputs

    def _load_plugin(self, folder: Path) -> None:
        plugin = self.meta.plugin
        library = find_plugin(folder)
        if plugin.library is not None:
            remedy = "use the library that mmcompile put beside the engine, or build it again"
            check_file(library, plugin.library, "plugin library", remedy, "plugin")
        creator = (plugin.name, plugin.version, plugin.namespace)
        trt.load_plugin(self._tensorrt, library, creator)

    def _check(self, given: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        declared = {spec.name: spec for spec in self.meta.interface.inputs}
        for name in (*declared, *given):
            if name not in given or name not in declared:
                what = "is missing" if name in declared else "is none of the model's"
                remedy = f"give {', '.join(map(str, declared.values()))}"
                raise UsageError("input-name", f"input {name}", f"it {what}", remedy)
        for name, (dtype, _) in given.items():
            if dtype != declared[name].dtype:
                reason = f"it is {dtype}, the model takes {declared[name]}"
                raise UsageError("input-type", f"input {name}", reason, "convert it")

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]], stream: int) -> None:
        """Makes the first profile current that takes the shapes; the current one is preferred."""
        count = len(self._profiles)
        for index in sorted(range(count), key=lambda i: i != self._profile):
            if all(_within(shapes[n], *bounds) for n, bounds in self._profiles[index].items()):
                break
        else:
            name = next(
                n
                for n, bounds in self._profiles[self._profile].items()
                if not _within(shapes[n], *bounds)
            )
            least, most = self._profiles[self._profile][name]
            reason = f"its shape {shapes[name]} is outside the engine's {least} to {most}"
            remedy = "build the engine with wider --shapes"
            raise UsageError("input-shape", f"input {name}", reason, remedy)
        if index != self._profile:
            if not self._context.select_profile(index, stream):
                raise _failed(self._cause())
            self._profile = index

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        if unresolved := self._context.unresolved():
            raise _failed(f"shapes are not decided by the inputs: {', '.join(unresolved)}")
        shapes = {s.name: self._context.shape(s.name) for s in self.meta.interface.outputs}
        for name, shape in shapes.items():
            if any(size < 0 for size in shape):
                reason = f"the shape of output {name} depends on values, which is not supported"
                raise _failed(reason)
        return shapes

    def _start(self, stream: int) -> None:
        if not self._context.enqueue(stream):
            raise _failed(self._cause())

    def _buffer(self, name: str, size: int) -> int:
        """Address of device memory that is kept from call to call and grows."""
        block = self._buffers.get(name)
        if block is None or block.size < size:
            self._buffers.pop(name, None)
            block = self._machine.allocate(max(size, 1))
            self._buffers[name] = block
        return block.address

    def _accept(self, accepted: bool, name: str) -> None:
        if not accepted:
            raise _failed(f"TensorRT refuses tensor {name}: {self._cause()}")

    def _cause(self) -> str:
        errors = [m.text for m in self._tensorrt.messages if m.severity <= 1]
        return errors[-1] if errors else "TensorRT gives no reason"


def check_engine_file(file: Path, meta: EngineMeta, here: trt.TensorRT, device: Device) -> None:
    """Compares an engine with this machine, before TensorRT sees a byte of it.

    Args:
        file: the engine.
        meta: what it was built with.
        here: the TensorRT that is to run it.
        device: the GPU here.

    Raises:
        EnvironmentProblem: the file is damaged, or built for another TensorRT or GPU.
    """
    check_file(file, meta.engine, "engine", "copy it again, or " + _REBUILD, "engine")
    product, embedded = here.product, meta.choices.embed_plugin
    if not product.runs(meta.version, here.version, embedded=embedded):
        only = not (embedded and product.compatible)
        rule = "only" if only else "and later of that major release"
        reason = f"it was built with {meta.builder} and runs with it {rule}; here is {here.version}"
        remedy = f"install that {product.title}, or {_REBUILD}"
        raise EnvironmentProblem("engine-version", file, reason, remedy)
    if meta.target != device.architecture:
        built = f"{meta.gpu} ({meta.target})" if meta.device is not None else meta.target
        reason = f"it was built for {built}; here is {device.name} ({device.architecture})"
        raise EnvironmentProblem("engine-gpu", file, reason, _REBUILD)


def _failed(reason: str) -> EnvironmentProblem:
    remedy = "run the same inputs through `mmcompile verify --against` to compare"
    return EnvironmentProblem("engine-run", "engine", reason, remedy)


def _contiguous(array: AnyArray) -> AnyArray:
    return np.ascontiguousarray(array).reshape(array.shape)  # which makes scalars vectors


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(
        low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
    )


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    if spec.dtype == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(spec.dtype)
