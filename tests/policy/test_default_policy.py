"""What a command says and does that names no policy: plan by cost, weights with error feedback."""

import json

import onnx
import pytest
from onnx import helper

from mmcompile.calib.gradient.table import rule_of
from mmcompile.cli.commands import cli
from mmcompile.effort import Effort
from mmcompile.pipeline.options import CompileOptions
from mmcompile.pipeline.weights import WeightInputs
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.registry import DEFAULT, make_policy
from mmcompile.report.model import load_report
from tests.workplace import Workplace, call, samples, two_layers

WITHOUT_RULE = "Asinh"


@pytest.fixture
def work(home):
    return Workplace(home, samples(80))  # 640 tokens, 512 of them to calibrate with


@pytest.fixture
def sampled(monkeypatch):
    """The methods that inputs for rounding were asked for."""
    methods = []
    collect = WeightInputs.collect

    def counting(self):
        methods.append(self.method.value)
        return collect(self)

    monkeypatch.setattr(WeightInputs, "collect", counting)
    return methods


def test_python_and_the_command_line_have_one_default():
    assert CompileOptions().policy == make_policy(DEFAULT) == CostPolicy()
    for name in ("compile", "calibrate", "analyze"):
        defaults = {p.name: p.default for p in cli.commands[name].params}
        assert defaults["policy"] == CostPolicy.NAME
        assert defaults["effort"] == CompileOptions().effort == Effort.BALANCED


def test_the_default_command_plans_by_cost_and_rounds_by_gptq(work):
    result = call(work.model, "--calib", work.data, "-o", work.out, "--granularity", "32")
    assert (result.code, result.err) == (0, "")
    report = load_report(work.out / "report.json")
    assert report.policy.name == "cost"
    assert report.policy.parameters["objective"] == "prefill"
    assert report.policy.parameters["target_speed"] == 1.25
    assert report.policy.weights == "gptq"
    assert report.policy.weights_reason == "the default of policy cost"
    roundings = [one for layer in report.layers for one in layer.rounding]
    assert any(not one.reason and one.gain_db > 0 for one in roundings)
    plan = json.loads((work.out / "plan.json").read_text())
    assert all(group["figures"]["gradient_measured"] == 1 for group in plan["groups"])
    shown = " ".join(result.out.split())
    assert "policy cost" in shown
    assert "of 2 layers (the default of policy cost)" in shown


def test_random_data_plans_by_cost_and_rounds_to_nearest(work):
    result = call(work.model, "--calib", "random", "-o", work.out, "--no-html")
    assert (result.code, result.err) == (0, "")
    report = load_report(work.out / "report.json")
    assert report.policy.name == "cost"
    assert not report.calibration.fit
    assert report.policy.weights == "nearest"
    assert report.policy.weights_reason == "the calibration data is random"
    shown = " ".join(result.out.split())
    assert "NOT FIT FOR USE" in shown
    assert "to nearest (the calibration data is random)" in shown


def test_a_group_before_an_operator_without_a_gradient_is_planned_by_its_own_output(work):
    assert rule_of(helper.make_node(WITHOUT_RULE, ["a"], ["b"])) is None
    model = two_layers()
    model.graph.node[2].op_type = WITHOUT_RULE  # between the two linears
    onnx.save(model, work.model)
    assert work.compile("--html").code == 0
    report = load_report(work.out / "report.json")
    assert report.policy.parameters["groups_without_gradient"] == 1
    assert "groups_without_gradient" in (work.out / "report.html").read_text()
    plan = json.loads((work.out / "plan.json").read_text())
    measured = {group["name"]: group["figures"]["gradient_measured"] for group in plan["groups"]}
    assert measured == {"first": 0, "second": 1}
    assert all(layer.output_cosine > 0.95 for layer in report.layers)


@pytest.mark.parametrize(
    ("more", "method"),
    [
        ((), "gptq"),
        (("--weights", "nearest"), "nearest"),
        (("--effort", "fast"), "nearest"),
        (("--effort", "fast", "--weights", "gptq"), "gptq"),
    ],
)
def test_calibrate_measures_the_largest_error_with_the_weights_of_compile(
    work, sampled, more, method
):
    options = ["--granularity", "32", "--max-error", "0.02", *more]
    data = ["--calib", work.data, "--samples", "32"]
    assert call("calibrate", work.model, *data, *options).code == 0
    assert set(sampled) == {method}


def test_calibrate_samples_nothing_where_there_is_a_budget(work, sampled):
    assert call("calibrate", work.model, "--calib", work.data, "--weights", "gptq").code == 0
    assert not sampled


def test_beside_a_plan_and_data_weights_and_effort_may_be_asked_for(work):
    assert work.compile().code == 0
    first = work.contents()
    (work.folder / "plan.json").write_bytes(first["plan.json"])
    given = [work.model, "--plan", "plan.json", "-o", work.out, "--no-html"]
    assert call(*given, "--calib", work.data, "--weights", "gptq", "--effort", "best").code == 0
    assert load_report(work.out / "report.json").policy.weights == "gptq"
    assert call(*given, "--calib", work.data, "--effort", "balanced").code == 0
    assert work.contents()["model.onnx.data"] == first["model.onnx.data"]
    refused = call(*given, "--effort", "fast")
    assert refused.code == 2
    assert "option-without-effect" in refused.line()
    assert "add --calib" in refused.line()


def test_settings_of_another_policy_may_stand_in_a_file(work):
    (work.folder / "mm.toml").write_text('thresholds = "paper"\nlambda = 2\n')
    assert work.compile("--config", "mm.toml", "--no-verify").code == 0
    refused = work.compile("--config", "mm.toml", "--thresholds", "code")
    assert refused.code == 2
    assert "--thresholds: it has no effect on --policy cost" in refused.line()
    named = work.compile("--policy", "micromix", "--thresholds", "code", "--no-verify")
    assert named.code == 0
