"""mmc_gemm_run on random codes against a float64 product of the values that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np

from mmcompile.cuda.layers import E2M3, E3M2, MXFP4, MXFP8, LayerShape
from mmcompile.cuda.number_types import NUMBER_TYPES, narrow, widen
from mmcompile.doctor.cases import EXTRAS, PLAIN, codes_case, gemm_case, without_x
from mmcompile.doctor.checks import Size, Split, exact
from mmcompile.doctor.compare import same_numbers, within_bound
from mmcompile.doctor.operands import (
    Operand,
    Random,
    act_formats,
    any_operand,
    exact_operand,
    weight_formats,
)
from mmcompile.doctor.trial import Check, Trial
from mmcompile.formats import E4M3_NAN, E8M0_NAN
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32, LinearSegment
from tests.gpu.mixes import MIXES

SMALL = (
    Size(1, 33, 256),
    Size(7, 70, 288),
    Size(16, 64, 128),
    Size(33, 129, 96),
    Size(65, 40, 160),
)
SPLIT = (Size(3, 32, 2080), Size(20, 17, 1568), Size(2, 40, 6176))
LARGE = (
    Size(1, 4096, 4096),
    Size(2, 6144, 4096),
    Size(8, 1001, 14336),
    Size(13, 257, 2048),
    Size(16, 4096, 14336),
    Size(17, 640, 1024),
    Size(100, 2050, 4096),
    Size(129, 384, 352),
    Size(513, 1000, 1024),
    Size(1000, 777, 2048),
    Size(2049, 1031, 512),
)
EXACT = {FLOAT32: SPLIT, FLOAT16: SMALL[1:2], BFLOAT16: SMALL[3:]}
PAIRS = (
    *((format_id, format_id) for format_id in range(4)),
    *((MXFP8, MXFP4), (MXFP4, MXFP8), (E3M2, MXFP4), (MXFP8, E2M3)),
)


def _bounded(trial: Trial, split: Split, y_types: Sequence[int], sizes: Sequence[Size]) -> None:
    """Any codes; where K is short, the bound is tight."""
    for i, size in enumerate(sizes):
        y_type = y_types[i % len(y_types)]
        # fp16 has less range: NVFP4's tensor scale is made smaller.
        shape = size.shape(split, 2.0**-11 if y_type == FLOAT16 else 2.0**-5, 2.0**3)
        extras = EXTRAS[(i + y_type) % 4]
        case = gemm_case(trial, shape, size.rows, y_type, extras, exact=False)
        wanted = case.reference()
        for part in trial.tactics(case.layer):
            with part:
                part.worst = within_bound(case.gemm(part.tactic), y_type, wanted)


def _extreme_scales(trial: Trial, act_format: int, weight_format: int) -> None:
    """Scale bytes at the ends of their range, whose products are ordinary numbers."""
    random = trial.random
    shape = LayerShape(256, 48, (LinearSegment(256, act_format, weight_format),))
    for low in (0, 3, 60, 190, 244):
        act_range = (min(250 - low, 250), min(254 - low, 254) + 1)
        act = any_operand(random, shape, act_formats(shape), 20, act_range)
        weight = any_operand(random, shape, weight_formats(shape), 48, (low, low + 4))
        case = codes_case(trial.place, shape, act, weight, without_x(20, FLOAT32))
        wanted = case.reference()
        for part in trial.tactics(case.layer):
            with part:
                part.worst = within_bound(case.gemm(part.tactic), FLOAT32, wanted)


def _nan_rows(trial: Trial, split: Split) -> None:
    """A NaN block makes its row NaN and leaves every other row what it was, bit for bit."""
    for size in (Size(9, 40, 320), Size(70, 33, 192)):
        shape = size.shape(split, 2.0**-5, 2.0**3)
        case = gemm_case(trial, shape, size.rows, BFLOAT16, PLAIN, exact=False)
        wanted = case.reference()
        assert case.given is not None
        rows = sorted(trial.random.choice(size.rows, size.rows // 4, replace=False).tolist())
        spoiled = dataclasses.replace(case, given=_with_nan(trial.random, case.given, rows))
        sound = np.setdiff1d(np.arange(size.rows), rows)
        for part in trial.tactics(case.layer):
            with part:
                before, y = case.gemm(part.tactic), spoiled.gemm(part.tactic)
                assert np.isnan(widen(y[rows], BFLOAT16)).all(), f"rows {rows} are not all NaN"
                same_numbers(y[sound], before[sound], BFLOAT16)
                part.worst = within_bound(y[sound], BFLOAT16, wanted.rows(sound))


def _with_nan(random: Random, operand: Operand, rows: Sequence[int]) -> Operand:
    """One block of each of these rows is NaN."""
    found = Operand(*(tuple(part.copy() for part in side) for side in dataclasses.astuple(operand)))
    for row in rows:
        segment = int(random.integers(len(found.codes)))
        codes, scales = found.codes[segment][row], found.scales[segment][row]
        length = len(codes) // len(scales)
        block = int(random.integers(len(scales)))
        scales[block] = E8M0_NAN if length == 32 else E4M3_NAN
        codes[block * length : (block + 1) * length] = 0
    return found


def _rounding(trial: Trial, y_type: int) -> None:
    """Sums beyond fp16, and ties of fp16 and bf16: all come from the bias, whatever it is."""
    random, rows = trial.random, 3
    shape = LayerShape(32, 4096, (LinearSegment(32, MXFP8, MXFP8),))
    act = exact_operand(random, shape, act_formats(shape), rows)
    act.codes[0][:] = 0
    weight = exact_operand(random, shape, weight_formats(shape), shape.out_channels)
    bits = random.integers(0, 2**32, shape.out_channels).astype(np.uint32)
    # Half of them within fp16's range, and on its ties: 12 significant bits.
    near = narrow(random.standard_normal(shape.out_channels).astype(np.float32), FLOAT32)
    bits[1::2] = ((near & 0xFFFFF000) | 0x1000)[1::2]
    bias = bits.view(np.float32)
    bias = np.where(np.isfinite(bias), bias, np.float32(0))
    case = codes_case(trial.place, shape, act, weight, without_x(rows, y_type), bias)
    wanted = np.broadcast_to(narrow(bias, y_type), (rows, bias.size))
    for part in trial.tactics(case.layer):
        with part:
            same_numbers(case.gemm(part.tactic), wanted, y_type)


CHECKS = [
    *(
        Check(
            f"gemm/bounded/{mix}/{kind.name}",
            partial(_bounded, split=split, y_types=(y_type,), sizes=SMALL),
        )
        for mix, split in MIXES.items()
        for y_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(
            f"gemm/exact/{mix}/{kind.name}",
            partial(exact, split=split, y_type=y_type, sizes=EXACT[y_type]),
        )
        for mix, split in MIXES.items()
        for y_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(
            f"gemm/exact_large/{mix}/{kind.name}",
            partial(exact, split=MIXES[mix], y_type=y_type, sizes=LARGE[y_type::3]),
            gpu_only=True,
        )
        for mix in ("mxfp4", "mxfp8", "nvfp4", "a8w4", "micromix", "every_pair")
        for y_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(
            f"gemm/bounded_large/{mix}",
            partial(_bounded, split=MIXES[mix], y_types=(FLOAT32, BFLOAT16), sizes=LARGE),
            gpu_only=True,
        )
        for mix in ("mxfp4", "nvfp4", "micromix", "every_pair", "thirty_two")
    ),
    *(
        Check(
            f"gemm/extreme_scales/{a}x{w}", partial(_extreme_scales, act_format=a, weight_format=w)
        )
        for a, w in PAIRS
    ),
    *(Check(f"gemm/nan_rows/{mix}", partial(_nan_rows, split=s)) for mix, s in MIXES.items()),
    *(
        Check(f"gemm/rounding/{kind.name}", partial(_rounding, y_type=y_type))
        for y_type, kind in NUMBER_TYPES.items()
    ),
]
