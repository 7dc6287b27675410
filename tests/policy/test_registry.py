"""Policies of other packages: registered by hand or by an entry point, in Python and typed."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

import mmcompile
from mmcompile.errors import EnvironmentProblem, ExitCode, UsageError
from mmcompile.options import option_fields
from mmcompile.plan import load_plan
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Budgeted, Policy
from mmcompile.policy.registry import (
    POLICIES,
    make_policy,
    options_of,
    rounds_with_feedback,
)
from mmcompile.policy.uniform import UNIFORM, UniformPolicy
from mmcompile.registry import Registry
from mmcompile.report.model import load_report
from tests.policy.toy import NAME, ToyPolicy
from tests.workplace import Result, call, command

BY_HAND = """
import sys
from mmcompile.policy.registry import POLICIES
from tests.policy.toy import ToyPolicy
POLICIES.add("toy", ToyPolicy)
from mmcompile.cli import run
sys.exit(run(sys.argv[1:]))
"""

ENTRY_POINT = """
import importlib.metadata as metadata
import sys
found = metadata.entry_points
def entry_points(**wanted):
    if wanted != {"group": "mmcompile.policies"}:
        return found(**wanted)
    return [metadata.EntryPoint("toy", "tests.policy.toy:ToyPolicy", "mmcompile.policies")]
metadata.entry_points = entry_points
from mmcompile.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture
def toy():
    POLICIES.add(NAME, ToyPolicy)
    yield ToyPolicy
    POLICIES.remove(NAME)


