"""A layer with its arguments in memory, and calls on it: what they write is poisoned and guarded.

The self-test, the tests on a GPU and the benchmarks all call the kernels through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.layers import LayerShape, Place
from mmcompile.cuda.machine import ALIGNMENT, Block, Enqueue, Machine
from mmcompile.cuda.number_types import NUMBER_TYPES, BitArray
from mmcompile.kernels import BFLOAT16, Arguments, LinearInfo, WorkspaceLayout

Bytes = npt.NDArray[np.uint8]
POISON = 0xFF
"""Filled with it all floats are NaN, all E8M0 scales too, and counters are far from zero."""
GUARD = 0xA5
"""Fills the bands around a result."""


class Disagreement(AssertionError):
    """A kernel's result is not what it must be; the text says where."""


@dataclass(frozen=True)
class Constants:
    """Packed constants: order int32[K_pad], weight [N, bytes], scales [words, N, 4], bias [N]."""

    order: npt.NDArray[np.int32]
    weight: Bytes
    scales: Bytes
    bias: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Inputs:
    """What a call gets beside the constants.

    Attributes:
        x: bits of x[M, K]; read by nobody where only the GEMM runs.
        types: `MmcType` of x, and of y and the residual.
        residual: bits of residual[M, N].
        in_place: the residual lies in y.
        offset: elements by which x lies behind an aligned address.
        y_offset: the same of y.
    """

    x: BitArray
    types: tuple[int, int]
    residual: BitArray | None = None
    in_place: bool = False
    offset: int = 0
    y_offset: int = 0


def random_constants(random: np.random.Generator, shape: LayerShape, info: LinearInfo) -> Constants:
    """Codes and scales of ordinary size, none of them NaN: for timing, not for values."""
    rows = shape.out_channels
    weight = random.integers(0, 256, (rows, info.weight_row_bytes), np.uint8)
    scales = random.integers(118, 126, (info.weight_scale_words, rows, 4), np.uint8)
    order = random.permutation(shape.padded_channels).astype(np.int32)
    # Without the highest exponent bit no code of E4M3 is NaN.
    return Constants(order, weight & np.uint8(0xBF), scales)


def random_inputs(random: np.random.Generator, shape: LayerShape, rows: int) -> Inputs:
    """An x in bf16 of ordinary size, exponents of 2^-4 to 2^3, for a y in bf16: for timing."""
    x = random.integers(0x3D80, 0x4180, (rows, shape.in_channels), np.uint16)
    return Inputs(x, (BFLOAT16, BFLOAT16))


def copy_calls(machine: Machine, size: int, copies: int = 1) -> list[Enqueue]:
    """Copies of so many bytes, each from memory of its own into memory of its own.

    Raises:
        MemoryError: there is not so much.
    """
    pairs = [(machine.allocate(size), machine.allocate(size)) for _ in range(copies)]
    for _, source in pairs:
        machine.fill(source.address, size, 1)
    return [partial(_copy, machine, target, source) for target, source in pairs]


def _copy(machine: Machine, target: Block, source: Block, stream: int | None) -> None:
    machine.copy(target.address, source.address, source.size, stream)


class Guarded:
    """Poisoned memory for a result, between two bands that nobody may write."""

    def __init__(self, machine: Machine, size: int) -> None:
        self._machine = machine
        self._block = machine.allocate(size + 2 * ALIGNMENT)
        self.size = size
        self.address = self._block.address + ALIGNMENT
        self.poison()

    def poison(self, value: int = POISON) -> None:
        """Fills the memory with a byte, and the bands anew."""
        self._machine.fill(self._block.address, self._block.size, GUARD)
        self._machine.fill(self.address, self.size, value)

    def read(self) -> Bytes:
        """The bytes, after all that was enqueued.

        Raises:
            Disagreement: the bands are not as they were.
        """
        everything = self._machine.read(self._block.address, self._block.size)
        bands = np.delete(everything, slice(ALIGNMENT, ALIGNMENT + self.size))
        if touched := np.count_nonzero(bands != GUARD):
            raise Disagreement(f"{touched} bytes around a result were written")
        return everything[ALIGNMENT : ALIGNMENT + self.size]


