"""Error feedback over whole rows against GPTQ as it was published, in float64.

The reference is written from the paper (Frantar et al. 2022, algorithm 1), not from LDLQ as the
module is: with T the upper Cholesky factor of H⁻¹ = TᵀT, channel i is rounded, its error divided by
T[i, i] and taken off all later channels in proportion to T[i, i+1:]. Elements are rounded by
ml_dtypes; the block scales are those of docs/spec.md, chosen when the first channel of a block is
reached; of two scales the one with the smaller sum of squared divided errors stays.

The paper does not say what a block's scale is chosen from. The module takes
w_k + Σ_i (w_i − ŵ_i)·U[i, k] over the channels i of earlier blocks, U = T⁻¹·diag(T): equal to
GPTQ's own corrected weight at a block's first channel, without the block's own feedback at others.

The module works in fp32 with an fp32 factor. A value u near the middle of two codes may be rounded
to the other one, and then all later codes of the row differ for good reason. So codes are compared
with the reference led along the module's own choices, block by block (`guided`), and the outcome
of a run on its own by its objective.
"""

import ml_dtypes
import numpy as np
import pytest

from mmcompile import _native
from mmcompile.packed import dequantize_rows, native_segments
from mmcompile.quantize import unpack_codes
from mmcompile.weights.feedback import PANEL, round_with_feedback
from mmcompile.weights.hessian import Factor, factorize, hessian
from tests.node_models import group, permute
from tests.weights.test_hessian import damped, inputs, reference, unit_upper

ELEMENTS = {
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp8": ml_dtypes.float8_e4m3fn,
    "nvfp4": ml_dtypes.float4_e2m1fn,
}
EMAX = {"mxfp4": 2, "mxfp6_e2m3": 2, "mxfp6_e3m2": 4, "mxfp8": 8}
TENSOR_SCALE = 2.0**-10
DAMPING = 0.05
OBJECTIVE = 1e-3
"""By how much the objective of rows may differ of which some took another code at a near tie."""


def same(channels, name, how, threshold=1.75):
    """A segment of one format, whose activations are another's to tell the sides apart."""
    return (channels, "mxfp8", name, 1.5, threshold, how)


PLANS = {
    **{
        f"{name} {how}": [same(224, name, how)] for name in ELEMENTS for how in ("rule", "searched")
    },
    "unequal": [
        same(32, "nvfp4", "searched"),
        same(96, "mxfp4", "rule"),
        same(PANEL + 32, "mxfp6_e3m2", "searched"),
        same(32, "mxfp6_e2m3", "rule", 1.875),
        same(2 * PANEL, "mxfp8", "searched"),
    ],
    "short": [same(96, "nvfp4", "rule"), same(32, "mxfp8", "rule"), same(32, "mxfp4", "searched")],
    "ocp": [same(160, "mxfp4", "rule", 2.0), same(32, "mxfp6_e2m3", "rule", 2.0)],
}


def planned(segments, padding=0, outputs=48, seed=3):
    """A plan with its channels shuffled, padding among them."""
    padded = sum(segment[0] for segment in segments)
    order = np.r_[np.arange(padded - padding), np.full(padding, -1)]
    order = np.random.default_rng(seed).permutation(order)
    return group(segments, order, outputs, weight_scale=TENSOR_SCALE)


def problem(plan, damping=DAMPING):
    """Weight and sampled inputs in the plan's order: float32[N, K_pad], float32[R, K_pad]."""
    order = plan.channel_order()
    rows = permute(inputs(1000, plan.in_channels, seed=1), order)
    random = np.random.default_rng(2)
    weight = random.standard_normal((sum(plan.out_channels), plan.in_channels))
    weight *= 0.02 * np.exp(random.normal(0, 0.5, plan.in_channels))
    return permute(weight.astype(np.float32), order), rows, damped(rows, damping)


def round_packed(weight, plan, factor):
    """What `round_with_feedback` packs, into arrays as `pack` gives it: a slice of scales' rows."""
    codes = np.zeros((len(weight), plan.row_bytes), np.uint8)
    scales = np.zeros((plan.scale_words, len(weight) + 5, 4), np.uint8)
    round_with_feedback(weight, plan, factor, codes, scales[:, 2:-3])
    assert not scales[:, :2].any()
    assert not scales[:, -3:].any()
    return codes, scales[:, 2:-3]


