"""fp32, fp16 and bf16 as bits, against numpy and ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest

from mmcompile.cuda.number_types import NUMBER_TYPES, narrow, widen
from mmcompile.kernels import BFLOAT16, FLOAT16, FLOAT32

ORACLES = {FLOAT32: np.float32, FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}


@pytest.mark.parametrize("kind", ORACLES)
def test_limits(kind):
    found, oracle = NUMBER_TYPES[kind], ml_dtypes.finfo(ORACLES[kind])
    assert found.size == np.dtype(ORACLES[kind]).itemsize
    assert found.roundoff == float(oracle.eps) / 2
    assert found.half_step == float(oracle.smallest_subnormal) / 2
    assert found.largest == float(oracle.max)


@pytest.mark.parametrize("kind", [FLOAT16, BFLOAT16])
def test_all_codes_widen_and_come_back(kind):
    codes = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        wide = widen(codes, kind)
        np.testing.assert_array_equal(wide, codes.view(ORACLES[kind]).astype(np.float32))
        numbers = codes[~np.isnan(wide)]
        np.testing.assert_array_equal(narrow(wide, kind)[~np.isnan(wide)], numbers)
        assert np.isnan(widen(narrow(wide[np.isnan(wide)], kind), kind)).all()


@pytest.mark.parametrize("kind", ORACLES)
def test_numbers_and_ties_round_to_nearest_even(kind):
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 100_000, np.uint32)
    bits[::2] = bits[::2] & 0xFFFF8000 | 0x8000  # ties of bf16
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.arange(-2049, 2050) + np.float32(0.5)])
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float32).astype(ORACLES[kind])
    same = narrow(values, kind)
    np.testing.assert_array_equal(same, wanted.view(same.dtype))
