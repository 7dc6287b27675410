"""A machine as `mmcompile.cuda.machine.Machine` has it, whose clock is a counter."""

import ctypes

import numpy as np

from mmcompile.cuda.driver import DriverError

STREAM = 77


class Block:
    def __init__(self, machine, size):
        self.machine, self.size = machine, size
        self.array = np.zeros(max(size, 1), np.uint8)
        self.address = self.array.ctypes.data
        machine.live += size

    def __del__(self):
        self.machine.live -= self.size


class FakeMachine:
    """Time passes only where a call says so (`pass_time`); graphs replay what they captured."""

    def __init__(self, *, memory=10**9, captures=True):
        self.memory, self.captures = memory, captures
        self.live = self.now = 0
        self.capturing = False
        self.log = []

    def pass_time(self, seconds):
        if not self.capturing:
            self.now += seconds

    def allocate(self, size):
        if self.live + size > self.memory:
            raise MemoryError(f"{size} bytes on the GPU: out of memory (2)")
        return Block(self, size)

    def write(self, address, data):
        source = np.ascontiguousarray(data)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def fill(self, address, size, value):
        ctypes.memset(address, value, size)

    def read(self, address, size):
        return np.frombuffer(ctypes.string_at(address, size), np.uint8)

    def used_bytes(self):
        return self.live

    def stream(self):
        return STREAM

    def capture(self, stream, enqueue):
        assert stream == STREAM
        if not self.captures:
            raise DriverError("cuStreamEndCapture", 901, "operation not permitted")
        self.capturing = True
        try:
            enqueue()
        finally:
            self.capturing = False
        self.log.append("captured")
        return Replay(self, enqueue)

    def timed(self, stream, enqueue):
        assert stream == STREAM
        start = self.now
        enqueue()
        seconds = self.now - start
        self.log.append("timed")
        return lambda: seconds

    def synchronize(self):
        self.log.append("synchronize")


class Replay:
    def __init__(self, machine, enqueue):
        self.machine, self.enqueue = machine, enqueue

    def launch(self, stream):
        assert stream == STREAM
        self.machine.log.append("replay")
        self.enqueue()
