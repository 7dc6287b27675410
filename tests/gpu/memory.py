"""Memory, streams and graphs of the machine that a kernel library runs on.

On a GPU they come from the driver (libcuda.so.1), by ctypes: every buffer is an allocation of its
own, so that compute-sanitizer sees where it ends, which a caching allocator would hide. Signatures
are those of cuda.h, "CUDA Driver API". For the emulated library they are numpy's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
ALIGNMENT = 256
_NON_BLOCKING_STREAM = 1
_CAPTURE_THREAD_LOCAL = 1


class Unavailable(Exception):
    """There is nothing to run on; the text is the reason."""


class Block(Protocol):
    """An allocation, aligned to 256 bytes; it lives as long as this object."""

    address: int
    size: int


class Graph(Protocol):
    """Calls that were captured, ready to be repeated."""

    def launch(self, stream: int | None) -> None:
        """Enqueues them all."""


class Memory(Protocol):
    """What the checks need of a machine besides the library."""

    has_streams: bool

    def allocate(self, size: int) -> Block:
        """Bytes that nobody has written."""

    def write(self, address: int, data: npt.NDArray[np.generic]) -> None:
        """Copies an array into memory; done when it returns."""

    def fill(self, address: int, size: int, value: int) -> None:
        """Sets every byte; done when it returns."""

    def read(self, address: int, size: int) -> Bytes:
        """A copy of memory, after all that was enqueued before."""

    def stream(self) -> int | None:
        """A new stream that waits for no other, and lives as long as the machine."""

    def capture(self, stream: int | None, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` puts on the stream, as a graph."""

    def synchronize(self) -> None:
        """Waits for all streams.

        Raises:
            RuntimeError: a kernel failed.
        """


class _HostBlock:
    def __init__(self, size: int) -> None:
        self._array = np.empty(size + ALIGNMENT, np.uint8)
        start = self._array.ctypes.data
        self.address = start + -start % ALIGNMENT
        self.size = size


class HostMemory:
    """The memory of the emulated library, whose calls return when the work is done."""

    has_streams = False

    def allocate(self, size: int) -> Block:
        return _HostBlock(size)

    def write(self, address: int, data: npt.NDArray[np.generic]) -> None:
        source = np.ascontiguousarray(data)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def fill(self, address: int, size: int, value: int) -> None:
        ctypes.memset(address, value, size)

    def read(self, address: int, size: int) -> Bytes:
        return np.frombuffer(ctypes.string_at(address, size), np.uint8)

    def stream(self) -> int | None:
        return None

    def capture(self, stream: int | None, enqueue: Callable[[], None]) -> Graph:
        raise NotImplementedError("the emulator has no streams")

    def synchronize(self) -> None:
        pass


_SIGNATURES = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


class _Driver:
    """libcuda.so.1, whose functions raise where they fail."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Unavailable(f"no CUDA driver ({error})") from None
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype = c_int
            function.argtypes = arguments

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()} ({status})")


class _DeviceBlock:
    def __init__(self, driver: _Driver, size: int) -> None:
        self._driver = driver
        self.size = size
        pointer = c_uint64()
        driver.call("cuMemAlloc_v2", byref(pointer), max(size, 1))
        self.address = int(pointer.value)

    def __del__(self) -> None:
        # Frees after a failed kernel fail too, and have nothing new to say.
        if hasattr(self, "address"):
            try:
                self._driver.call("cuMemFree_v2", self.address)
            except RuntimeError:
                return


class _DeviceGraph:
    def __init__(self, driver: _Driver, graph: c_void_p) -> None:
        self._driver = driver
        self._executable = c_void_p()
        driver.call("cuGraphInstantiateWithFlags", byref(self._executable), graph, 0)

    def launch(self, stream: int | None) -> None:
        self._driver.call("cuGraphLaunch", self._executable, stream)


class DeviceMemory:
    """The memory of a GPU, in the primary context, which the CUDA runtime uses too.

    Raises:
        Unavailable: there is no driver or no such GPU.
    """

    has_streams = True

    def __init__(self, ordinal: int) -> None:
        self._driver = _Driver()
        count = c_int()
        try:
            self._driver.call("cuInit", 0)
            self._driver.call("cuDeviceGetCount", byref(count))
        except RuntimeError as error:
            raise Unavailable(f"no CUDA GPU ({error})") from None
        if ordinal >= count.value:
            raise Unavailable(f"no CUDA GPU {ordinal}, there are {count.value}")
        device = c_int()
        context = c_void_p()
        self._driver.call("cuDeviceGet", byref(device), ordinal)
        self._driver.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._driver.call("cuCtxSetCurrent", context)

    def allocate(self, size: int) -> Block:
        return _DeviceBlock(self._driver, size)

    def write(self, address: int, data: npt.NDArray[np.generic]) -> None:
        source = np.ascontiguousarray(data)
        if source.nbytes:
            self._driver.call("cuMemcpyHtoD_v2", address, source.ctypes.data, source.nbytes)
            # From pageable memory the copy may still be on its way, and streams do not wait.
            self.synchronize()

    def fill(self, address: int, size: int, value: int) -> None:
        if size:
            self._driver.call("cuMemsetD8_v2", address, value, size)
            self.synchronize()

    def read(self, address: int, size: int) -> Bytes:
        self.synchronize()
        target = np.empty(size, np.uint8)
        if size:
            self._driver.call("cuMemcpyDtoH_v2", target.ctypes.data, address, size)
        return target

    def stream(self) -> int | None:
        stream = c_void_p()
        self._driver.call("cuStreamCreate", byref(stream), _NON_BLOCKING_STREAM)
        return stream.value

    def capture(self, stream: int | None, enqueue: Callable[[], None]) -> Graph:
        self._driver.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        graph = c_void_p()
        try:
            enqueue()
        finally:
            self._driver.call("cuStreamEndCapture", stream, byref(graph))
        return _DeviceGraph(self._driver, graph)

    def synchronize(self) -> None:
        self._driver.call("cuCtxSynchronize")
