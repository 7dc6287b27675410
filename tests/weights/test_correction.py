"""The correction for rounded inputs, against the regularized least squares that define it."""

import numpy as np
import pytest

from mmcompile.weights import correction as module
from mmcompile.weights.correction import corrected, correction
from mmcompile.weights.hessian import BLOCK, factorize, hessian, solve

R, N = 400, 24


def inputs(channels, seed=0, noise=0.1):
    """Correlated inputs as a layer has them, and the same with rounding errors."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((max(4, channels // 8), channels))
    exact = generator.standard_normal((R, len(mixing))) @ mixing
    exact += 0.1 * generator.standard_normal(exact.shape)
    rounded = exact + noise * np.abs(exact).mean() * generator.standard_normal(exact.shape)
    return exact.astype(np.float32), rounded.astype(np.float32)


@pytest.mark.parametrize("channels", [32, BLOCK, BLOCK + 96, 3 * BLOCK - 32])
def test_solve_is_the_inverse(channels):
    rows = np.random.default_rng(1).standard_normal((2 * channels, channels)).astype(np.float32)
    damped = rows.T.astype(np.float64) @ rows / len(rows)
    damped += 0.05 * np.diag(damped).mean() * np.eye(channels)
    right = np.random.default_rng(2).standard_normal((channels, 7)).astype(np.float32)
    wanted = np.linalg.solve(damped, right.astype(np.float64))
    factor = factorize(hessian(rows), 0.05)
    solve(factor, right)
    # fp32: K·2^-24 times the condition number, at most about 4 / 0.05 here.
    np.testing.assert_allclose(right, wanted, atol=1e-3 * np.abs(wanted).max())


def test_the_whole_step_is_ridge_regression():
    channels, damping = 96, 0.05
    exact, rounded = inputs(channels)
    weight = np.random.default_rng(3).standard_normal((N, channels)).astype(np.float32)
    gain = correction(factorize(hessian(rounded), damping), exact, rounded)
    # min |X̂·w' − X·w|² / R + λ·|w' − w|², as an ordinary least squares with K more rows.
    ridge = np.sqrt(damping * np.square(rounded, dtype=np.float64).mean(axis=0).mean() * R)
    left = np.concatenate([rounded.astype(np.float64), ridge * np.eye(channels)])
    right = np.concatenate([exact @ weight.T.astype(np.float64), ridge * weight.T])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(weight + weight @ gain.T, wanted, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("noise", [0.03, 0.12])
def test_the_share_is_the_best_on_inputs_held_back(noise):
    exact, rounded = inputs(96)
    held, held_rounded = inputs(96, noise=noise)
    weight = np.random.default_rng(3).standard_normal((N, 96)).astype(np.float32)
    gain = correction(factorize(hessian(rounded), 0.05), exact, rounded)
    wanted = held @ weight.T

    def error(candidate):
        return np.square(held_rounded @ candidate.T - wanted, dtype=np.float64).sum()

    found = corrected(weight, gain, held_rounded, wanted)
    tried = [error(weight + t * (weight @ gain.T)) for t in np.linspace(0, 1, 101)]
    assert error(found) <= min(tried) * (1 + 1e-5)
    assert error(found) < 0.98 * error(weight)


def test_a_harmful_step_is_not_taken():
    exact, rounded = inputs(96)
    weight = np.random.default_rng(3).standard_normal((N, 96)).astype(np.float32)
    gain = correction(factorize(hessian(rounded), 0.05), exact, rounded)
    assert np.array_equal(corrected(weight, -gain, rounded, exact @ weight.T), weight)


def test_exact_inputs_leave_the_weight_alone():
    exact, _ = inputs(96)
    weight = np.random.default_rng(3).standard_normal((N, 96)).astype(np.float32)
    gain = correction(factorize(hessian(exact), 0.05), exact, exact)
    assert not gain.any()
    assert np.array_equal(corrected(weight, gain, exact, exact @ weight.T), weight)


def test_very_wide_layers_are_not_corrected(monkeypatch):
    exact, rounded = inputs(96)
    monkeypatch.setattr(module, "MOST_CHANNELS", 64)
    assert correction(factorize(hessian(rounded), 0.05), exact, rounded) is None


@pytest.mark.parametrize(("rows", "corrected"), [(47, False), (48, True)])
def test_few_samples_do_not_correct(rows, corrected):
    exact, rounded = (part[:rows] for part in inputs(96))
    found = correction(factorize(hessian(rounded), 0.05), exact, rounded)
    assert (found is not None) == corrected
