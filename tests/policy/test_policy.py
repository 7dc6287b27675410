"""From statistics to a plan: channel orders, splits, thresholds and the policies."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.stats import ActivationStats, TensorStats
from mmcompile.errors import ExitCode, UsageError
from mmcompile.formats import BLOCK_FORMATS, THRESHOLDS
from mmcompile.plan import PADDING, LeftAlone, dump_plan, find_problem, load_plan
from mmcompile.policy.choices import Order, Thresholds
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import GRANULARITIES, MicroMixPolicy
from mmcompile.policy.order import channel_order, run_bounds
from mmcompile.policy.registry import DEFAULT, POLICIES, make_policy
from mmcompile.policy.split import Split, split_channels, threshold_ratios
from mmcompile.policy.uniform import UNIFORM
from tests import models
from tests.compiling import prepare
from tests.models import K, N, weight
from tests.policy.cases import evidence_of, stats_of

MAGNITUDE = np.array([3.0, 0.5, 2.0, 0.5, 7.0])


@pytest.mark.parametrize(
    ("order", "channels"),
    [
        (Order.SORTED, [1, 3, 2, 0, 4]),
        (Order.REVERSED, [4, 0, 2, 1, 3]),
        (Order.NATURAL, [0, 1, 2, 3, 4]),
    ],
)
def test_order(order, channels):
    found = channel_order(MAGNITUDE, order, 32)
    assert found.dtype == np.int32
    assert found.tolist() == [PADDING] * 27 + channels


@given(
    st.integers(1, 400),
    st.sampled_from(Order),
    st.sampled_from(GRANULARITIES),
    st.integers(0, 2**32 - 1),
)
def test_every_order_is_a_padded_permutation(channels, order, granularity, seed):
    magnitude = np.random.default_rng(seed).integers(0, 9, channels).astype(np.float64)
    found = channel_order(magnitude, order, granularity)
    padding = -channels % granularity
    assert found.size == channels + padding
    assert (found[:padding] == PADDING).all()
    assert sorted(found[padding:].tolist()) == list(range(channels))
    ordered = magnitude[found[padding:]]
    if order is Order.SORTED:
        assert (np.diff(ordered) >= 0).all()
    if order is Order.REVERSED:
        assert (np.diff(ordered) <= 0).all()
    np.testing.assert_array_equal(found, channel_order(magnitude, order, granularity))


@given(st.integers(1, 60).map(lambda blocks: 32 * blocks), st.sampled_from(GRANULARITIES))
def test_runs_cover_an_order_and_only_the_first_is_short(channels, granularity):
    bounds = run_bounds(channels, granularity)
    assert (bounds[0], bounds[-1]) == (0, channels)
    first, *others = np.diff(bounds)
    assert 0 < first <= granularity
    assert all(length == granularity for length in others)


def test_runs_of_352_channels():
    assert run_bounds(352, 128).tolist() == [0, 96, 224, 352]
    assert run_bounds(96, 128).tolist() == [0, 96]
    assert run_bounds(256, 128).tolist() == [0, 128, 256]


def test_random_order_is_one_and_the_same_shuffle():
    first, second = (channel_order(np.arange(n), Order.RANDOM, 32) for n in (64, 96))
    assert first.tolist() != list(range(64))
    assert second.tolist()[:64] != first.tolist()


def test_published_thresholds():
    low, middle = threshold_ratios(Thresholds.PAPER, 1.0)
    # 2^b · 2^(n−1) / max / 254 for E2M1 (b = 1, n = 4, max 6) and E3M2 (b = 3, n = 6, max 28).
    assert low == pytest.approx(2 * 8 / 6 / 254)
    assert middle == pytest.approx(8 * 32 / 28 / 254)
    assert (round(low, 4), round(middle, 3)) == (0.0105, 0.036)
    low, middle = threshold_ratios(Thresholds.CODE, 1.0)
    assert (round(low, 4), round(middle, 2)) == (0.0729, 0.25)
    assert threshold_ratios(Thresholds.CODE, 0.5) == (low / 2, middle / 2)


@pytest.mark.parametrize(
    ("above_low", "above_middle", "channels", "granularity", "parts"),
    [
        # p8 = ⌈K·r8 / g⌉·g and p6 = ⌈K·r6 / g⌉·g with r8 above T6 and r6 between the thresholds.
        (0.0, 0.0, 256, 32, (256, 0, 0)),
        (0.25, 0.125, 256, 32, (192, 32, 32)),
        (0.25, 0.126, 256, 32, (160, 32, 64)),
        (0.001, 0.0001, 256, 128, (0, 128, 128)),  # the rest is clamped at 0
        (1.0, 1.0, 256, 128, (0, 0, 256)),
        (1.0, 0.0, 256, 128, (0, 256, 0)),
        (1.0, 0.5, 256, 128, (0, 128, 128)),
        (0.9, 0.6, 256, 128, (0, 0, 256)),  # p8 is given first, then p6 has no room
        (0.5, 0.1, 352, 128, (0, 256, 128)),  # K_pad = 384; ⌈352 · 0.4 / 128⌉ = 2 runs
        (0.1, 0.02, 352, 32, (288, 32, 32)),
        (0.1, 0.2, 256, 32, (224, 0, 32)),  # thresholds the wrong way round: r8 ≤ r4 + r6
    ],
)
def test_split(above_low, above_middle, channels, granularity, parts):
    assert split_channels(above_low, above_middle, channels, granularity) == Split(*parts)


share = st.floats(0, 1)


@given(share, share, st.integers(1, 9000), st.sampled_from(GRANULARITIES))
def test_parts_are_multiples_that_sum_to_the_padded_channels(low, middle, channels, granularity):
    split = split_channels(low, middle, channels, granularity)
    parts = (split.p4, split.p6, split.p8)
    padded = -(-channels // granularity) * granularity
    assert sum(parts) == padded
    assert all(part >= 0 and part % granularity == 0 for part in parts)
    # No element above a threshold is without room where its format's share is rounded up.
    assert split.p8 >= min(padded, math.floor(channels * min(low, middle)))
    assert split.p6 + split.p8 >= min(padded, math.floor(channels * low))


@given(st.integers(1, 200), st.integers(0, 300), st.integers(0, 300), st.integers(1, 9))
def test_split_of_exact_shares(runs, eight, six, tokens):
    """Shares that are whole runs of channels get these runs and not one more."""
    channels = 32 * runs
    eight = min(eight, runs)
    six = min(six, runs - eight)
    elements = tokens * channels
    low = 32 * (six + eight) * tokens / elements
    middle = 32 * eight * tokens / elements
    split = split_channels(low, middle, channels, 32)
    assert (split.p6, split.p8) == (32 * six, 32 * eight)
    assert Fraction(split.p4, 32) == runs - six - eight


def activations(channels=K, rows=40, seed=0):
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, 1.5, channels))
    return (random.standard_normal((rows, channels)) * sizes).astype(np.float32)


def planned(tmp_path, policy, rows=None, model=None):
    prepared = prepare(model or models.shared_input(), tmp_path)
    stats = stats_of(activations() if rows is None else rows, policy.ratios)
    return plan_of_one_group(prepared, stats, policy), stats


def plan_of_one_group(prepared, stats, policy):
    (group,) = prepared.groups
    known = ActivationStats({watched_tensor(group).key: stats}, "rows", fit=True, masked_tokens=0)
    (plan,) = policy.plan(evidence_of(prepared, known)).groups
    return plan


@pytest.mark.parametrize("thresholds", Thresholds)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_micromix_counts_shares_over_all_elements(thresholds, granularity, tmp_path):
    policy = MicroMixPolicy(thresholds=thresholds, factor=0.7, granularity=granularity)
    plan, _ = planned(tmp_path, policy)
    x = np.abs(activations())
    t4, t6 = (ratio * x.max(axis=1, keepdims=True) for ratio in threshold_ratios(thresholds, 0.7))
    r8 = float((x > t6).mean())
    r6 = float((x > t4).mean()) - r8
    padded = -(-K // granularity) * granularity
    p8 = min(padded, math.ceil(K * r8 / granularity) * granularity)
    p6 = min(padded - p8, math.ceil(K * r6 / granularity) * granularity)
    lengths = {segment.weight_format: segment.channels for segment in plan.segments}
    expected = {"mxfp4": padded - p8 - p6, "mxfp6_e3m2": p6, "mxfp8": p8}
    assert lengths == {name: size for name, size in expected.items() if size}
    assert list(lengths) == [name for name in expected if name in lengths]  # p4 | p6 | p8
    assert all(s.act_format == s.weight_format for s in plan.segments)
    order = plan.channel_order()
    assert (order[: padded - K] == PADDING).all()
    assert (np.diff(x.mean(axis=0, dtype=np.float64)[order[padded - K :]]) >= 0).all()
    assert plan.figures["share_above_t6"] == pytest.approx(r8)
    assert plan.figures["share_above_t4"] == pytest.approx(r8 + r6)
    assert plan.figures["tokens"] == 40
    assert find_problem(plan) is None


def test_micromix_sorts_by_the_largest_sample_mean(tmp_path):
    """Not by the mean over all tokens: the paper takes the maximum over samples."""
    prepared = prepare(models.matmul(), tmp_path)
    stats = stats_of(activations(), MicroMixPolicy().ratios)
    mean_abs = stats.mean_abs.copy()
    mean_abs[7] = 1e6
    stats = TensorStats(**{**vars(stats), "mean_abs": mean_abs})
    plan = plan_of_one_group(prepared, stats, MicroMixPolicy())
    assert plan.channel_order()[-1] == 7


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_policies(name, tmp_path):
    plan, _ = planned(tmp_path, make_policy(name))
    fmt = {"mxfp6": "mxfp6_e2m3"}.get(name, name)
    (segment,) = plan.segments
    assert (segment.act_format, segment.weight_format, segment.channels) == (fmt, fmt, K)
    assert plan.channel_order().tolist() == list(range(K))
    assert make_policy(name).ratios == ()
    assert (plan.out_channels, plan.nodes, plan.name) == ((N, 32, 32), ("q", "k", "v"), "q+k+v")


@pytest.mark.parametrize("rule", THRESHOLDS)
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_scale_rule_sets_both_sides(name, rule, tmp_path):
    plan, _ = planned(tmp_path, make_policy(name, scale_rule=rule))
    (segment,) = plan.segments
    wanted = THRESHOLDS[rule][name]
    assert (segment.act_threshold, segment.weight_threshold) == (wanted, wanted)


@pytest.mark.parametrize("name", POLICIES)
def test_weights_are_searched_but_for_the_paper(name, tmp_path):
    own = "rule" if name == MicroMixPolicy.NAME else "searched"
    for asked, expected in ((None, own), ("rule", "rule"), ("searched", "searched")):
        policy = make_policy(name, weight_scales=asked)
        assert policy.parameters()["weight_scales"] == expected
        assert policy.segment(32, "mxfp4", "mxfp4").weight_scales == expected
        if name != CostPolicy.NAME:
            plan, _ = planned(tmp_path, policy)
            assert {segment.weight_scales for segment in plan.segments} == {expected}


@pytest.mark.parametrize("channels", [50, 96, 352])
@pytest.mark.parametrize("name", ["mxfp8", MicroMixPolicy.NAME])
def test_one_format_is_padded_to_whole_blocks_and_micromix_to_its_granularity(
    name, channels, tmp_path
):
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="linear")]
    model = models.model_of(nodes, {"W": weight(channels, N)}, x=("rows", channels), y=("rows", N))
    plan, _ = planned(tmp_path, make_policy(name), activations(channels), model)
    multiple = 128 if name == MicroMixPolicy.NAME else 32
    assert plan.channel_order().size == plan.padded_channels == -(-channels // multiple) * multiple
    assert all(segment.channels % multiple == 0 for segment in plan.segments)


@pytest.mark.parametrize(
    ("act", "weights"), [(1.0, 1.0), (300.0, 1e-6), (0.0, 0.0), (2688.0, 5.0), (1.0, -1.0)]
)
def test_nvfp4_tensor_scales_are_the_least_powers_of_two(act, weights, tmp_path):
    x = activations()
    x *= np.float32(act / np.abs(x).max())
    w = weight(K, N)
    w[3, 5] = 4 * np.abs(w).max()
    w *= np.float32(weights / w.max())
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="linear")]
    model = models.model_of(nodes, {"W": w})
    plan, stats = planned(tmp_path, make_policy("nvfp4"), x, model)
    for scale, amax in (
        (plan.act_tensor_scale, stats.abs_max.max()),
        (plan.weight_tensor_scale, np.abs(w).max()),
    ):
        assert math.frexp(scale)[0] == 0.5
        if amax == 0:
            assert scale == 1
        else:
            assert amax <= 448 * 6 * scale < 2 * amax


def test_nvfp4_weight_scale_covers_every_layer_of_a_group(tmp_path):
    model = models.shared_input()
    for tensor in model.graph.initializer:
        if tensor.name == "Wv":
            large = numpy_helper.to_array(tensor) * np.float32(-4096)
            tensor.CopyFrom(numpy_helper.from_array(large, "Wv"))
    plan, _ = planned(tmp_path, make_policy("nvfp4"), model=model)
    amax = np.abs(large).max()
    assert amax <= 448 * 6 * plan.weight_tensor_scale < 2 * amax
    mx, _ = planned(tmp_path, make_policy("mxfp8"), model=model)
    assert (mx.act_tensor_scale, mx.weight_tensor_scale) == (1, 1)


def test_plan_of_a_model(tmp_path):
    prepared = prepare(models.gemm(trans_a=True), tmp_path)
    watched = watched_tensor(prepared.groups[0])
    assert (watched.name, watched.channels, watched.transposed) == ("x", K, True)
    policy = MicroMixPolicy(factor=2.0, order=Order.RANDOM, granularity=32, scale_rule="ocp")
    tensors = {watched.key: stats_of(activations(), policy.ratios)}
    left = (LeftAlone("head", "output-head", "a head"),)
    for fit, note in ((True, "text"), (False, "text (unfit: random numbers)")):
        stats = ActivationStats(tensors, "text", fit, 0)
        plan = policy.plan(evidence_of(prepared, stats, left_alone=left))
        assert plan.calibration == note
        assert plan.left_alone == left
        assert plan.model == "original.onnx"
        assert plan.policy == MicroMixPolicy.NAME
        assert plan.parameters == {
            "granularity": 32,
            "order": "random",
            "scale_rule": "ocp",
            "weight_scales": "rule",
            "thresholds": "code",
            "lambda": 2.0,
        }
        path = tmp_path / "plan.json"
        path.write_text(dump_plan(plan))
        assert load_plan(path) == plan


def test_uniform_policy_has_no_thresholds_among_its_parameters():
    assert make_policy("mxfp4").parameters() == {
        "order": "natural",
        "scale_rule": "balanced",
        "weight_scales": "searched",
    }


def test_statistics_of_other_thresholds_are_refused(tmp_path):
    prepared = prepare(models.matmul(), tmp_path)
    stats = stats_of(activations(), MicroMixPolicy(factor=0.5).ratios)
    with pytest.raises(UsageError, match="did not count it"):
        plan_of_one_group(prepared, stats, MicroMixPolicy())


def test_the_default_is_cost():
    assert make_policy(DEFAULT) == CostPolicy()
    assert next(iter(POLICIES)) == DEFAULT == CostPolicy.NAME


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("mxfp5", {}, "--policy"),
        ("cost", {"granularity": 16}, "--granularity"),
        ("micromix", {"granularity": 16}, "--granularity"),
        ("cost", {"objective": "fast"}, "--objective"),
        ("micromix", {"thresholds": "own"}, "--thresholds"),
        *((name, {"scale_rule": "ceil"}, "--scale-rule") for name in POLICIES),
        *((name, {"weight_scales": "best"}, "--weight-scales") for name in POLICIES),
        *((name, {"order": "upwards"}, "--order") for name in POLICIES),
        ("micromix", {"factor": 0.0}, "--lambda"),
        ("micromix", {"factor": -1.0}, "--lambda"),
        ("micromix", {"factor": math.nan}, "--lambda"),
        ("micromix", {"factor": math.inf}, "--lambda"),
    ],
)
def test_impossible_policies_are_refused(name, options, option):
    with pytest.raises(UsageError) as caught:
        make_policy(name, **options)
    assert caught.value.where == option
    assert caught.value.exit_code == ExitCode.USAGE
