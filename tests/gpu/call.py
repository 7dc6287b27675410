"""One layer on the machine, with its arguments in memory: everything a call writes is poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mmcompile.cuda.machine import ALIGNMENT, Block
from mmcompile.kernels import FLOAT32, Arguments, Linear, WorkspaceLayout
from mmcompile.quantize import CodeArray
from tests.gpu.layers import Codes, Layer, Order, pack_activations, pack_weights
from tests.gpu.machine import Machine
from tests.gpu.number_types import BITS_TYPE, SIZE, BitArray

POISON = 0xFF
"""Filled with it, all floats are NaN, all E8M0 scales too, and counters are far from zero."""


@dataclass(frozen=True)
class Operands:
    """Host arrays of a call; `x` or `act` may be missing, for calls that do not read them."""

    weight: Sequence[Codes]
    x: BitArray | None = None
    order: Order | None = None
    act: Sequence[Codes] | None = None
    bias: npt.NDArray[np.float32] | None = None
    residual: BitArray | None = None


class Guarded:
    """Memory for results, between two bands that nobody may write."""

    def __init__(self, machine: Machine, size: int, offset: int = 0) -> None:
        self._machine = machine
        self._block = machine.memory.allocate(size + 2 * ALIGNMENT + offset)
        self.size = size
        self.address = self._block.address + ALIGNMENT + offset
        self.poison()

    def poison(self, value: int = POISON) -> None:
        self._machine.memory.fill(self._block.address, self._block.size, 0xA5)
        self._machine.memory.fill(self.address, self.size, value)

    def read(self) -> npt.NDArray[np.uint8]:
        """The bytes; asserts that the bands are as they were."""
        everything = self._machine.memory.read(self._block.address, self._block.size)
        start = self.address - self._block.address
        bands = np.delete(everything, slice(start, start + self.size))
        touched = np.flatnonzero(bands != 0xA5)
        assert touched.size == 0, f"{touched.size} bytes around a result were written"
        return everything[start : start + self.size]


@dataclass
class Call:
    """A layer, its operands on the device, and results.

    Attributes:
        rows: M.
        x_type: `MmcType` of x.
        y_type: `MmcType` of y and of the residual.
        in_place: the residual lies in y.
        x_offset: elements by which x is moved from an aligned address.
    """

    machine: Machine
    layer: Layer
    operands: Operands
    rows: int
    x_type: int = FLOAT32
    y_type: int = FLOAT32
    in_place: bool = False
    x_offset: int = 0
    linear: Linear = field(init=False)
    arguments: Arguments = field(init=False)
    y: Guarded = field(init=False)
    workspace: Guarded = field(init=False)

    def __post_init__(self) -> None:
        self.linear = self.layer.create(self.machine)
        self._blocks: list[Block] = []
        given = self.operands
        weight, scales = pack_weights(given.weight, self.layer)
        info = self.linear.info
        assert weight.shape[1] == info.weight_row_bytes, "bytes of a row of weights"
        assert scales.shape[0] == info.weight_scale_words, "words of scales of weights"
        self.y = Guarded(self.machine, self.rows * self.layer.out_channels * SIZE[self.y_type])
        self.workspace = Guarded(
            self.machine, self.linear.workspace_bytes(self.machine.device, self.rows)
        )
        residual = None if given.residual is None else self._upload(given.residual)
        x = given.x if given.x is not None else np.zeros(1, BITS_TYPE[self.x_type])
        order = given.order if given.order is not None else np.zeros(4, np.int32)
        self.arguments = Arguments(
            rows=self.rows,
            x_type=self.x_type,
            y_type=self.y_type,
            x=self._upload(x, self.x_offset * SIZE[self.x_type]),
            order=self._upload(order),
            weight=self._upload(weight),
            scales=self._upload(scales),
            bias=None if given.bias is None else self._upload(given.bias),
            residual=self.y.address if self.in_place else residual,
            y=self.y.address,
            workspace=self.workspace.address,
            workspace_bytes=self.workspace.size,
        )

    def _upload(self, array: npt.NDArray[np.generic], offset: int = 0) -> int:
        block = self.machine.memory.allocate(array.nbytes + offset)
        self._blocks.append(block)
        self.machine.memory.write(block.address + offset, array)
        return block.address + offset

    @property
    def layout(self) -> WorkspaceLayout:
        return self.linear.workspace_layout(self.machine.device, self.rows)

    def refresh(self, poison: int = POISON) -> None:
        """Poisons y and the workspace; an in-place residual is written anew."""
        self.y.poison(poison)
        self.workspace.poison(poison)
        if self.in_place:
            assert self.operands.residual is not None
            self.machine.memory.write(self.y.address, self.operands.residual)

    def run(self, tactic: int = 0, stream: int | None = None) -> BitArray:
        """The whole layer; bits of y[M, N]."""
        self.refresh()
        self.enqueue(tactic, stream)
        return self.result()

    def enqueue(self, tactic: int = 0, stream: int | None = None) -> None:
        """The whole layer, onto a stream; on the emulator it has run when this returns."""
        self.arguments.tactic = tactic
        self.arguments.stream = stream
        self.linear.run(self.machine.device, self.arguments)

    def quantize(self, tactic: int = 0) -> tuple[CodeArray, CodeArray]:
        """The first half: codes uint8[M, row_bytes], scales uint8[words, M, 4]."""
        self.refresh()
        self.arguments.tactic = tactic
        self.linear.quantize(self.machine.device, self.arguments)
        return self.activations()

    def activations(self) -> tuple[CodeArray, CodeArray]:
        """What is left of them in the workspace."""
        info, layout, everything = self.linear.info, self.layout, self.workspace.read()
        codes = everything[layout.codes :][: self.rows * info.act_row_bytes]
        scales = everything[layout.scales :][: info.act_scale_words * self.rows * 4]
        shape = (info.act_scale_words, self.rows, 4)
        return codes.reshape(self.rows, -1), scales.reshape(shape)

    def gemm(self, tactic: int = 0) -> BitArray:
        """The second half on activations from the host, in a workspace that is poison elsewhere."""
        assert self.operands.act is not None
        self.refresh()
        self.place_activations()
        self.arguments.tactic = tactic
        self.linear.gemm(self.machine.device, self.arguments)
        return self.result()

    def place_activations(self) -> None:
        """Writes them, and zeroes the counters, as mmc_quantize_run would."""
        assert self.operands.act is not None
        codes, scales = pack_activations(self.operands.act, self.layer)
        layout, memory = self.layout, self.machine.memory
        assert codes.shape[1] == self.linear.info.act_row_bytes, "bytes of a row of activations"
        memory.write(self.workspace.address + layout.codes, codes)
        memory.write(self.workspace.address + layout.scales, scales)
        start = self.workspace.address + layout.counters
        memory.fill(start, layout.partials - layout.counters, 0)

    def result(self) -> BitArray:
        """Bits of y[M, N], once all is done."""
        found = self.y.read().view(BITS_TYPE[self.y_type])
        return found.reshape(self.rows, self.layer.out_channels)
