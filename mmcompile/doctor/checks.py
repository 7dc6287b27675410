"""The self-test's checks of every kernel, format and tactic; tests/gpu runs them on more sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from mmcompile.cuda.calls import Inputs
from mmcompile.cuda.layers import MIXES, LayerShape, mixed_segments
from mmcompile.cuda.number_types import NUMBER_TYPES, narrow
from mmcompile.doctor.cases import EXTRAS, Extras, gemm_case, linear_case, quantize_case
from mmcompile.doctor.compare import same_bits, same_numbers, within_bound
from mmcompile.doctor.operands import EXACT_UNIT, X_KINDS, Order, random_order, random_x
from mmcompile.doctor.trial import Check, Trial
from mmcompile.kernels import LinearSegment

Split = Callable[[int], tuple[LinearSegment, ...]]
"""Segments of about so many channels, a multiple of 32."""
LAYER_SCALES = (2.0**-8, 2.0**-6)
"""Tensor scales of activations and weights, small enough for y to fit fp16."""


@dataclass(frozen=True)
class Size:
    """Sizes of a layer and of its x.

    Attributes:
        rows: M.
        out_channels: N.
        channels: K_pad, unless the split takes more.
        missing: channels of them that x does not have.
        offset: elements by which x lies behind an aligned address.
    """

    rows: int
    out_channels: int
    channels: int
    missing: int = 0
    offset: int = 0

    def shape(self, split: Split, *scales: float) -> LayerShape:
        """The layer."""
        segments = split(self.channels)
        padded = sum(segment.channels for segment in segments)
        return LayerShape(padded - self.missing, self.out_channels, segments, *scales)


def gpu_checks() -> Iterator[Check]:
    """The self-test on a GPU."""
    return checks_of(MIXES, [Size(rows, 328, 2080, 3) for rows in (1, 7, 16, 70, 300)])


def emulated_checks() -> Iterator[Check]:
    """The self-test in the emulator, which is a thousand times slower."""
    yield from checks_of(MIXES, [Size(3, 40, 352, 3), Size(18, 40, 352, 3)])
    # Long enough for tiles to split K, which does not depend on formats.
    yield from checks_of(("everything",), [Size(3, 40, 2592)])


def checks_of(mixes: Iterable[str], sizes: Sequence[Size]) -> Iterator[Check]:
    """All kinds of checks on these mixes, types and sizes."""
    for mix in mixes:
        split = partial(mixed_segments, mix)
        for kind, number_type in NUMBER_TYPES.items():
            case, types = f"{mix}/{number_type.name}", ((kind, kind),)
            codes = partial(quantize, split=split, x_type=kind, sizes=sizes)
            yield Check(f"quantize/{case}", codes)
            yield Check(f"gemm/{case}", partial(exact, split=split, y_type=kind, sizes=sizes))
            yield Check(f"layer/{case}", partial(layers, split=split, types=types, sizes=sizes))


def quantize(trial: Trial, split: Split, x_type: int, sizes: Sequence[Size]) -> None:
    """Codes and scale bytes are the reference's, bit for bit."""
    for size in sizes:
        shape = size.shape(split, 2.0**-5, 2.0**3)
        for kind in X_KINDS if size.rows < 40 else (X_KINDS[size.rows % 4],):
            x = random_x(trial.random, kind, size.rows, shape.in_channels, x_type)
            inputs = Inputs(x, (x_type, x_type), offset=size.offset)
            same_quantized(trial, shape, inputs, random_order(trial.random, shape))


def same_quantized(trial: Trial, shape: LayerShape, inputs: Inputs, order: Order) -> None:
    """Codes and scale bytes of one x are the reference's, bit for bit."""
    rows, channels = inputs.x.shape
    name = NUMBER_TYPES[inputs.types[0]].name
    with trial.part(f"{name} x[{rows}, {channels}] + {inputs.offset}"):
        case = quantize_case(trial, shape, inputs, order)
        codes, scales = case.layer.quantize()
        wanted_codes, wanted_scales = case.packed()
        same_bits(scales, wanted_scales, "scale bytes")
        same_bits(codes, wanted_codes, "codes")


def exact(trial: Trial, split: Split, y_type: int, sizes: Sequence[Size]) -> None:
    """Sums that no order and no truncation changes: y is the exact one, rounded once."""
    for i, size in enumerate(sizes):
        extras = EXTRAS[(i + y_type) % 4]
        case = gemm_case(trial, size.shape(split), size.rows, y_type, extras, exact=True)
        wanted = case.reference()
        most = wanted.magnitude.max() / EXACT_UNIT
        assert most < 2**24, f"the operands of this check are too large: {most} units"
        bits = narrow(wanted.exact, y_type)
        for part in trial.tactics(case.layer):
            with part:
                same_numbers(case.gemm(part.tactic), bits, y_type)


def layers(
    trial: Trial, split: Split, types: Sequence[tuple[int, int]], sizes: Sequence[Size]
) -> None:
    """The whole layer is within the bound; its halves, in another order of threads, give the same.

    Types of x and y take turns, and so do kinds of x, but for the last, whose y would be NaN.
    """
    for i, size in enumerate(sizes):
        extras = Extras(bias=i % 2 == 0, residual=i % 3 != 0, in_place=i % 3 == 1)
        shape, chosen = size.shape(split, *LAYER_SCALES), types[i % len(types)]
        case = linear_case(trial, shape, size.rows, chosen, extras, X_KINDS[i % 3])
        wanted, layer = case.reference(), case.layer
        for part in trial.tactics(layer):
            with part:
                y = layer.run(part.tactic)
                part.worst = within_bound(y, chosen[1], wanted)
                trial.reschedule()
                layer.quantize(part.tactic)
                layer.restore_residual()
                layer.enqueue("gemm", part.tactic)
                same_bits(layer.result(), y, "values of y by the halves")
