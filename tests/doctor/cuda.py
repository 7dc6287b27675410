"""A CUDA driver and an NVML that behave as documented, for `ctypes.CDLL`."""

import ctypes

from mmcompile.cuda import clocks, driver

UUID = bytes(range(16))
UUID_TEXT = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
ATTRIBUTES = {16: 170, 38: 96 * 2**20, 75: 12, 76: 0}


class FakeDriver:
    """One GeForce RTX 5090, or as many devices as wanted; everything else succeeds."""

    def __init__(self, devices=1, status=0, version=13000, name=b"NVIDIA GeForce RTX 5090"):
        self.devices, self.status, self.version, self.name = devices, status, version, name

    def __getattr__(self, function):
        if function not in driver._SIGNATURES:
            raise AttributeError(function)

        def succeed(*arguments):
            return getattr(self, f"do_{function}", lambda *_: 0)(*arguments)

        self.__dict__[function] = succeed
        return succeed

    def do_cuInit(self, _):  # noqa: N802
        return self.status

    def do_cuDeviceGetCount(self, pointer):  # noqa: N802
        pointer._obj.value = self.devices
        return 0

    def do_cuDriverGetVersion(self, pointer):  # noqa: N802
        pointer._obj.value = self.version
        return 0

    def do_cuDeviceGetName(self, text, _length, _device):  # noqa: N802
        text.value = self.name
        return 0

    def do_cuDeviceGetUuid(self, pointer, _device):  # noqa: N802
        pointer._obj[:] = UUID
        return 0

    def do_cuDeviceTotalMem_v2(self, pointer, _device):  # noqa: N802
        pointer._obj.value = 32 * 2**30
        return 0

    def do_cuDeviceGetAttribute(self, pointer, number, _device):  # noqa: N802
        pointer._obj.value = ATTRIBUTES[number]
        return 0

    def do_cuGetErrorString(self, _status, pointer):  # noqa: N802
        pointer._obj.value = b"no CUDA-capable device is detected"
        return 0


class FakeNvml:
    """Answers for one UUID; `missing` functions say that they are not supported (3)."""

    def __init__(self, missing=()):
        self.missing, self.stopped = missing, False

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlShutdown(self):  # noqa: N802
        self.stopped = True
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):  # noqa: N802
        handle._obj.value = 1
        return 0 if uuid.decode() == UUID_TEXT else 6

    def nvmlSystemGetDriverVersion(self, text, _length):  # noqa: N802
        text.value = b"580.95.05"
        return 0

    def _figure(self, name, value, pointer):
        if name in self.missing:
            return 3
        pointer._obj.value = value
        return 0

    def nvmlDeviceGetClockInfo(self, _handle, kind, pointer):  # noqa: N802
        return self._figure("clock", {1: 2407, 2: 14001}[kind.value], pointer)

    def nvmlDeviceGetMaxClockInfo(self, _handle, _kind, pointer):  # noqa: N802
        return self._figure("highest", 3090, pointer)

    def nvmlDeviceGetPowerUsage(self, _handle, pointer):  # noqa: N802
        return self._figure("power", 412_345, pointer)

    def nvmlDeviceGetEnforcedPowerLimit(self, _handle, pointer):  # noqa: N802
        return self._figure("limit", 575_000, pointer)

    def nvmlDeviceGetTemperature(self, _handle, _sensor, pointer):  # noqa: N802
        return self._figure("temperature", 61, pointer)


def install(monkeypatch, cuda=None, nvml=None):
    """Makes these the libraries that `ctypes.CDLL` finds; None is absent, others load as ever."""
    real = ctypes.CDLL

    def load(name, *arguments, **options):
        for library, double in ((driver.LIBRARY, cuda), (clocks.NVML, nvml)):
            if name == library:
                if double is None:
                    raise OSError(f"{name}: cannot open shared object file")
                return double
        return real(name, *arguments, **options)

    monkeypatch.setattr(ctypes, "CDLL", load)
