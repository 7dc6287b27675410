"""The factor of a Hessian against float64, and how much memory it takes.

The reference is H = U·diag(D)·Uᵀ by numpy's Cholesky factor of the reversed matrix in float64. For
a damped H with condition number c, what fp32 makes of D is off by K·2⁻²⁴·c relative at most
(Higham, Accuracy and Stability, section 10.1); its rounding errors are random, so that they grow
like √K instead: tests take 4·√K·2⁻²⁴·c, the 4 for the tail.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmcompile.weights.hessian import _STRIP, BLOCK, factorize, hessian

ROOT = Path(__file__).parents[2]
UNIT_ROUNDOFF = 2.0**-24


def inputs(rows, channels, seed=0):
    """Correlated rows whose channels differ in size."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal((rows, 8)) @ random.standard_normal((8, channels))
    sizes = np.exp(random.normal(0, 0.7, channels))
    return ((random.standard_normal((rows, channels)) + 0.3 * shared) * sizes).astype(np.float32)


def damped(rows, damping):
    """XᵀX / R in float64 with the damping that the interface promises."""
    rows = rows.astype(np.float64)
    matrix = rows.T @ rows / len(rows)
    diagonal = np.diag(matrix)
    return matrix + damping * diagonal[diagonal > 0].mean() * np.eye(len(matrix))


def reference(matrix):
    """U and D of U·diag(D)·Uᵀ in float64."""
    upper = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
    root = np.diag(upper)
    return upper / root, root**2


def unit_upper(factor):
    """U of a factor, whose other entries mean nothing."""
    strict = np.triu(factor.upper.astype(np.float64), 1)
    return strict + np.eye(len(strict))


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("channels", [1, 40, 2 * _STRIP + 3])
def test_hessian_is_the_mean_square(channels, rows):
    """On and above the diagonal, strip by strip."""
    values = inputs(rows, channels)
    found = hessian(values)
    assert (found.dtype, found.shape) == (np.float32, (channels, channels))
    assert found.flags.c_contiguous
    exact = values.astype(np.float64)
    # Sums of `rows` products and one division, each rounded.
    bound = (rows + 2) * UNIT_ROUNDOFF * (np.abs(exact).T @ np.abs(exact)) / rows
    assert (np.triu(np.abs(found - exact.T @ exact / rows)) <= bound).all()


def test_hessian_of_nothing_is_zero():
    assert not hessian(np.zeros((0, 3), np.float32)).any()


CASES = {
    "block": (1000, BLOCK, 0.01),
    "several blocks": (1500, 3 * BLOCK, 0.05),
    "no multiple of the block": (1500, 2 * BLOCK + 32, 0.05),
    "smaller than the block": (400, 96, 0.01),
    "one channel": (5, 1, 0.01),
    "rows fewer than channels": (100, BLOCK + 64, 0.05),
    "one row": (1, BLOCK + 64, 0.25),
}


@pytest.mark.parametrize("case", CASES)
def test_factor_is_that_of_float64(case):
    rows, channels, damping = CASES[case]
    values = inputs(rows, channels)
    exact = damped(values, damping)
    expected, diagonal = reference(exact)
    factor = factorize(hessian(values), damping)
    assert factor is not None
    assert factor.upper.dtype == factor.diagonal.dtype == np.float32
    tolerance = 4 * np.sqrt(channels) * UNIT_ROUNDOFF * np.linalg.cond(exact)
    assert tolerance < 0.02
    np.testing.assert_allclose(factor.diagonal, diagonal, rtol=tolerance)
    # A row of U is what least squares gives: its error is in the metric of H, as is D's.
    upper = unit_upper(factor)
    root = np.sqrt(diagonal)
    np.testing.assert_allclose(
        (upper - expected) * root / np.sqrt(np.diag(exact))[:, None], 0, atol=tolerance
    )
    # Backwards: the product is H but for rounding, whatever the condition.
    product = upper * factor.diagonal @ upper.T
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert (np.abs(product - exact) <= 4 * np.sqrt(channels) * UNIT_ROUNDOFF * size).all()


