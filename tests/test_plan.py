import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcompile.errors import ExitCode, UsageError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.plan import (
    PADDING,
    GroupPlan,
    LeftAlone,
    QuantPlan,
    Segment,
    describe_split,
    diff_plans,
    dump_plan,
    format_order,
    load_plan,
)
from tests import models
from tests import node_models as nm
from tests.compiling import compiled, prepare
from tests.models import feeds
from tests.running import run

replace = msgspec.structs.replace


def segment(channels=32, act="mxfp8", weight=None, act_threshold=1.75, weight_threshold=1.75):
    return Segment(channels, act, weight or act, act_threshold, weight_threshold)


def group(name="a", nodes=("a",), **changes):
    base = GroupPlan(
        name=name,
        input="x",
        nodes=nodes,
        in_channels=60,
        out_channels=(16,) * len(nodes),
        order=format_order([*range(60)[::-1], *[PADDING] * 4]),
        segments=(segment(32, "mxfp4"), segment(32, "mxfp8", "mxfp6_e2m3", 2.0, 1.875)),
        figures={"tokens": 12.0, "share_above_t4": 0.125},
    )
    return replace(base, **changes)


def plan(*groups, **changes):
    base = QuantPlan(
        version=1,
        model="model.onnx",
        policy="micromix",
        parameters={"lambda": 0.5, "granularity": 32, "order": "sorted"},
        calibration="8 samples of text.txt",
        groups=groups or (group(), group("q+k", ("q", "k"), act_tensor_scale=2.0**-7)),
        left_alone=(LeftAlone("head", "output-head", "leads to a graph output"),),
    )
    return replace(base, **changes)


