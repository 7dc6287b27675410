"""`Machine`: memory, streams, graphs and events, of a GPU or, for the emulated library, of the CPU.

Every buffer is an allocation of its own, aligned to 256 bytes, so that compute-sanitizer sees where
it ends, which a caching allocator would hide. Needs nothing but numpy: tests/gpu runs on it where
nothing else is installed.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from ctypes import byref, c_float, c_size_t, c_uint64, c_void_p
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.driver import Driver, DriverError

ALIGNMENT = 256
Enqueue = Callable[[int | None], object]
"""Puts one call on a stream, given as `cudaStream_t`."""

_NON_BLOCKING_STREAM = 1
_CAPTURE_THREAD_LOCAL = 1


class Block(Protocol):
    """An allocation; it lives as long as this object."""

    address: int
    size: int


class Graph(Protocol):
    """Calls that were captured, ready to be repeated."""

    def launch(self, stream: int | None) -> None:
        """Enqueues them all."""


class Machine(Protocol):
    """Where calls run."""

    def allocate(self, size: int) -> Block:
        """Bytes that nobody has written.

        Raises:
            MemoryError: there are not so many.
        """

    def write(self, address: int, data: npt.NDArray[np.generic]) -> None:
        """Copies an array into memory; done when it returns."""

    def fill(self, address: int, size: int, value: int) -> None:
        """Sets every byte; done when it returns."""

    def read(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """A copy of memory, after all that was enqueued before."""

    def copy(self, target: int, source: int, size: int, stream: int | None) -> None:
        """Enqueues a copy within memory."""

    def used_bytes(self) -> int | None:
        """Device memory in use by everyone; None where nobody counts it."""

    def stream(self, number: int = 0) -> int | None:
        """The stream of that number, which waits for no other and lives as long as the machine."""

    def capture(self, stream: int | None, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` puts on the stream, as a graph.

        Raises:
            DriverError: something in it cannot be captured.
        """

    def timed(self, stream: int | None, enqueue: Callable[[], None]) -> Callable[[], float]:
        """Enqueues between two events; what comes back gives their seconds, once all is done."""

    def synchronize(self) -> None:
        """Waits for everything.

        Raises:
            DriverError: a kernel failed.
        """


class _HostBlock:
    def __init__(self, size: int) -> None:
        self._array = np.empty(size + ALIGNMENT, np.uint8)
        start = self._array.ctypes.data
        self.address = start + -start % ALIGNMENT
        self.size = size