class DeviceLayer:
    """A layer in memory, for some rows.

    Args:
        place: where.
        shape: the layer.
        constants: its weights.
        inputs: x, and what is added to the product.
        copies: of the constants, of x and of the workspace, so that they outgrow a cache.

    Attributes:
        arguments: of a call, one per copy.
        y: memory of the result, which all copies share.
        workspace: the first copy's.

    Raises:
        MemoryError: they do not fit.
        KernelError: the library cannot run such a layer.
        Disagreement: the library wants constants of another size.
    """

    def __init__(
        self,
        place: Place,
        shape: LayerShape,
        constants: Constants,
        inputs: Inputs,
        copies: int = 1,
    ) -> None:
        self.place, self.shape, self.constants, self.inputs = place, shape, constants, inputs
        self.rows = len(inputs.x)
        self.linear = shape.create(place.library)
        info = self.linear.info
        _same_size(constants.weight.shape[1], info.weight_row_bytes, "bytes of a row of weights")
        _same_size(len(constants.scales), info.weight_scale_words, "words of scales of weights")
        self._kept: list[Block] = []
        x_type, y_type = inputs.types
        element = NUMBER_TYPES[y_type].size
        self._y_skip = inputs.y_offset * element
        self.y = Guarded(place.machine, self._y_skip + self.rows * shape.out_channels * element)
        y = self.y.address + self._y_skip
        size = self.linear.workspace_bytes(place.device, self.rows)
        workspaces = [Guarded(place.machine, size) for _ in range(copies)]
        self.workspace, self._workspaces = workspaces[0], workspaces
        residual = y if inputs.in_place else self._upload(inputs.residual)
        order, bias = self._upload(constants.order), self._upload(constants.bias)
        self.arguments = [
            Arguments(
                rows=self.rows,
                x_type=x_type,
                y_type=y_type,
                x=self._upload(inputs.x, inputs.offset * inputs.x.itemsize),
                order=order,
                weight=self._upload(constants.weight),
                scales=self._upload(constants.scales),
                bias=bias,
                residual=residual,
                y=y,
                workspace=workspace.address,
                workspace_bytes=size,
            )
            for workspace in workspaces
        ]

    def _upload(self, array: npt.NDArray[np.generic] | None, offset: int = 0) -> int | None:
        if array is None:
            return None
        block = self.place.machine.allocate(array.nbytes + offset)
        self._kept.append(block)
        self.place.machine.write(block.address + offset, array)
        return block.address + offset

    @property
    def layout(self) -> WorkspaceLayout:
        """Where quantizing leaves its results."""
        return self.linear.workspace_layout(self.place.device, self.rows)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one copy of the weights and their scales."""
        return self.constants.weight.nbytes + self.constants.scales.nbytes

    def describe(self, tactic: int) -> str:
        """Sizes, tile and splits, in a line."""
        launch = self.linear.describe(self.place.device, self.rows, tactic).split(", ")[:3]
        sizes = f"M {self.rows}", f"N {self.shape.out_channels}", f"K {self.shape.in_channels}"
        return ", ".join((*sizes, *launch))

    def calls(self, function: str, tactic: int = 0) -> list[Enqueue]:
        """`run`, `quantize` or `gemm`, one call per copy."""
        return [partial(self._enqueue, each, function, tactic) for each in self.arguments]

    def enqueue(self, function: str = "run", tactic: int = 0, stream: int | None = None) -> None:
        """One call on the first copy; on the emulator it has run when this returns."""
        self._enqueue(self.arguments[0], function, tactic, stream)

    def _enqueue(
        self, arguments: Arguments, function: str, tactic: int, stream: int | None
    ) -> None:
        arguments.stream, arguments.tactic = stream, tactic
        getattr(self.linear, function)(self.place.device, arguments)

    def refresh(self, poison: int = POISON) -> None:
        """Poisons y and the first workspace; a residual in y is written anew."""
        self.y.poison(poison)
        self.workspace.poison(poison)
        self.restore_residual()

    def restore_residual(self) -> None:
        """Writes a residual that lies in y anew."""
        if self.inputs.in_place and self.inputs.residual is not None:
            self.place.machine.write(self.y.address + self._y_skip, self.inputs.residual)

    def write_x(self, x: BitArray) -> None:
        """Another x of the same size and type, for the first copy."""
        self.place.machine.write(int(self.arguments[0].x or 0), x)

    def run(self, tactic: int = 0) -> BitArray:
        """The whole layer on poisoned memory; bits of y[M, N]."""
        self.refresh()
        self.enqueue("run", tactic)
        return self.result()

    def quantize(self, tactic: int = 0) -> tuple[Bytes, Bytes]:
        """The first half on poisoned memory; see `quantized`."""
        self.refresh()
        self.enqueue("quantize", tactic)
        return self.quantized()

    def gemm(self, codes: Bytes, scales: Bytes, tactic: int = 0) -> BitArray:
        """The second half, on activations from the host and memory that is poison elsewhere.

        Raises:
            Disagreement: the library wants activations of another size.
        """
        info, layout, machine = self.linear.info, self.layout, self.place.machine
        _same_size(codes.shape[1], info.act_row_bytes, "bytes of a row of activations")
        _same_size(len(scales), info.act_scale_words, "words of scales of activations")
        self.refresh()
        start = self.workspace.address
        machine.write(start + layout.codes, codes)
        machine.write(start + layout.scales, scales)
        # As quantizing leaves them.
        machine.fill(start + layout.counters, layout.partials - layout.counters, 0)
        self.enqueue("gemm", tactic)
        return self.result()

    def quantized(self) -> tuple[Bytes, Bytes]:
        """Codes uint8[M, row_bytes] and scales uint8[words, M, 4] that quantizing has left."""
        info, layout, everything = self.linear.info, self.layout, self.workspace.read()
        codes = everything[layout.codes :][: self.rows * info.act_row_bytes]
        scales = everything[layout.scales :][: info.act_scale_words * self.rows * 4]
        return codes.reshape(self.rows, -1), scales.reshape(-1, self.rows, 4)

    def result(self) -> BitArray:
        """Bits of y[M, N], once all is done."""
        bits = NUMBER_TYPES[self.inputs.types[1]].bits
        return self.y.read()[self._y_skip :].view(bits).reshape(self.rows, self.shape.out_channels)


def _same_size(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise Disagreement(f"{found} {what}; the library wants {wanted}")
