"""libcuda.so.1 by ctypes: functions that raise where they fail, and what it says of a GPU.

Signatures are those of cuda.h, "CUDA Driver API". Needs nothing but the standard library.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    byref,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_size_t,
    c_ubyte,
    c_uint,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass

from mmcompile.errors import EnvironmentProblem

LIBRARY = "libcuda.so.1"

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDeviceGetUuid": (POINTER(c_ubyte * 16), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}

# CUdevice_attribute
_MULTIPROCESSORS, _L2_BYTES, _MAJOR, _MINOR = 16, 38, 75, 76


class DriverError(RuntimeError):
    """A call failed; the text is the driver's sentence.

    Attributes:
        status: the `CUresult`.
    """

    def __init__(self, function: str, status: int, text: str) -> None:
        super().__init__(f"{function}: {text} ({status})")
        self.status = status


@dataclass(frozen=True)
class GpuFacts:
    """What the driver says of a GPU.

    Attributes:
        name: the product's name.
        architecture: compute capability, e.g. 120.
        multiprocessors: SMs.
        memory_bytes: size of its memory.
        l2_bytes: size of its L2 cache.
        driver: CUDA version of the driver, e.g. `13.0`.
        uuid: as NVML and nvidia-smi name the GPU.
    """

    name: str
    architecture: int
    multiprocessors: int
    memory_bytes: int
    l2_bytes: int
    driver: str
    uuid: str


class Driver:
    """The loaded driver.

    Raises:
        EnvironmentProblem: there is none, or no GPU of that number.
    """

    def __init__(self, ordinal: int = 0) -> None:
        remedy = "run on the machine that has the GPU, and check nvidia-smi there"
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise EnvironmentProblem("no-gpu", "GPU", f"no driver ({LIBRARY})", remedy) from None
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype = c_int
            function.argtypes = arguments
        count = c_int()
        try:
            self.call("cuInit", 0)
            self.call("cuDeviceGetCount", byref(count))
        except DriverError as error:
            raise EnvironmentProblem("no-gpu", "GPU", str(error), remedy) from None
        if ordinal >= count.value:
            reason = f"the driver finds {count.value} GPUs, none has the number {ordinal}"
            raise EnvironmentProblem("no-gpu", "GPU", reason, remedy)
        device = c_int()
        self.call("cuDeviceGet", byref(device), ordinal)
        self.device = device.value

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function.

        Raises:
            DriverError: it failed.
        """
        status = int(getattr(self._library, name)(*arguments))
        if status:
            text = c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            raise DriverError(name, status, (text.value or b"unknown error").decode())

    def attach(self) -> None:
        """Makes the GPU's primary context current, which the CUDA runtime and torch use too."""
        context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(context), self.device)
        self.call("cuCtxSetCurrent", context)

    def facts(self) -> GpuFacts:
        """What the driver says of the GPU; needs no context."""
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, len(name), self.device)
        size, version, uuid = c_size_t(), c_int(), (c_ubyte * 16)()
        self.call("cuDeviceTotalMem_v2", byref(size), self.device)
        self.call("cuDriverGetVersion", byref(version))
        self.call("cuDeviceGetUuid", byref(uuid), self.device)
        code = bytes(uuid).hex()
        lengths = (8, 4, 4, 4, 12)
        starts = [sum(lengths[:i]) for i in range(5)]
        parts = [code[a : a + n] for a, n in zip(starts, lengths, strict=True)]
        return GpuFacts(
            name=name.value.decode(errors="replace"),
            architecture=10 * self._attribute(_MAJOR) + self._attribute(_MINOR),
            multiprocessors=self._attribute(_MULTIPROCESSORS),
            memory_bytes=size.value,
            l2_bytes=self._attribute(_L2_BYTES),
            driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
            uuid="GPU-" + "-".join(parts),
        )

    def _attribute(self, number: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), number, self.device)
        return value.value