def unpacked(codes, scales, plan):
    """Values[N, K_pad] and scale bytes per segment[N, blocks] of packed rows, by ml_dtypes."""
    values, all_bytes = [], []
    byte = word = 0
    for segment in plan.segments:
        element = ELEMENTS[segment.weight_format]
        bits, block = segment.weight.element.bits, segment.weight.block
        row = codes[:, byte : byte + segment.row_bytes]
        used = segment.channels * bits // 8
        assert not row[:, used:].any()  # up to 16 bytes
        elements = unpack_codes(np.ascontiguousarray(row[:, :used]), bits).view(element)
        words = scales[word : word + segment.scale_words].transpose(1, 0, 2)
        words = words.reshape(len(codes), -1)
        blocks = segment.channels // block
        assert not words[:, blocks:].any()  # up to 4 bytes
        scale = scale_values(words[:, :blocks], segment.weight_format)
        values.append(elements.astype(np.float64) * np.repeat(scale, block, axis=1))
        all_bytes.append(words[:, :blocks])
        byte += segment.row_bytes
        word += segment.scale_words
    assert (byte, word) == (codes.shape[1], len(scales))
    return np.concatenate(values, axis=1), all_bytes


def scale_values(scale_bytes, name):
    if name == "nvfp4":
        codes = np.ascontiguousarray(scale_bytes).view(ml_dtypes.float8_e4m3fn)
        return codes.astype(np.float64) * TENSOR_SCALE
    return np.exp2(scale_bytes.astype(np.float64) - 127)


def candidate_bytes(amax, segment):
    """Scale bytes of blocks that reach amax[N], one by rule or two if searched."""
    searched = segment.weight_scales == "searched"
    if segment.weight_format == "nvfp4":
        units = [amax / TENSOR_SCALE / largest for largest in ((6, 4) if searched else (6,))]
        return [np.minimum(u, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8) for u in units]
    mantissa, exponent = np.frexp(amax)
    byte = exponent - 1 - EMAX[segment.weight_format] + 127
    carry = 2 * mantissa > segment.weight_threshold if segment.weight_threshold < 2 else 0
    found = [byte, byte + 1] if searched else [byte + carry]
    return [np.where(amax > 0, b, 0).astype(np.uint8) for b in found]


def nearest(values, scale, name):
    """Values rounded to elements times scale[N], saturating."""
    element = ELEMENTS[name]
    largest = float(ml_dtypes.finfo(element).max)
    scaled = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    return np.clip(scaled, -largest, largest).astype(element).astype(np.float64) * scale


def gptq(weight, matrix, plan, guide=None):
    """GPTQ on block formats, in float64.

    With `guide`, values[N, K_pad] of packed rows, the errors that later blocks see are the guide's.

    Returns values[N, K_pad] and scale bytes per segment.
    """
    work = weight.astype(np.float64)
    cholesky = np.linalg.cholesky(np.linalg.inv(matrix)).T
    feedback = np.linalg.inv(cholesky) * np.diag(cholesky)
    rounded = np.zeros_like(work)
    all_bytes, start = [], 0
    for segment in plan.segments:
        block, chosen_bytes = segment.weight.block, []
        for first in range(start, start + segment.channels, block):
            part = slice(first, first + block)
            kept = rounded if guide is None else guide
            begun = weight[:, part] + (weight - kept)[:, :first] @ feedback[:first, part]
            np.testing.assert_allclose(begun[:, 0], work[:, first], rtol=1e-9, atol=1e-12)
            candidates = candidate_bytes(np.abs(begun).max(1), segment)
            tries = [
                _round_block(work[:, part], cholesky[part, part], byte, segment.weight_format)
                for byte in candidates
            ]
            second = np.zeros(len(work), bool) if len(tries) == 1 else tries[1][1] < tries[0][1]
            rounded[:, part] = np.where(second[:, None], tries[-1][0], tries[0][0])
            chosen_bytes.append(np.where(second, candidates[-1], candidates[0]))
            for channel in range(first, first + block):
                error = (work[:, channel] - kept[:, channel]) / cholesky[channel, channel]
                work[:, channel + 1 :] -= np.outer(error, cholesky[channel, channel + 1 :])
        all_bytes.append(np.stack(chosen_bytes, axis=1))
        start += segment.channels
    return rounded, all_bytes


def _round_block(values, cholesky, scale_byte, name):
    """One block under given scales: values, and the sum of squared divided errors."""
    values = values.copy()
    scale = scale_values(scale_byte, name)
    rounded, loss = np.zeros_like(values), np.zeros(len(values))
    for channel in range(values.shape[1]):
        rounded[:, channel] = nearest(values[:, channel], scale, name)
        error = (values[:, channel] - rounded[:, channel]) / cholesky[channel, channel]
        values[:, channel + 1 :] -= np.outer(error, cholesky[channel, channel + 1 :])
        loss += error**2
    return rounded, loss


def objective(weight, rounded, matrix):
    difference = rounded - weight.astype(np.float64)
    return float(((difference @ matrix) * difference).sum())