def test_factor_lies_where_the_matrix_did():
    matrix = hessian(inputs(500, 300))
    factor = factorize(matrix, 0.01)
    assert factor is not None
    assert factor.upper is matrix


@pytest.mark.parametrize("channels", [96, 2 * BLOCK + 32])
def test_channels_that_were_never_seen(channels):
    """They get the damping alone, relative to the channels that were seen, and no feedback."""
    values = inputs(600, channels)
    silent = np.array([0, 5, channels // 2, channels - 1])
    values[:, silent] = 0
    factor = factorize(hessian(values), 0.05)
    assert factor is not None
    used = np.square(values.astype(np.float64)).mean(0)
    expected = 0.05 * used[used > 0].mean()
    np.testing.assert_allclose(factor.diagonal[silent], expected, rtol=1e-5)
    upper = unit_upper(factor) - np.eye(channels)
    assert not upper[silent].any()
    assert not upper[:, silent].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 299])
@pytest.mark.filterwarnings("error")
def test_inputs_that_are_not_finite_have_no_factor(poison, place):
    values = inputs(500, 300)
    values[17, place] = poison
    with np.errstate(invalid="ignore"):
        matrix = hessian(values)
    assert factorize(matrix, 0.05) is None


def test_inputs_of_zero_have_no_factor():
    assert factorize(np.zeros((300, 300), np.float32), 0.05) is None


@pytest.mark.parametrize("channels", [64, BLOCK + 64])
@pytest.mark.parametrize("last", [False, True])
def test_a_matrix_that_is_not_definite_has_no_factor(channels, last):
    """In the block that is factored first, or only after it was taken out of the others."""
    matrix = np.eye(channels, dtype=np.float32)
    first, second = (channels - 2, channels - 1) if last else (0, channels - 1)
    matrix[first, second] = matrix[second, first] = 1.5
    assert factorize(matrix, 0.05) is None


def test_what_lies_off_the_diagonal_must_be_finite():
    matrix = np.eye(BLOCK + 64, dtype=np.float32)
    matrix[0, -1] = matrix[-1, 0] = np.nan
    assert factorize(matrix, 0.05) is None


PEAK = """
import sys
import numpy as np
from mmcompile.weights import hessian
channels = int(sys.argv[1])
rows = np.random.default_rng(0).standard_normal((256, channels), np.float32)
small = hessian.hessian(rows[:, :600].copy())  # BLAS has its buffers from here on
assert hessian.factorize(small, 0.05) is not None
del small
def memory(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))
before = memory("VmRSS")
matrix = hessian.hessian(rows)
made = memory("VmHWM")
assert hessian.factorize(matrix, 0.05) is not None
print(made - before, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_hessian_and_its_factor_are_one_array():
    """No second array of K²; only strips, and panels of a block's columns."""
    channels = 6000
    one = 4 * channels**2
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(channels)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    made, factored = map(int, done.stdout.split())
    # The product's buffers in BLAS take a tenth at most.
    assert 0.5 * one <= made <= 1.1 * one
    # A strip of 1024 rows, `above`, `weighted` and their product's operands of 256 columns.
    strips = 4 * channels * (_STRIP + 4 * BLOCK)
    assert factored <= 1.1 * one + strips < 1.5 * one


def test_entries_below_the_diagonal_mean_nothing():
    matrix = hessian(inputs(800, 2 * BLOCK + 32))
    other = np.triu(matrix) + np.tril(np.full_like(matrix, np.nan), -1)
    one, two = factorize(matrix, 0.05), factorize(other, 0.05)
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.diagonal, two.diagonal)
    np.testing.assert_array_equal(np.triu(one.upper, 1), np.triu(two.upper, 1))
