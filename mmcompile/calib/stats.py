"""`ActivationStats`: what calibration learned about the inputs of the linear layers.

The statistics of a tensor take O(K) numbers and a bounded sample of token rows, whatever the
amount of data. They are mergeable: merging is associative and commutative, so that shards of the
data can be calibrated apart.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmcompile.cache import save_arrays
from mmcompile.dtypes import F32, F64
from mmcompile.errors import UsageError

STATS_VERSION = 1

_READ_ERRORS = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,  # zipfile: encrypted, or an unknown compression
    TypeError,  # an array file instead of an archive of arrays
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class TensorStats:
    """Statistics of one activation tensor with K channels.

    Attributes:
        samples: runs of the model that were counted.
        tokens: rows (tokens) that were counted; padding is not.
        mean_abs: float64[K], the largest over all samples of the sample's mean |x|: the paper's
            measure of a channel's magnitude.
        abs_sum: float64[K], the sum of |x| over all tokens.
        abs_max: float32[K], the largest |x|.
        square_sum: float64[K], the sum of x² over all tokens.
        ratios: the thresholds whose exceedances were counted.
        exceed: int64[len(ratios)], number of elements with |x| > ratio · (their token's max |x|).
        rows: float32[R, K], a uniform sample of token rows, R bounded.
        row_keys: float64[R], the random key of every sampled row; the rows with the largest keys
            of all data are kept, which makes the sample mergeable.
    """

    samples: int
    tokens: int
    mean_abs: F64
    abs_sum: F64
    abs_max: F32
    square_sum: F64
    ratios: tuple[float, ...]
    exceed: npt.NDArray[np.int64]
    rows: F32
    row_keys: F64

    @property
    def channels(self) -> int:
        """K."""
        return int(self.abs_max.size)

    def exceed_share(self, ratio: float) -> float:
        """Share of all elements with |x| > ratio · their token's max |x|, in [0, 1]."""
        try:
            count = self.exceed[self.ratios.index(ratio)]
        except ValueError:
            raise UsageError(
                "threshold-not-counted",
                f"threshold {ratio:g}",
                "the calibration statistics did not count it",
                "calibrate again with the policy that asks for it",
            ) from None
        return float(count) / max(1, self.tokens * self.channels)


def merge(first: TensorStats, second: TensorStats, max_rows: int) -> TensorStats:
    """The statistics of both sets of data together.

    Raises:
        UsageError: the two were not taken alike.
    """
    if first.ratios != second.ratios or first.channels != second.channels:
        raise UsageError(
            "stats-mismatch",
            "calibration statistics",
            "two shards differ in channels or thresholds",
            "calibrate all shards with the same model and policy",
        )
    keys = np.concatenate([first.row_keys, second.row_keys])
    kept = np.sort(np.argsort(keys, kind="stable")[::-1][:max_rows])
    return TensorStats(
        samples=first.samples + second.samples,
        tokens=first.tokens + second.tokens,
        mean_abs=np.maximum(first.mean_abs, second.mean_abs),
        abs_sum=first.abs_sum + second.abs_sum,
        abs_max=np.maximum(first.abs_max, second.abs_max),
        square_sum=first.square_sum + second.square_sum,
        ratios=first.ratios,
        exceed=first.exceed + second.exceed,
        rows=np.concatenate([first.rows, second.rows])[kept],
        row_keys=keys[kept],
    )


@dataclass(frozen=True)
class ActivationStats:
    """Statistics of all tensors that feed linear layers.

    Attributes:
        tensors: by `WatchedTensor.key`, which is the tensor's name.
        description: where the data came from.
        fit: False where the inputs were random numbers.
        masked_tokens: padding positions that were not counted.
    """

    tensors: Mapping[str, TensorStats]
    description: str
    fit: bool
    masked_tokens: int

    @property
    def samples(self) -> int:
        """Samples of the tensor that saw most."""
        return max((stats.samples for stats in self.tensors.values()), default=0)

    @property
    def tokens(self) -> int:
        """Tokens of the tensor that saw most."""
        return max((stats.tokens for stats in self.tensors.values()), default=0)

    def save(self, path: Path) -> None:
        """Writes the statistics as .npz (beside, then renamed)."""
        arrays: dict[str, npt.ArrayLike] = {
            "header": np.array([str(STATS_VERSION), self.description]),
            "numbers": np.array([int(self.fit), self.masked_tokens], np.int64),
            "names": np.array(list(self.tensors)),
        }
        for index, stats in enumerate(self.tensors.values()):
            for field, value in vars(stats).items():
                arrays[f"{index}.{field}"] = np.asarray(value)
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> ActivationStats:
        """Reads statistics.

        Raises:
            UsageError: the file is missing, damaged or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                version, description = archive["header"].tolist()
                if version != str(STATS_VERSION):
                    raise ValueError(f"version {version}, {STATS_VERSION} is read")
                fit, masked = archive["numbers"].tolist()
                tensors = {
                    name: _read(archive, index)
                    for index, name in enumerate(archive["names"].tolist())
                }
        except _READ_ERRORS as error:
            remedy = "calibrate again; `mmcompile calibrate` writes this file"
            raise UsageError("stats-unreadable", path, str(error), remedy) from error
        return cls(tensors, description, bool(fit), int(masked))


def _read(archive: Mapping[str, np.ndarray], index: int) -> TensorStats:
    fields = {field: archive[f"{index}.{field}"] for field in TensorStats.__dataclass_fields__}
    return TensorStats(
        samples=int(fields["samples"]),
        tokens=int(fields["tokens"]),
        mean_abs=fields["mean_abs"],
        abs_sum=fields["abs_sum"],
        abs_max=fields["abs_max"],
        square_sum=fields["square_sum"],
        ratios=tuple(fields["ratios"].tolist()),
        exceed=fields["exceed"],
        rows=fields["rows"],
        row_keys=fields["row_keys"],
    )
