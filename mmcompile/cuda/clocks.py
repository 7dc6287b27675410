"""Clocks, power and temperature of a GPU by NVML, or by nvidia-smi where NVML does not load."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import byref, c_uint, c_void_p
from dataclasses import dataclass

NVML = "libnvidia-ml.so.1"
SMI_SECONDS = 20.0
# nvmlClockType_t and nvmlTemperatureSensors_t of nvml.h
_SM, _MEMORY, _CORE = 1, 2, 0
_QUERY = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,driver_version"


@dataclass(frozen=True)
class Clocks:
    """A reading; None for what the GPU does not tell.

    Attributes:
        sm_mhz: clock of the multiprocessors.
        highest_sm_mhz: the highest that the GPU offers.
        memory_mhz: clock of the memory.
        power_w: power drawn.
        power_limit_w: where the GPU lowers its clocks.
        temperature_c: of the chip.
        driver: version of the driver.
        source: who said so.
    """

    sm_mhz: float | None = None
    highest_sm_mhz: float | None = None
    memory_mhz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    driver: str | None = None
    source: str = "unknown: neither NVML nor nvidia-smi answers"


def read_clocks(uuid: str) -> Clocks:
    """The GPU's clocks now; `uuid` as `GpuFacts` has it, since numbers differ between libraries."""
    return _by_nvml(uuid) or _by_smi(uuid) or Clocks()


def _by_nvml(uuid: str) -> Clocks | None:
    try:
        nvml = ctypes.CDLL(NVML)
        if nvml.nvmlInit_v2():
            return None
    except (OSError, AttributeError):
        return None
    try:
        handle = c_void_p()
        if nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), byref(handle)):
            return None

        def figure(function: str, *arguments: int, scale: float = 1.0) -> float | None:
            value = c_uint()
            status = getattr(nvml, function)(handle, *map(c_uint, arguments), byref(value))
            return None if status else value.value * scale

        version = ctypes.create_string_buffer(96)
        nvml.nvmlSystemGetDriverVersion(version, c_uint(len(version)))
        return Clocks(
            sm_mhz=figure("nvmlDeviceGetClockInfo", _SM),
            highest_sm_mhz=figure("nvmlDeviceGetMaxClockInfo", _SM),
            memory_mhz=figure("nvmlDeviceGetClockInfo", _MEMORY),
            power_w=figure("nvmlDeviceGetPowerUsage", scale=1e-3),
            power_limit_w=figure("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3),
            temperature_c=figure("nvmlDeviceGetTemperature", _CORE),
            driver=version.value.decode() or None,
            source="NVML",
        )
    finally:
        nvml.nvmlShutdown()


def _by_smi(uuid: str) -> Clocks | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--id={uuid}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    fields = [field.strip() for field in done.stdout.strip().split(",")]
    if len(fields) != len(_QUERY.split(",")):
        return None
    sm, highest, memory, power, limit, temperature = map(_number, fields[:-1])
    return Clocks(sm, highest, memory, power, limit, temperature, fields[-1], "nvidia-smi")


def _number(text: str) -> float | None:
    """A figure; `[N/A]` and the like are none."""
    try:
        return float(text)
    except ValueError:
        return None
