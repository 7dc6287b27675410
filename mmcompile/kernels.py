"""The kernel library from Python: its C ABI (plugins/include/mmcompile/kernels.h) by ctypes.

For tests and benchmarks, and for whoever wants to run a layer without TensorRT. Arrays are passed
as addresses: `torch.Tensor.data_ptr()`, `cupy.ndarray.data.ptr`, `numpy.ndarray.ctypes.data` (the
last for the emulated library, whose device is the CPU). Needs nothing but the standard library.

    library = KernelLibrary(path)                  # libmmcompile_kernels.so
    device = library.open_device(0)
    linear = library.linear(in_channels, out_channels, segments)
    workspace = torch.empty(linear.workspace_bytes(device, rows), dtype=torch.uint8, device="cuda")
    linear.run(device, Arguments(rows=rows, x=x.data_ptr(), ...))
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from ctypes import POINTER, byref, c_char, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import NamedTuple

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
"""`MmcType`."""

STATUS = {
    1: "invalid argument",
    2: "unsupported",
    3: "workspace too small",
    4: "CUDA error",
    5: "out of memory",
}


class KernelError(RuntimeError):
    """The library refused a call; the text is its sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{STATUS.get(status, f'status {status}')}: {text}")
        self.status = status


class LinearSegment(NamedTuple):
    """A run of ordered channels; formats by id (docs/spec.md, section 2)."""

    channels: int
    act_format: int
    weight_format: int
    act_threshold: float = 2.0


class _Error(ctypes.Structure):
    _fields_ = (("text", c_char * 512),)


class _Segment(ctypes.Structure):
    _fields_ = (
        ("channels", c_int32),
        ("act_format", c_int32),
        ("weight_format", c_int32),
        ("act_threshold", c_float),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("in_channels", c_int64),
        ("out_channels", c_int64),
        ("segments", POINTER(_Segment)),
        ("segment_count", c_int32),
        ("act_tensor_scale", c_float),
        ("weight_tensor_scale", c_float),
    )


class LinearInfo(ctypes.Structure):
    """Sizes of a layer's constants and of its quantized activations (`MmcLinearInfo`)."""

    _fields_ = (
        ("padded_channels", c_int64),
        ("weight_row_bytes", c_int64),
        ("weight_scale_words", c_int64),
        ("act_row_bytes", c_int64),
        ("act_scale_words", c_int64),
    )


class Device(ctypes.Structure):
    """A GPU on which the kernels are loaded (`MmcDevice`)."""

    _fields_ = (("ordinal", c_int32), ("architecture", c_int32), ("multiprocessors", c_int32))


