"""Targets: those of other packages, and what plans for ours differ in."""

from types import MappingProxyType

import pytest
from onnx import helper

from mmcompile.errors import UsageError
from mmcompile.plan import load_plan
from mmcompile.policy.budget import CLASSES, candidates
from mmcompile.policy.cost import CostPolicy
from mmcompile.report.model import load_report
from mmcompile.targets.names import REGISTRY, parse_target
from mmcompile.targets.target import Figure, FormatPair, Kernels, Kind, Objective, Target
from tests import models
from tests import node_models as nm
from tests.policy.cases import SM120, Case
from tests.workplace import call, two_layers

FOUR, EIGHT = FormatPair("mxfp4", "mxfp4"), FormatPair("mxfp8", "mxfp8")


def rates(**values):
    return MappingProxyType({Kind[kind]: Figure(rate, "made up") for kind, rate in values.items()})


STEEP = Target(
    "toy_1", "a toy", Kernels.NATIVE, rates(FP16=1, FP8=2, BLOCK8=2, BLOCK4=8), ("toy100",)
)
"""8 bits take four times as long as 4, on GeForce twice."""
FLAT = Target("toy_2", "a flat toy", Kernels.NATIVE, rates(FP16=1, FP8=2, BLOCK8=2, BLOCK4=2))
"""All formats are as fast as each other, and faster than FP16."""


@pytest.fixture(autouse=True)
def toys():
    for target in (STEEP, FLAT):
        REGISTRY.add(target.name, target)
    yield
    for target in (STEEP, FLAT):
        REGISTRY.remove(target.name)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"), two_layers())


def shares(plan):
    """Share of the multiplications with 4-bit operands on both sides."""
    sizes = {True: 0, False: 0}
    for group in plan.groups:
        for segment in group.segments:
            pair = FormatPair(segment.act_format, segment.weight_format)
            sizes[pair.kind is Kind.BLOCK4] += segment.channels * sum(group.out_channels)
    return sizes[True] / (sizes[True] + sizes[False])


# Of other packages


def test_a_target_from_outside_is_found_by_its_names_and_listed():
    assert parse_target("toy_1") is parse_target("TOY-1") is parse_target("Toy 100") is STEEP
    with pytest.raises(UsageError) as caught:
        parse_target("toy_3")
    assert "toy_1 (toy100)" in caught.value.remedy
    REGISTRY.remove(FLAT.name)
    with pytest.raises(UsageError):
        parse_target(FLAT.name)
    REGISTRY.add(FLAT.name, FLAT)


def test_its_rates_are_its_prices():
    assert [STEEP.speed_cost(pair) for pair in (FOUR, EIGHT)] == [1, 4]
    assert [FLAT.speed_cost(pair) for pair in (FOUR, EIGHT)] == [1, 1]
    assert CostPolicy().span(STEEP) == (1, 4)
    assert CostPolicy().span(SM120) == (1, 2)
    bits = CostPolicy(objective=Objective.MEMORY)
    assert bits.span(STEEP) == bits.span(FLAT) == bits.span(SM120) == (4.25, 8.25)
    # Where speed tells no pairs apart, the one with fewer bits is the cheaper.
    for target in (FLAT, parse_target("h100")):
        bits_of = [pair.bits for pair in candidates(Objective.PREFILL, CLASSES, target)]
        assert bits_of == sorted(bits_of)


def test_its_rates_make_its_plan(case):
    """A budget of 1.5 pays for half in 8 bits where they cost 2, for a sixth where they cost 4."""
    policy = CostPolicy(granularity=32, target_speed=1.5)
    plans = {t.name: policy.plan(case.evidence(t)) for t in (SM120, STEEP, FLAT)}
    assert 0.5 <= shares(plans["sm_120"]) < shares(plans["toy_1"]) < 1
    assert shares(plans["toy_1"]) >= 5 / 6
    assert shares(plans["toy_2"]) == 0
    for target in (SM120, STEEP, FLAT):
        price = policy.price_of(plans[target.name], target)
        assert price == target.plan_speed_cost(plans[target.name].groups) <= 1.5
    assert policy.price_of(plans["sm_120"], STEEP) > 1.5


