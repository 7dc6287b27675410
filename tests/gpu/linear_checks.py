"""mmc_linear_run: the whole layer from x to y, alone, repeated, and beside other work."""

from __future__ import annotations

from functools import partial

import numpy as np

from mmcompile.cuda.number_types import NUMBER_TYPES, narrow, widen
from mmcompile.doctor.cases import Extras, linear_case
from mmcompile.doctor.checks import Size, layers
from mmcompile.doctor.compare import same_bits, same_numbers
from mmcompile.doctor.trial import Check, Trial
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32
from tests.gpu.mixes import MIXES, layer

REPEATS = 20
SMALL = (
    Size(1, 33, 256),
    Size(4, 48, 352, missing=3),
    Size(18, 70, 160, missing=1),
    Size(35, 31, 192, missing=5),
    Size(2, 40, 2080),
)
LARGE = (
    Size(1, 4096, 14336),
    Size(5, 6144, 4096),
    Size(16, 1023, 4096, missing=1),
    Size(64, 2048, 4096),
    Size(333, 1001, 2048, missing=3),
    Size(1500, 768, 1024, missing=7),
)


def _nan_rows(trial: Trial, x_type: int) -> None:
    """Rows of x with NaN or infinity answer NaN, the others what they did without."""
    random = trial.random
    for rows, mix in ((9, "micromix"), (40, "every_pair"), (2, "nvfp4")):
        shape = layer(mix, 320, 36, 2)
        made = linear_case(trial, shape, rows, (x_type, x_type), Extras(bias=True)).layer
        x = made.inputs.x
        chosen = sorted(random.choice(rows, max(rows // 4, 1), replace=False).tolist())
        special = narrow(np.array([np.nan, np.inf, -np.inf], np.float32), x_type)
        spoiled = x.copy()
        for i, row in enumerate(chosen):
            spoiled[row, random.integers(x.shape[1])] = special[i % 3]
        sound = np.setdiff1d(np.arange(rows), chosen)
        for part in trial.tactics(made):
            with part:
                made.write_x(x)
                before = made.run(part.tactic)
                made.write_x(spoiled)
                y = made.run(part.tactic)
                assert np.isnan(widen(y[chosen], x_type)).all(), f"rows {chosen} are not all NaN"
                same_bits(y[sound], before[sound])


def _repeated(trial: Trial, mix: str) -> None:
    """The same bits in every run, whatever the workspace held before and the threads' order is."""
    place = trial.place
    large = (Size(3, 4096, 4096), Size(16, 512, 14336), Size(300, 1000, 2048))
    for size in (Size(3, 48, 2080),) if place.emulated else large:
        shape = layer(mix, size.channels, size.out_channels)
        types, extras = (BFLOAT16, FLOAT32), Extras(bias=True)
        made = linear_case(trial, shape, size.rows, types, extras).layer
        for part in trial.tactics(made):
            with part:
                first = made.run(part.tactic)
                for run in range(1, 4 if place.emulated else REPEATS):
                    trial.reschedule()
                    made.refresh(poison=(0x00, 0xFF, 0x7F, 0x01)[run % 4])
                    made.enqueue("run", part.tactic)
                    same_bits(made.result(), first, f"values of y in run {run}")


def _rows_apart(trial: Trial, mix: str) -> None:
    """A row's answer does not depend on what else is in the batch, with one tactic and split."""
    made = linear_case(trial, layer(mix, 512, 40), 24, (FLOAT16, FLOAT16)).layer
    x = made.inputs.x
    for part in trial.tactics(made):
        with part:
            made.write_x(x)
            y = made.run(part.tactic)
            made.write_x(np.roll(x, 5, axis=0))
            same_numbers(made.run(part.tactic), np.roll(y, 5, axis=0), FLOAT16)


def _turns(x_type: int) -> tuple[tuple[int, int], ...]:
    return ((x_type, x_type), (x_type, BFLOAT16), (x_type, FLOAT32))


CHECKS = [
    *(
        Check(
            f"linear/bounded/{mix}/{kind.name}",
            partial(layers, split=split, types=_turns(x_type), sizes=SMALL),
        )
        for mix, split in MIXES.items()
        for x_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(
            f"linear/bounded_large/{mix}/{kind.name}",
            partial(layers, split=MIXES[mix], types=_turns(x_type), sizes=LARGE),
            gpu_only=True,
        )
        for mix in ("mxfp4", "mxfp8", "micromix", "every_pair")
        for x_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(f"linear/nan_rows/{kind.name}", partial(_nan_rows, x_type=x_type))
        for x_type, kind in NUMBER_TYPES.items()
    ),
    *(
        Check(f"linear/repeated/{mix}", partial(_repeated, mix=mix))
        for mix in ("micromix", "every_pair")
    ),
    *(
        Check(f"linear/rows_apart/{mix}", partial(_rows_apart, mix=mix))
        for mix in ("micromix", "nvfp4")
    ),
]
