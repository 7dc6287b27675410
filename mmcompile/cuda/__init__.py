"""The GPU without torch: the driver by ctypes, timing by graphs and events, clocks by NVML."""