def reloaded(text, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_plan(path)


def test_plan_survives_the_file(tmp_path):
    text = dump_plan(plan())
    assert reloaded(text, tmp_path) == plan()
    assert dump_plan(reloaded(text, tmp_path)) == text
    assert text.endswith("}\n")
    assert list(json.loads(text)["groups"][0]) == list(GroupPlan.__struct_fields__)
    order_lines = [line for line in text.splitlines() if '"order": "59 58' in line]
    assert len(order_lines) == 2  # one line per group, however many channels it has


@st.composite
def plans(draw):
    groups = []
    for index in range(draw(st.integers(0, 3))):
        parts = draw(
            st.lists(
                st.builds(
                    Segment,
                    st.sampled_from([32, 64, 96]),
                    st.sampled_from(sorted(BLOCK_FORMATS)),
                    st.sampled_from(sorted(BLOCK_FORMATS)),
                    st.floats(1, 2),
                    st.floats(1, 2),
                    st.sampled_from(["rule", "searched"]),
                ).filter(lambda s: (s.act_format == "nvfp4") == (s.weight_format == "nvfp4")),
                min_size=1,
                max_size=4,
            )
        )
        padded = sum(part.channels for part in parts)
        channels = draw(st.integers(1, padded))
        order = np.random.default_rng(draw(st.integers(0, 99))).permutation(
            [*range(channels), *[PADDING] * (padded - channels)]
        )
        nodes = tuple(f"{index}.{n}" for n in range(draw(st.integers(1, 3))))
        groups.append(
            GroupPlan(
                name=f"group {index} ‹é›",
                input=draw(st.text(max_size=5)),
                nodes=nodes,
                in_channels=channels,
                out_channels=tuple(draw(st.integers(1, 9)) for _ in nodes),
                order=format_order(order),
                segments=tuple(parts),
                act_tensor_scale=2.0 ** draw(st.integers(-100, 100)),
                weight_tensor_scale=2.0 ** draw(st.integers(-100, 100)),
                figures=draw(st.dictionaries(st.text(max_size=3), st.floats(-1e30, 1e30))),
            )
        )
    return plan(groups=tuple(groups))


@settings(max_examples=50, deadline=None)
@given(plans())
def test_any_plan_survives_the_file(tmp_path_factory, made):
    loaded = reloaded(dump_plan(made), tmp_path_factory.getbasetemp())
    assert loaded == made
    assert loaded.digest() == made.digest()
    assert diff_plans(made, loaded) == []
    for one in loaded.groups:
        assert one.channel_order().dtype == np.int32
        assert one.channel_order().size == one.padded_channels


def test_sizes_and_bits():
    one = group()
    # 32 codes of 4 bits, and 32 of 6 bits with 8 bytes of padding; a word of one scale for each.
    assert (one.row_bytes, one.scale_words, one.padded_channels) == (16 + 32, 2, 64)
    assert one.packed_bytes == 16 * 56
    assert one.weight_bits() == pytest.approx(8 * 56 / 60)
    assert one.act_bits() == pytest.approx((32 * 4.25 + 32 * 8.25) / 60)
    fp4 = group(segments=(segment(64, "nvfp4"),))
    assert (fp4.row_bytes, fp4.scale_words) == (32, 1)  # one scale byte per 16
    assert fp4.act_bits() == pytest.approx(64 * 4.5 / 60)
    both = plan(one, group("b", ("b", "c"), segments=(segment(64, "mxfp8"),)))
    bits = 8 * (16 * 56 + 32 * (64 + 4)) / (60 * 48)
    assert both.mean_weight_bits() == pytest.approx(bits)
    assert plan(groups=()).mean_weight_bits() == 0


ORDER = [*range(60)[::-1], *[PADDING] * 4]
INCONSISTENT = {
    "unknown activation format": {"segments": (segment(64, "mxfp5", "mxfp8"),)},
    "unknown weight format": {"segments": (segment(64, "mxfp8", "MXFP8"),)},
    "nvfp4 activations, other weights": {"segments": (segment(64, "nvfp4", "mxfp4"),)},
    "nvfp4 weights, other activations": {
        "segments": (segment(32), segment(32, "mxfp8", "nvfp4")),
    },
    "segment of no channels": {"segments": (segment(64), segment(0))},
    "negative segment": {"segments": (segment(96), segment(-32))},
    "segment no multiple of 32": {"segments": (segment(48), segment(16))},
    "no segments": {"segments": ()},
    "activation threshold below 1": {"segments": (segment(64, act_threshold=0.99),)},
    "weight threshold above 2": {"segments": (segment(64, weight_threshold=2.01),)},
    "order shorter than segments": {"order": format_order(ORDER[:-1])},
    "order longer than segments": {"order": format_order([*ORDER, PADDING])},
    "no order": {"order": ""},
    "channel twice": {"order": format_order([0, *ORDER[1:]])},
    "channel twice, padding once less": {"order": format_order([*ORDER[:-1], 5])},
    "channel missing": {"order": format_order([PADDING, *ORDER[1:]])},
    "channel out of range": {"order": format_order([60, *ORDER[1:]])},
    "negative channel": {"order": format_order([*ORDER[:-1], -2])},
    "order of words": {"order": "a " + format_order(ORDER[1:])},
    "order of fractions": {"order": "59.0 " + format_order(ORDER[1:])},
    "order of huge numbers": {"order": "99999999999999999999 " + format_order(ORDER[1:])},
    "no input channels": {"in_channels": 0},
    "other input channels": {"in_channels": 59},
    "no output channels": {"out_channels": (0,)},
    "negative output channels": {"out_channels": (-16,)},
    "more widths than nodes": {"out_channels": (16, 16)},
    "more nodes than widths": {"nodes": ("a", "b"), "out_channels": (16,)},
    "no nodes": {"nodes": (), "out_channels": ()},
    "scale of zero": {"act_tensor_scale": 0.0},
    "negative scale": {"weight_tensor_scale": -0.5},
    "scale no power of two": {"act_tensor_scale": 0.3},
    "tiny scale": {"weight_tensor_scale": 2.0**-101},
    "huge scale": {"act_tensor_scale": 2.0**101},
}


@pytest.mark.parametrize("fault", INCONSISTENT)
def test_inconsistent_group_is_refused_in_one_line(fault, tmp_path):
    broken = plan(group("fine", ("f",)), group("broken", **INCONSISTENT[fault]))
    with pytest.raises(UsageError) as caught:
        reloaded(dump_plan(broken), tmp_path)
    error = caught.value
    assert (error.code, error.exit_code) == ("plan-inconsistent", ExitCode.USAGE)
    assert error.where.endswith("plan.json, group broken")
    assert "\n" not in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize(("act", "weights"), [("nvfp4", "mxfp4"), ("mxfp8", "nvfp4")])
def test_nvfp4_on_one_side_only_says_why(act, weights, tmp_path):
    broken = plan(group("qkv", segments=(segment(64, act, weights),)))
    with pytest.raises(UsageError) as caught:
        reloaded(dump_plan(broken), tmp_path)
    error = caught.value
    assert error.where.endswith("plan.json, group qkv")
    assert error.reason == (
        f"a segment of {act} activations and {weights} weights, "
        "which no tensor-core instruction multiplies; give both block scales alike"
    )


def test_sizes_of_padded_segments():
    """A 6-bit segment of an odd number of 32 channels is padded, a last word of scales filled."""
    for channels, name, row_bytes, words in [
        (32, "mxfp4", 16, 1),
        (32, "mxfp6_e2m3", 32, 1),
        (64, "mxfp6_e3m2", 48, 1),
        (96, "mxfp6_e3m2", 80, 1),
        (128, "mxfp8", 128, 1),
        (160, "mxfp8", 160, 2),
        (32, "nvfp4", 16, 1),
        (64, "nvfp4", 32, 1),
        (96, "nvfp4", 48, 2),
    ]:
        one = segment(channels, name)
        assert (one.row_bytes, one.scale_words) == (row_bytes, words)


def test_groups_that_share_a_name_or_a_node_are_refused(tmp_path):
    with pytest.raises(UsageError, match="two groups share the name a;"):
        reloaded(dump_plan(plan(group(), group(nodes=("b",)))), tmp_path)
    with pytest.raises(UsageError, match="two groups hold the node k;"):
        reloaded(dump_plan(plan(group("a", ("q", "k")), group("b", ("k",)))), tmp_path)
    with pytest.raises(UsageError, match="two groups hold the node q;"):
        reloaded(dump_plan(plan(group("a", ("q", "q")))), tmp_path)


MALFORMED = {
    "empty": b"",
    "no JSON": b"plan: 1",
    "a list": b"[]",
    "truncated": dump_plan(plan())[:-20].encode(),
    "no UTF-8": dump_plan(plan()).replace("head", "h\xe4").encode("latin-1"),
    "no version": b'{"model": "m"}',
    "version in words": b'{"version": "1"}',
    "missing field": b'{"version": 1, "model": "m"}',
    "unknown field": dump_plan(plan()).replace('"policy"', '"politics"').encode(),
    "misspelt field of a group": dump_plan(plan()).replace('"out_channels"', '"outs"').encode(),
    "number as text": dump_plan(plan())
    .replace('"in_channels": 60', '"in_channels": "60"')
    .encode(),
    "scales of weights that are none": dump_plan(plan()).replace('"rule"', '"best"').encode(),
    "fraction as number": dump_plan(plan()).replace(": 60", ": 60.5").encode(),
    "threshold no number": dump_plan(plan()).replace(": 1.875", ": NaN").encode(),
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_file_is_refused_in_one_line(fault, tmp_path):
    with pytest.raises(UsageError) as caught:
        reloaded(MALFORMED[fault], tmp_path)
    assert caught.value.code == "plan-malformed"
    assert "\n" not in str(caught.value)


def test_plans_from_before_weight_scales_follow_the_rule(tmp_path):
    text = dump_plan(plan())
    without = "\n".join(line for line in text.splitlines() if '"weight_scales"' not in line)
    without = without.replace('"weight_threshold": 1.75,', '"weight_threshold": 1.75')
    without = without.replace('"weight_threshold": 1.875,', '"weight_threshold": 1.875')
    assert len(without) < len(text) - 100
    assert reloaded(without, tmp_path) == plan()
    assert all(s.weight_scales == "rule" for g in plan().groups for s in g.segments)


def test_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(UsageError) as caught:
            load_plan(path)
        assert caught.value.code == "plan-unreadable"
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("more", ["", ', "groups": [], "field_of_tomorrow": 1'])
def test_other_version_is_named_before_anything_else(more, tmp_path):
    with pytest.raises(
        UsageError, match="plan version 2, this mmcompile reads version 1"
    ) as caught:
        reloaded(f'{{"version": 2{more}}}', tmp_path)
    assert caught.value.code == "plan-version"


def test_digest_is_of_the_decision_only():
    digest = plan().digest()
    assert digest == plan(group(figures={}), plan().groups[1]).digest()
    assert digest == plan(model="b", policy="x", parameters={}, left_alone=()).digest()
    assert len({digest, plan(group()).digest(), *map(digest_with, CHANGES)}) == 2 + len(CHANGES)


def digest_with(change):
    return plan(group(**CHANGES[change]), plan().groups[1]).digest()


CHANGES = {
    "other channel counts": {"out_channels": (17,)},
    "another channel order": {"order": format_order(ORDER[::-1])},
    "32×mxfp4 + 32×mxfp8/mxfp6_e2m3 → 64×mxfp4": {"segments": (segment(64, "mxfp4"),)},
    "other block scales": {"segments": (segment(32, "mxfp4"), segment(32, "mxfp8", "mxfp6_e2m3"))},
    "act_tensor_scale 1 → 0.5": {"act_tensor_scale": 0.5},
    "weight_tensor_scale 1 → 4": {"weight_tensor_scale": 4.0},
    "covers other nodes": {"nodes": ("other",)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_diff_names_what_changed(change):
    old = plan()
    new = plan(group(**CHANGES[change]), old.groups[1])
    assert diff_plans(old, new) == [f"a: {change}"]


def test_searched_scales_are_a_difference():
    searched = tuple(replace(s, weight_scales="searched") for s in group().segments)
    old, new = plan(group()), plan(group(segments=searched))
    assert diff_plans(old, new) == ["a: other block scales"]
    assert old.digest() != new.digest()


def test_diff_of_another_input_names_the_nodes():
    assert diff_plans(plan(group()), plan(group(input="z"))) == ["a: covers other nodes"]


def test_diff_of_plans_that_cover_other_groups():
    old, new = plan(group(), group("b", ("b",))), plan(group("b", ("b",)), group("c", ("c",)))
    assert diff_plans(old, new) == [
        "a: no longer rewritten",
        "c: now rewritten, 32×mxfp4 + 32×mxfp8/mxfp6_e2m3",
    ]
    assert diff_plans(old, replace(old, policy="mxfp8")) == ["policy: micromix → mxfp8"]
    assert diff_plans(old, old) == []


def test_diff_is_empty_where_only_figures_and_layout_of_text_differ():
    spaced = group(order=group().order.replace(" ", "  "), figures={})
    assert diff_plans(plan(group()), plan(spaced)) == []


def test_split_as_text():
    assert describe_split(group()) == "32×mxfp4 + 32×mxfp8/mxfp6_e2m3"


def test_plan_edited_by_hand_is_compiled(tmp_path):
    """Formats of the two sides that differ, which no policy makes."""
    model = models.matmul_add()
    prepared = prepare(model, tmp_path)
    written = nm.group([(96, "mxfp8", "mxfp8")], range(96), 64)
    path = tmp_path / "plan.json"
    text = dump_plan(plan(replace(written, nodes=("linear",))))
    edited = json.loads(text)
    edited["groups"][0]["segments"] = [
        {
            "channels": channels,
            "act_format": act,
            "weight_format": weight,
            "act_threshold": 1.5,
            "weight_threshold": 2,
        }
        for channels, act, weight in ((32, "mxfp8", "mxfp4"), (64, "mxfp6_e2m3", "mxfp6_e3m2"))
    ]
    path.write_text(json.dumps(edited))
    (loaded,) = load_plan(path).groups
    result = compiled(prepared, tmp_path, lambda _: loaded)
    feed = feeds(model)
    (y,) = run(result.path, feed)
    x_hat = nm.spec_operand(feed["x"].reshape(-1, 96), loaded, "act")
    w_hat = nm.spec_operand(models.weight(96, 64).T, loaded, "weight")
    bias = models.weight(64, seed=1)
    exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
    assert (np.abs(y.reshape(exact.shape) - exact) <= nm.summation_bound(x_hat, w_hat, bias)).all()
