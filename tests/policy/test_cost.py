"""Costs of formats, candidates of the objectives, and budgets that cannot be."""

import pytest

from mmcompile.errors import ExitCode, UsageError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.policy.budget import CLASSES, DEFAULT_BUDGETS, Budget, candidates
from mmcompile.policy.cost import CostPolicy
from mmcompile.targets.target import FormatPair, Objective
from tests.policy.cases import SM120


@pytest.mark.parametrize("act", BLOCK_FORMATS)
@pytest.mark.parametrize("weight", BLOCK_FORMATS)
def test_speed_is_that_of_the_target(act, weight):
    """The unit is the time of two 4-bit operands on native tensor cores."""
    pair = FormatPair(act, weight)
    rates = [SM120.rate(FormatPair(name, name)) for name in (act, weight)]
    assert SM120.speed_cost(pair) == SM120.rate(FormatPair("mxfp4", "mxfp4")) / min(rates)
    both_four = all(BLOCK_FORMATS[name].element.bits == 4 for name in (act, weight))
    assert SM120.speed_cost(pair) == (1 if both_four else 2)


def test_bits_count_scales():
    bits = {name: FormatPair("mxfp8", name).bits for name in BLOCK_FORMATS}
    assert bits == {
        "mxfp4": 4.25,
        "mxfp6_e2m3": 6.25,
        "mxfp6_e3m2": 6.25,
        "mxfp8": 8.25,
        "nvfp4": 4.5,
    }


def test_formats_of_memory_are_equal_on_both_sides():
    pairs = candidates(Objective.MEMORY, CLASSES, SM120)
    assert {(pair.act, pair.weight) for pair in pairs} == {(name, name) for name in CLASSES}
    assert [pair.weight for pair in pairs][:2] == ["mxfp4", "nvfp4"]  # the cheapest first


@pytest.mark.parametrize("objective", [Objective.PREFILL, Objective.DECODE])
def test_both_sides_are_chosen_apart(objective):
    pairs = candidates(objective, CLASSES, SM120)
    costs = [SM120.speed_cost(pair) for pair in pairs]
    assert costs == sorted(costs)
    assert pairs[0] == FormatPair("mxfp4", "mxfp4")  # the cheapest, which orders are made with
    assert {FormatPair("mxfp8", "mxfp4"), FormatPair("mxfp8", "mxfp6_e2m3")} <= set(pairs)
    assert FormatPair("nvfp4", "nvfp4") in pairs
    for pair in pairs:
        assert ("nvfp4" in (pair.act, pair.weight)) == (pair.act == pair.weight == "nvfp4")
        sides = [BLOCK_FORMATS[name].element.bits for name in (pair.act, pair.weight)]
        assert sides[0] >= sides[1]
    assert len(set(pairs)) == len(pairs)


def test_only_the_classes_given():
    assert candidates(Objective.DECODE, ("mxfp8",), SM120) == (FormatPair("mxfp8", "mxfp8"),)


@pytest.mark.parametrize("classes", [(), ("mxfp4", "mxfp4"), ("mxfp4", "mxfp5"), ("",)])
def test_impossible_classes_are_refused(classes):
    with pytest.raises(UsageError) as caught:
        CostPolicy(classes=classes)
    assert caught.value.where == "--classes"
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["speed", "bits"])
def test_impossible_budgets_are_refused(kind, value):
    with pytest.raises(UsageError) as caught:
        Budget(**{kind: value})
    assert caught.value.where == f"--target-{kind}"
    with pytest.raises(UsageError) as caught:
        CostPolicy(**{f"target_{kind}": value})
    assert caught.value.where == f"--target-{kind}"


def test_a_budget_replaces_the_default():
    assert CostPolicy().budget == DEFAULT_BUDGETS[Objective.PREFILL] == Budget(speed=1.25)
    assert CostPolicy(objective=Objective.DECODE).budget == DEFAULT_BUDGETS[Objective.DECODE]
    assert CostPolicy(target_bits=5).budget == Budget(bits=5)


def test_parameters_tell_the_budget():
    found = CostPolicy(target_speed=1.5, target_bits=5, classes=("mxfp4", "mxfp8")).parameters()
    assert found == {
        "granularity": 128,
        "order": "sorted",
        "scale_rule": "balanced",
        "weight_scales": "searched",
        "objective": "prefill",
        "classes": "mxfp4 mxfp8",
        "target_speed": 1.5,
        "target_bits": 5,
    }