def test_a_target_from_outside_on_the_command_line(work):
    for target, limit in ((STEEP, 8), (FLAT, 2)):
        assert work.compile("--policy", "mxfp4", "--gpu", target.name).code == 0
        found = load_report(work.out / "report.json").target
        assert found.name == target.name
        assert found.description.startswith(f"{target.description}; modelled limit")
        assert f"over FP16: {limit}.0× compute-bound" in found.description
        assert found.remark == ""


# Ours


@pytest.mark.parametrize(
    ("name", "four", "eight"),
    [("sm_120", 8, 4), ("sm_121", 4, 2), ("sm_100", 4, 2), ("sm_90", 1, 1)],
)
def test_limits_over_fp16_are_those_of_the_rates(name, four, eight):
    target = parse_target(name)
    for pair, limit in ((FOUR, four), (EIGHT, eight)):
        layer = nm.group([(64, pair.act, pair.weight)], range(64), 8)
        assert target.compute_limit([layer]) == limit
        if target.has_block_scales:
            assert limit == target.rates[pair.kind].value / target.rates[Kind.FP16].value


@pytest.mark.parametrize(("gpu", "limit"), [("sm_120", 8), ("sm_121", 4), ("b200", 4)])
def test_the_report_has_the_limit_of_the_gpu(work, gpu, limit):
    assert work.compile("--policy", "mxfp4", "--gpu", gpu).code == 0
    description = load_report(work.out / "report.json").target.description
    assert f"over FP16: {limit}.0× compute-bound" in description


def test_prefill_on_hopper_is_all_eight_bit_and_the_report_says_why(work):
    result = work.compile("--gpu", "h100")
    assert (result.code, result.err) == (0, "")
    report = load_report(work.out / "report.json")
    formats = {(s.act_format, s.weight_format) for layer in report.layers for s in layer.segments}
    assert formats == {("mxfp8", "mxfp8")}
    why = "sm_90 multiplies no block-scaled operands: narrow formats gain no time"
    assert report.target.remark.startswith(f"{why}, so that formats go wide")
    assert why in " ".join(result.out.split())
    # The same on GeForce, which has much to gain, keeps within its budget.
    assert work.compile().code == 0
    report = load_report(work.out / "report.json")
    assert report.target.remark == ""
    assert {s.weight_format for layer in report.layers for s in layer.segments} != {"mxfp8"}


@pytest.mark.parametrize(("objective", "bits"), [("decode", 4.75), ("memory", 5.0)])
def test_bytes_are_saved_on_hopper_all_the_same(objective, bits, tmp_path):
    """Of four runs, one may have six bits where the others have four."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="linear")]
    wide = {"W": models.weight(512, 64)}
    case = Case(tmp_path, models.model_of(nodes, wide, x=("rows", 512), y=("rows", 64)))
    policy = CostPolicy(objective=objective)
    plan = policy.plan(case.evidence(parse_target("h100")))
    assert plan.parameters["target_bits"] == bits
    assert 4.25 < plan.mean_weight_bits() <= bits
    everywhere = CostPolicy().plan(case.evidence(parse_target("h100")))
    assert everywhere.mean_weight_bits() == EIGHT.bits


@pytest.mark.parametrize(("objective", "bits"), [("decode", 4.75), ("memory", 5.0)])
def test_the_report_of_hopper_says_what_is_saved(work, objective, bits):
    options = ("--objective", objective, "--granularity", "128")
    assert work.compile("--gpu", "h100", *options).code == 0
    assert load_plan(work.out / "plan.json").mean_weight_bits() <= bits
    remark = load_report(work.out / "report.json").target.remark
    assert remark.endswith("narrow formats gain no time, only bytes of weights")


def test_a_target_without_kernels_says_so(work):
    shown = work.compile("--policy", "mxfp8", "--gpu", "b200")
    assert shown.code == 0
    remark = load_report(work.out / "report.json").target.remark
    assert remark == "the plugin holds no kernels for sm_100; it runs nothing there yet"
    assert remark in " ".join(call("report", work.out).out.split())
    assert "no kernels for sm_100" in call("report", work.out, "--json").json()["target"]["remark"]