@pytest.fixture(params=["added", "entry point", "installed"])
def typed(request, tmp_path):
    """The command line of a process in which the toy policy is known, one way or another."""
    started = command()
    if request.param == "installed":  # what pip leaves of a package that has an entry point
        metadata = tmp_path / "site" / "toy-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        points = "[mmcompile.policies]\ntoy = tests.policy.toy:ToyPolicy\n"
        (metadata / "entry_points.txt").write_text(points)
        path = started["env"]["PYTHONPATH"]
        started["env"]["PYTHONPATH"] = os.pathsep.join([str(metadata.parent), path])
        program = ["-m", "mmcompile"]
    else:
        program = ["-c", {"added": BY_HAND, "entry point": ENTRY_POINT}[request.param]]

    def typing(*arguments):
        started["args"] = [sys.executable, *program, *map(str, arguments)]
        done = subprocess.run(**started, capture_output=True, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return typing


def lengths(plan):
    return [[(s.act_format, s.channels) for s in group.segments] for group in plan.groups]


WIDE_2 = [[("mxfp4", 32), ("mxfp8", 64)], [("mxfp8", 64)]]
"""Of 96 and of 64 channels, two blocks of 32 stay wide."""


def test_a_policy_from_outside_is_typed_like_ours(work, typed):
    given = [work.model, "--calib", work.data, "-o", work.out, "--no-html"]
    result = typed(*given, "--policy", "toy", "--wide-blocks", "2", "--scale-rule", "ocp")
    assert (result.code, result.err) == (0, "")
    plan = load_plan(work.out / "plan.json")
    assert plan.policy == NAME
    assert lengths(plan) == WIDE_2
    assert (plan.parameters["wide_blocks"], plan.parameters["scale_rule"]) == (2, "ocp")
    report = load_report(work.out / "report.json")
    assert report.policy.name == NAME
    assert report.policy.weights_reason == "the default of policy toy"
    # Where the package is not installed, its plan is a plan all the same.
    assert call(work.model, "--plan", "out/plan.json", "-o", "again", "--no-html").code == 0
    assert load_plan(work.folder / "again" / "plan.json").policy == NAME
    assert "'toy'" in call(*given, "--policy", "toy").line()


def test_its_option_is_in_the_help_checked_and_its_own(work, typed):
    shown = typed("--help").out
    assert "--wide-blocks" in shown[shown.index("Precision:") : shown.index("Layers:")]
    assert "Blocks of channels that stay wide." in " ".join(shown.split())
    given = [work.model, "--calib", work.data, "-o", work.out]
    out_of_range = typed(*given, "--policy", "toy", "--wide-blocks", "10")
    assert out_of_range.code == ExitCode.USAGE and "--wide-blocks" in out_of_range.line()
    refused = typed(*given, "--wide-blocks", "2")
    assert refused.code == ExitCode.USAGE
    assert "--wide-blocks: it has no effect on --policy cost; use --policy toy" in refused.line()
    refused = typed(*given, "--policy", "toy", "--granularity", "32")
    assert refused.code == ExitCode.USAGE
    assert "use --policy cost or micromix" in refused.line()
    assert not work.out.exists()


def test_a_policy_from_outside_in_python(work, toy):
    policy = make_policy(NAME, wide=2)
    assert policy == toy(wide=2) and isinstance(policy, Policy)
    options = mmcompile.CompileOptions(policy=policy, html=False)
    result = mmcompile.compile(work.model, options, calibration=work.data, output=work.out)
    assert result.plan.policy == NAME
    assert lengths(result.plan) == WIDE_2
    assert load_plan(work.out / "plan.json") == result.plan


def test_a_policy_from_outside_is_analysed_beside_ours(work, toy):
    options = mmcompile.AnalyzeOptions(
        policy=toy(scale_rule="ocp"), sections=("pareto",), budgets=(1.5,), samples=1, html=False
    )
    found = mmcompile.analyze(work.model, options, calibration=work.data, output=work.out).analysis
    assert found.policy == NAME
    points = {point.plan.family: point for point in found.pareto.points}
    assert points[NAME].chosen and points[NAME].plan.name == "toy, 1 wide"
    assert {CostPolicy.NAME, MicroMixPolicy.NAME, UniformPolicy.FAMILY} < set(points)


def test_our_policies_keep_the_protocol():
    assert list(POLICIES) == [CostPolicy.NAME, MicroMixPolicy.NAME, *UNIFORM]
    for name in POLICIES:
        policy = make_policy(name)
        assert isinstance(policy, Policy)
        assert policy.name == name
        assert isinstance(policy, Budgeted) == (name == CostPolicy.NAME)
        assert rounds_with_feedback(name) == type(policy).feedback == (name == CostPolicy.NAME)
        assert option_fields(options_of(POLICIES[name]))
    assert not rounds_with_feedback("of another package")


def test_a_name_that_is_not_known_lists_those_that_are():
    with pytest.raises(UsageError) as caught:
        make_policy("int4")
    assert all(name in caught.value.remedy for name in POLICIES)


# The registry itself


def entering(monkeypatch, *points):
    """Entry points that are there, and how often somebody asked for them."""
    asked = []

    def entry_points(**wanted):
        asked.append(wanted)
        return [importlib.metadata.EntryPoint(*point, "a group") for point in points]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return asked


def test_entry_points_are_read_when_somebody_asks_and_once(monkeypatch):
    asked = entering(monkeypatch, ("b", "math:pi"))
    registry = Registry("a group")
    registry.add("a", 1)
    assert not asked
    assert list(registry) == ["a", "b"]
    assert registry["b"] == pytest.approx(3.14159, abs=1e-5)
    assert len(registry) == 2 and "c" not in registry
    assert asked == [{"group": "a group"}]


def test_what_is_added_wins_over_entry_points_and_can_be_taken_away(monkeypatch):
    entering(monkeypatch, ("a", "math:pi"))
    registry = Registry("a group")
    assert registry.add("a", 1) == 1
    assert registry["a"] == 1
    registry.add("b", 2)
    registry.remove("b")
    assert list(registry) == ["a"]


@pytest.mark.parametrize("target", ["no.such.module:x", "math:no_such_name"])
def test_a_broken_package_is_named(monkeypatch, target):
    entering(monkeypatch, ("theirs", target))
    registry = Registry("a group")
    with pytest.raises(EnvironmentProblem) as caught:
        list(registry)
    assert caught.value.code == "plugin-broken"
    assert caught.value.where == f"entry point theirs = {target}"
    assert "\n" not in str(caught.value)


def test_a_broken_package_is_one_line_on_the_command_line(work):
    script = ENTRY_POINT.replace("tests.policy.toy:ToyPolicy", "no.such.module:Policy")
    started = command()
    started["args"] = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(**started, capture_output=True, check=False)
    result = Result(done.returncode, done.stdout, done.stderr)
    assert result.code == ExitCode.ENVIRONMENT
    assert "entry point toy = no.such.module:Policy" in result.line()