def plainly_rounded(weight, plan):
    """Values and bytes of rounding to nearest, of a weight in the plan's order."""
    codes = np.empty((len(weight), plan.row_bytes), np.uint8)
    scales = np.empty((plan.scale_words, len(weight), 4), np.uint8)
    segments = native_segments(plan.segments, "weight")
    order = np.arange(weight.shape[1], dtype=np.int32)
    _native.quantize_pack(weight, False, order, segments, TENSOR_SCALE, codes, scales, 1)
    return codes, scales


@pytest.mark.parametrize("padding", [0, 13])
@pytest.mark.parametrize("name", PLANS)
def test_rounding_is_gptq(name, padding):
    plan = planned(PLANS[name], padding)
    weight, rows, matrix = problem(plan)
    factor = factorize(hessian(rows), DAMPING)
    codes, scales = round_packed(weight, plan, factor)
    found, found_bytes = unpacked(codes, scales, plan)
    np.testing.assert_array_equal(found, dequantize_rows(codes, scales.copy(), plan))
    assert not found[:, plan.channel_order() < 0].any()

    # With U off by δ, a feedback of up to K terms, errors of a step or so, is off by √K·δ steps. u
    # is rounded to the other of two codes where their middle lies within this on either side, and
    # may then take the rest of its block with it: share = 2·√K·δ·block.
    upper, _ = reference(matrix)
    delta = np.abs(unit_upper(factor) - upper).max()
    share = 2 * np.sqrt(len(matrix)) * delta * 32
    assert share < 0.01
    guided, guided_bytes = gptq(weight, matrix, plan, guide=found)
    assert np.mean(guided != found) <= share
    for ours, theirs in zip(found_bytes, guided_bytes, strict=True):
        assert np.mean(ours != theirs) <= share

    alone, _ = gptq(weight, matrix, plan)
    assert objective(weight, found, matrix) == pytest.approx(
        objective(weight, alone, matrix), rel=OBJECTIVE
    )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("rows", [1000, 60])
def test_feedback_is_better_than_rounding_to_nearest(name, rows):
    """In the metric of the Hessian, over all rows; also where inputs are fewer than channels."""
    plan = planned(PLANS[name], padding=13)
    weight, sampled, _ = problem(plan)
    sampled = sampled[:rows]
    matrix = damped(sampled, DAMPING)
    found, _ = unpacked(*round_packed(weight, plan, factorize(hessian(sampled), DAMPING)), plan)
    plain, _ = unpacked(*plainly_rounded(weight, plan), plan)
    assert objective(weight, found, matrix) < 0.95 * objective(weight, plain, matrix)


@pytest.mark.parametrize("name", PLANS)
def test_without_correlation_feedback_is_rounding_to_nearest(name):
    """H = I leaves nothing to feed back, and a block's loss is its squared error."""
    plan = planned(PLANS[name], padding=13)
    weight, _, _ = problem(plan)
    channels = weight.shape[1]
    identity = Factor(np.eye(channels, dtype=np.float32), np.ones(channels, np.float32))
    codes, scales = round_packed(weight, plan, identity)
    plain_codes, plain_scales = plainly_rounded(weight, plan)
    np.testing.assert_array_equal(scales, plain_scales)
    np.testing.assert_array_equal(codes, plain_codes)


def test_entries_below_the_diagonal_mean_nothing():
    plan = planned(PLANS["unequal"])
    weight, rows, _ = problem(plan)
    factor = factorize(hessian(rows), DAMPING)
    codes, scales = round_packed(weight, plan, factor)
    noise = np.random.default_rng(5).standard_normal(factor.upper.shape).astype(np.float32)
    other = Factor(np.triu(factor.upper, 1) + np.tril(noise), factor.diagonal)
    other_codes, other_scales = round_packed(weight, plan, other)
    np.testing.assert_array_equal(codes, other_codes)
    np.testing.assert_array_equal(scales, other_scales)


def test_rows_do_not_depend_on_each_other():
    """`pack` hands over blocks of rows; only sums of BLAS differ in their order."""
    plan = planned(PLANS["unequal"])
    weight, rows, matrix = problem(plan)
    factor = factorize(hessian(rows), DAMPING)
    whole, _ = unpacked(*round_packed(weight, plan, factor), plan)
    parts = [unpacked(*round_packed(part, plan, factor), plan)[0] for part in np.split(weight, 3)]
    joined = np.concatenate(parts)
    assert objective(weight, joined, matrix) == pytest.approx(
        objective(weight, whole, matrix), rel=OBJECTIVE
    )


def test_the_weight_is_not_changed():
    plan = planned(PLANS["short"])
    weight, rows, _ = problem(plan)
    weight.flags.writeable = False
    before = weight.copy()
    round_packed(weight, plan, factorize(hessian(rows), DAMPING))
    np.testing.assert_array_equal(weight, before)