class HostMachine:
    """The CPU, for the emulated library, whose calls return when the work is done."""

    def allocate(self, size: int) -> Block:
        """See `Machine`."""
        return _HostBlock(size)

    def write(self, address: int, data: npt.NDArray[np.generic]) -> None:
        """See `Machine`."""
        source = np.ascontiguousarray(data)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def fill(self, address: int, size: int, value: int) -> None:
        """See `Machine`."""
        ctypes.memset(address, value, size)

    def read(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """See `Machine`."""
        return np.frombuffer(ctypes.string_at(address, size), np.uint8)

    def copy(self, target: int, source: int, size: int, stream: int | None) -> None:  # noqa: ARG002
        """See `Machine`."""
        ctypes.memmove(target, source, size)

    def used_bytes(self) -> int | None:
        """See `Machine`."""
        return None

    def stream(self, number: int = 0) -> int | None:  # noqa: ARG002
        """See `Machine`."""
        return None

    def capture(self, stream: int | None, enqueue: Callable[[], None]) -> Graph:  # noqa: ARG002
        """See `Machine`."""
        raise DriverError("capture", 801, "the CPU has no graphs")

    def timed(
        self,
        stream: int | None,  # noqa: ARG002
        enqueue: Callable[[], None],
    ) -> Callable[[], float]:
        """See `Machine`."""
        start = time.perf_counter()
        enqueue()
        seconds = time.perf_counter() - start
        return lambda: seconds

    def synchronize(self) -> None:
        """See `Machine`."""


class _DeviceBlock:
    def __init__(self, driver: Driver, size: int) -> None:
        self._driver = driver
        self.size = size
        pointer = c_uint64()
        driver.call("cuMemAlloc_v2", byref(pointer), max(size, 1))
        self.address = int(pointer.value)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            _release(self._driver, "cuMemFree_v2", self.address)


class _DeviceGraph:
    def __init__(self, driver: Driver, graph: c_void_p) -> None:
        self._driver = driver
        self._executable = c_void_p()
        try:
            driver.call("cuGraphInstantiateWithFlags", byref(self._executable), graph, 0)
        finally:
            _release(driver, "cuGraphDestroy", graph)

    def launch(self, stream: int | None) -> None:
        self._driver.call("cuGraphLaunch", self._executable, stream)

    def __del__(self) -> None:
        if self._executable.value:
            _release(self._driver, "cuGraphExecDestroy", self._executable)


class _Event:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle = c_void_p()
        driver.call("cuEventCreate", byref(self.handle), 0)

    def __del__(self) -> None:
        if self.handle.value:
            _release(self._driver, "cuEventDestroy_v2", self.handle)


def _release(driver: Driver, function: str, handle: object) -> None:
    """Releases after a failed kernel fail too, and have nothing new to say."""
    try:
        driver.call(function, handle)
    except DriverError:
        return


class GpuMachine:
    """A GPU, in its primary context.

    Raises:
        EnvironmentProblem: there is no driver or no such GPU.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self.driver = Driver(ordinal)
        self.driver.attach()
        self.facts = self.driver.facts()
        self._streams = [self._new_stream()]

    def allocate(self, size: int) -> Block:
        """See `Machine`."""
        try:
            return _DeviceBlock(self.driver, size)
        except DriverError as error:
            raise MemoryError(f"{size / 2**20:.0f} MiB on the GPU: {error}") from None

    def write(self, address: int, data: npt.NDArray[np.generic]) -> None:
        """See `Machine`."""
        source = np.ascontiguousarray(data)
        if source.nbytes:
            self.driver.call("cuMemcpyHtoD_v2", address, source.ctypes.data, source.nbytes)
            # From pageable memory the copy may still be on its way, and streams do not wait.
            self.synchronize()

    def fill(self, address: int, size: int, value: int) -> None:
        """See `Machine`."""
        if size:
            self.driver.call("cuMemsetD8_v2", address, value, size)
            self.synchronize()

    def read(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """See `Machine`."""
        self.synchronize()
        target = np.empty(size, np.uint8)
        if size:
            self.driver.call("cuMemcpyDtoH_v2", target.ctypes.data, address, size)
        return target

    def copy(self, target: int, source: int, size: int, stream: int | None) -> None:
        """See `Machine`."""
        self.driver.call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def used_bytes(self) -> int | None:
        """See `Machine`."""
        free, total = c_size_t(), c_size_t()
        self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
        return total.value - free.value

    def stream(self, number: int = 0) -> int | None:
        """See `Machine`."""
        while len(self._streams) <= number:
            self._streams.append(self._new_stream())
        return self._streams[number]

    def _new_stream(self) -> int | None:
        stream = c_void_p()
        self.driver.call("cuStreamCreate", byref(stream), _NON_BLOCKING_STREAM)
        return stream.value

    def capture(self, stream: int | None, enqueue: Callable[[], None]) -> Graph:
        """See `Machine`."""
        self.driver.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        graph = c_void_p()
        try:
            enqueue()
        except BaseException:
            # Else the stream stays in capture; the error of before is the one to tell.
            _end_broken_capture(self.driver, stream, graph)
            raise
        self.driver.call("cuStreamEndCapture", stream, byref(graph))
        return _DeviceGraph(self.driver, graph)

    def timed(self, stream: int | None, enqueue: Callable[[], None]) -> Callable[[], float]:
        """See `Machine`."""
        start, end = _Event(self.driver), _Event(self.driver)
        self.driver.call("cuEventRecord", start.handle, stream)
        enqueue()
        self.driver.call("cuEventRecord", end.handle, stream)

        def seconds() -> float:
            milliseconds = c_float()
            self.driver.call("cuEventElapsedTime", byref(milliseconds), start.handle, end.handle)
            return milliseconds.value / 1e3

        return seconds

    def synchronize(self) -> None:
        """See `Machine`."""
        self.driver.call("cuCtxSynchronize")


def _end_broken_capture(driver: Driver, stream: int | None, graph: c_void_p) -> None:
    try:
        driver.call("cuStreamEndCapture", stream, byref(graph))
    except DriverError:
        return
    _release(driver, "cuGraphDestroy", graph)
