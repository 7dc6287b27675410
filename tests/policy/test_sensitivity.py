"""Damage against a direct evaluation of its formula with the numpy formats."""

import numpy as np
import pytest

from mmcompile.formats import BLOCK_FORMATS, THRESHOLDS
from mmcompile.plan import PADDING
from mmcompile.policy import sensitivity
from mmcompile.policy.choices import Order
from mmcompile.policy.order import channel_order, run_bounds
from mmcompile.policy.sensitivity import (
    Sampled,
    Scales,
    channel_damage,
    output_energy,
    responses_of,
    run_damage,
    weight_amax,
)
from mmcompile.quantize import (
    dequantize_blocks,
    nvfp4_tensor_scale,
    quantize_blocks,
    quantize_blocks_searched,
)
from mmcompile.targets.target import FormatPair
from tests import models
from tests.policy.cases import Case

PAIRS = (*(FormatPair(name, name) for name in BLOCK_FORMATS), FormatPair("mxfp8", "mxfp4"))
# The native module's products are fp32 in another order of summation: 64 or so outputs, relative
# to sums that cancel little.
TOLERANCE = {"rtol": 2e-4, "atol": 0}


def rounded(values, order, name, threshold, tensor_scale):
    """Rows in an order and a format, by the numpy reference; searched scales without threshold."""
    real = np.where(order == PADDING, 0, values[:, np.maximum(order, 0)]).astype(np.float32)
    fmt = BLOCK_FORMATS[name]
    scale = tensor_scale if name == "nvfp4" else 1.0
    if threshold is None:
        codes, scales = quantize_blocks_searched(real, fmt, scale)
    else:
        codes, scales = quantize_blocks(real, fmt, threshold, scale)
    return dequantize_blocks(codes, scales, fmt, scale).astype(np.float64)


def direct(case, order, pair, scales, bounds):
    """D[b] = mean over tokens and directions of (Σ_{j∈b} x̂_j·(gŴ)_j − x_j·(gW)_j)²."""
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    weight = case.weight()
    limits = THRESHOLDS[scales.rule]
    x_hat = rounded(rows.activations, order, pair.act, limits[pair.act], scales.act_tensor)
    limit = None if scales.weights == "searched" else limits[pair.weight]
    w_hat = rounded(weight, order, pair.weight, limit, scales.weight_tensor)
    squares = np.zeros(len(bounds) - 1)
    for gradients in rows.gradients:
        for token, g in enumerate(gradients.astype(np.float64)):
            for run in range(squares.size):
                change = 0.0
                for position in range(bounds[run], bounds[run + 1]):
                    change += x_hat[token, position] * (g @ w_hat[:, position])
                    channel = order[position]
                    if channel != PADDING:
                        x = float(rows.activations[token, channel])
                        change -= x * (g @ weight[:, channel].astype(np.float64))
                squares[run] += change**2
    return squares / (rows.gradients.shape[0] * rows.gradients.shape[1])


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path, rows=3)


def scales_of(case, rule="balanced", weights="rule"):
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    return Scales(
        rule,
        nvfp4_tensor_scale(float(np.abs(rows.activations).max())),
        nvfp4_tensor_scale(float(np.abs(case.weight()).max())),
        weights,
    )


@pytest.mark.parametrize(
    ("rule", "weights"), [*((rule, "rule") for rule in THRESHOLDS), ("balanced", "searched")]
)
@pytest.mark.parametrize("order", [Order.NATURAL, Order.SORTED])
def test_run_damage_is_its_formula(case, order, rule, weights):
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    scales = scales_of(case, rule, weights)
    channels = channel_order(np.abs(rows.activations).max(0).astype(float), order, 32)
    bounds = run_bounds(channels.size, 64)
    assert bounds.tolist() == [0, 32, 96]
    formats = tuple(dict.fromkeys(pair.weight for pair in PAIRS))
    responses = responses_of(Sampled(group, case.source, rows), channels, formats, scales)
    found = run_damage(rows, responses, channels, PAIRS, scales, bounds)
    assert found.shape == (2, len(PAIRS))
    for index, pair in enumerate(PAIRS):
        expected = direct(case, channels, pair, scales, bounds)
        assert (expected > 0).all()
        np.testing.assert_allclose(found[:, index], expected, **TOLERANCE)


def test_channel_damage_is_that_of_runs_of_one(case):
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    scales = scales_of(case)
    order = channel_order(np.arange(group.in_channels, dtype=float), Order.SORTED, 32)
    pair = PAIRS[0]
    responses = responses_of(Sampled(group, case.source, rows), order, ["mxfp4"], scales)
    found = channel_damage(rows, responses, order, pair, scales)
    expected = direct(case, order, pair, scales, np.arange(order.size + 1))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)


def test_padding_has_no_damage(tmp_path):
    case = Case(tmp_path)
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    order = channel_order(np.zeros(group.in_channels), Order.NATURAL, 128)
    scales = scales_of(case)
    responses = responses_of(Sampled(group, case.source, rows), order, ["mxfp4"], scales)
    found = channel_damage(rows, responses, order, PAIRS[0], scales)
    assert (found[order == PADDING] == 0).all()
    assert (found[order != PADDING] > 0).all()


def test_weights_are_read_in_blocks(case, monkeypatch):
    """The result does not depend on how many rows are quantized at once."""
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    order = channel_order(np.zeros(group.in_channels), Order.NATURAL, 32)
    whole = responses_of(Sampled(group, case.source, rows), order, ["nvfp4"], scales_of(case))
    monkeypatch.setattr(sensitivity, "WEIGHT_BLOCK", 10 * group.in_channels)
    parts = responses_of(Sampled(group, case.source, rows), order, ["nvfp4"], scales_of(case))
    np.testing.assert_allclose(parts.exact, whole.exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        parts.quantized["nvfp4"], whole.quantized["nvfp4"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("trans_b", [True, False])
def test_either_layout_of_a_weight(tmp_path, trans_b):
    case = Case(tmp_path, models.gemm(trans_b=trans_b, alpha=0.5))
    (group,) = case.groups
    rows = case.samples.groups[group.name]
    np.testing.assert_array_equal(weight_amax(group, case.source), np.abs(case.weight()).max(0))
    energy = np.square(rows.activations.astype(float) @ case.weight().T.astype(float)).sum(1).mean()
    assert output_energy(group, case.source, rows.activations) == pytest.approx(energy, rel=1e-5)