class Arguments(ctypes.Structure):
    """One call (`MmcArguments`); addresses as integers, None for null."""

    _fields_ = (
        ("rows", c_int64),
        ("x_type", c_int32),
        ("y_type", c_int32),
        ("x", c_void_p),
        ("order", c_void_p),
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("y", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
        ("stream", c_void_p),
        ("tactic", c_int32),
    )


class WorkspaceLayout(ctypes.Structure):
    """Offsets of the quantized activations in a workspace (`MmcWorkspaceLayout`)."""

    _fields_ = (
        ("codes", c_size_t),
        ("scales", c_size_t),
        ("counters", c_size_t),
        ("partials", c_size_t),
        ("bytes", c_size_t),
    )


_SIGNATURES = {
    "mmc_linear_create": (c_int32, (POINTER(_Layer), POINTER(c_void_p), POINTER(_Error))),
    "mmc_linear_destroy": (None, (c_void_p,)),
    "mmc_linear_info": (None, (c_void_p, POINTER(LinearInfo))),
    "mmc_device_open": (c_int32, (c_int32, POINTER(Device), POINTER(_Error))),
    "mmc_workspace_bytes": (c_size_t, (c_void_p, POINTER(Device), c_int64)),
    "mmc_workspace_layout": (
        None,
        (c_void_p, POINTER(Device), c_int64, POINTER(WorkspaceLayout)),
    ),
    "mmc_tactic_count": (c_int32, (POINTER(Device),)),
    "mmc_tactic_name": (c_char_p, (c_int32,)),
    "mmc_choose_tactic": (c_int32, (c_void_p, POINTER(Device), c_int64)),
    "mmc_describe_launch": (
        c_size_t,
        (c_void_p, POINTER(Device), c_int64, c_int32, c_char_p, c_size_t),
    ),
    "mmc_architectures": (c_char_p, ()),
} | {
    name: (c_int32, (c_void_p, POINTER(Device), POINTER(Arguments), POINTER(_Error)))
    for name in ("mmc_linear_run", "mmc_quantize_run", "mmc_gemm_run")
}


class KernelLibrary:
    """A loaded kernel library.

    Args:
        path: `libmmcompile_kernels.so`, or the emulated library of the tests.

    Raises:
        OSError: the file is missing or not such a library.
    """

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.functions, name)
            function.restype = result
            function.argtypes = arguments

    @property
    def architectures(self) -> str:
        """The GPU architectures that the library was compiled for."""
        return str(self.functions.mmc_architectures().decode())

    def open_device(self, ordinal: int = 0) -> Device:
        """Loads the kernels on a GPU.

        Raises:
            KernelError: there is no such GPU, or no kernel for it.
        """
        device = Device()
        self.call("mmc_device_open", ordinal, byref(device))
        return device

    def tactics(self, device: Device) -> tuple[str, ...]:
        """Names of the tile shapes that a device has; tactic i + 1 is entry i."""
        count = self.functions.mmc_tactic_count(byref(device))
        return tuple(self.functions.mmc_tactic_name(i + 1).decode() for i in range(count))

    def linear(
        self,
        in_channels: int,
        out_channels: int,
        segments: Iterable[LinearSegment],
        act_tensor_scale: float = 1.0,
        weight_tensor_scale: float = 1.0,
    ) -> Linear:
        """A layer; needs no GPU.

        Raises:
            KernelError: the kernels cannot run such a layer.
        """
        array = [_Segment(*segment) for segment in segments]
        layer = _Layer(
            in_channels,
            out_channels,
            (_Segment * len(array))(*array),
            len(array),
            act_tensor_scale,
            weight_tensor_scale,
        )
        handle = c_void_p()
        self.call("mmc_linear_create", byref(layer), byref(handle))
        return Linear(self, handle)

    def call(self, name: str, *arguments: object) -> None:
        """Calls a function that takes an error last.

        Raises:
            KernelError: it failed.
        """
        error = _Error()
        status = getattr(self.functions, name)(*arguments, byref(error))
        if status != 0:
            raise KernelError(status, error.text.decode(errors="replace"))


class Linear:
    """A layer of a `KernelLibrary`."""

    def __init__(self, library: KernelLibrary, handle: c_void_p) -> None:
        self._library = library
        self._handle = handle
        self.info = LinearInfo()
        library.functions.mmc_linear_info(handle, byref(self.info))

    def __del__(self) -> None:
        self._library.functions.mmc_linear_destroy(self._handle)

    def workspace_bytes(self, device: Device, rows: int) -> int:
        """Bytes of workspace for up to `rows` rows."""
        return int(self._library.functions.mmc_workspace_bytes(self._handle, byref(device), rows))

    def workspace_layout(self, device: Device, rows: int) -> WorkspaceLayout:
        """Where `quantize` leaves codes and scales."""
        layout = WorkspaceLayout()
        self._library.functions.mmc_workspace_layout(
            self._handle, byref(device), rows, byref(layout)
        )
        return layout

    def choose_tactic(self, device: Device, rows: int) -> int:
        """The tactic that 0 stands for."""
        return int(self._library.functions.mmc_choose_tactic(self._handle, byref(device), rows))

    def describe(self, device: Device, rows: int, tactic: int = 0) -> str:
        """What a tactic would launch."""
        text = ctypes.create_string_buffer(512)
        self._library.functions.mmc_describe_launch(
            self._handle, byref(device), rows, tactic, text, len(text)
        )
        return text.value.decode()

    def run(self, device: Device, arguments: Arguments) -> None:
        """Y = x · Wᵀ + bias + residual, enqueued on the stream."""
        self._library.call("mmc_linear_run", self._handle, byref(device), byref(arguments))

    def quantize(self, device: Device, arguments: Arguments) -> None:
        """The first half: x → workspace."""
        self._library.call("mmc_quantize_run", self._handle, byref(device), byref(arguments))

    def gemm(self, device: Device, arguments: Arguments) -> None:
        """The second half: workspace → y."""
        self._library.call("mmc_gemm_run", self._handle, byref(device), byref(arguments))
