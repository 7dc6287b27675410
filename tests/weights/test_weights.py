"""Which rounding of weights is in force, and error feedback from the command line to the report."""

import tempfile
from types import SimpleNamespace

import numpy as np
import pytest

import mmcompile
from mmcompile.cli.commands import cli
from mmcompile.data.dataset import CalibrationData
from mmcompile.data.options import DataOptions
from mmcompile.effort import DAMPING, LEAST_FEEDBACK_ROWS, WORK, Effort, Weights, Work
from mmcompile.errors import ExitCode, UsageError
from mmcompile.model.selection import Selection
from mmcompile.pipeline import compile as pipeline
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.pipeline.prepare import prepare
from mmcompile.pipeline.run import Inputs, Run, execution_of
from mmcompile.pipeline.weights import WeightInputs, weights_in_force
from mmcompile.plan import load_plan
from mmcompile.policy import cost_plan
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.registry import POLICIES
from mmcompile.report.model import load_report
from mmcompile.targets.names import parse_target
from tests.models import SMALL_VOCABULARY
from tests.workplace import Workplace, call, samples

REASONS = {"no better on samples held back", ""}


@pytest.fixture
def work(home):
    return Workplace(home, samples(80))  # 640 tokens, 512 of them to calibrate with


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder that temporary folders are made in."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def data(fit=True):
    return CalibrationData("test data", fit, 1, lambda: iter(()))


def report_of(work):
    return load_report(work.out / "report.json")


def roundings(report):
    return [one for layer in report.layers for one in layer.rounding]


# What is in force


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("given", [None, data(), data(fit=False)], ids=["none", "fit", "random"])
def test_defaults(policy, effort, given):
    found, reason = weights_in_force(None, effort, policy, given)
    feedback = policy == "cost" and effort is not Effort.FAST and given is not None and given.fit
    assert found is (Weights.GPTQ if feedback else Weights.NEAREST)
    if given is None:
        expected = "there is no calibration data"
    elif not given.fit:
        expected = "the calibration data is random"
    elif policy != "cost":
        expected = f"the default of policy {policy}"
    else:
        expected = "the default of effort fast" if not feedback else "the default of policy cost"
    assert reason == expected


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("given", [None, data(), data(fit=False)], ids=["none", "fit", "random"])
@pytest.mark.parametrize("asked", Weights)
def test_what_is_asked_for_is_done_or_refused(asked, policy, effort, given):
    if asked is Weights.GPTQ and given is None:
        with pytest.raises(UsageError) as caught:
            weights_in_force(asked, effort, policy, given)
        assert (caught.value.code, caught.value.where) == ("no-calibration-data", "--weights")
    else:
        assert weights_in_force(asked, effort, policy, given) == (asked, "asked for")


def test_more_effort_is_more_of_everything():
    fast, balanced, best = (WORK[effort] for effort in Effort)
    for name in ("gradient_samples", "gradient_rows"):
        assert getattr(fast, name) < getattr(balanced, name) < getattr(best, name)
    for name in ("directions", "feedback_rows", "operations"):
        assert getattr(fast, name) <= getattr(balanced, name) <= getattr(best, name)
    assert set(fast.dampings) <= set(balanced.dampings) <= set(best.dampings)


def test_choices_of_the_command_line_are_those_of_the_pipeline():
    choices = {p.name: p.type for p in cli.commands["compile"].params}
    assert list(choices["weights"].choices) == [weights.value for weights in Weights]
    assert list(choices["effort"].choices) == [effort.value for effort in Effort]


def test_large_models_get_fewer_rows_and_not_every_step():
    balanced, best = WORK[Effort.BALANCED], WORK[Effort.BEST]

    def layers(channels, count=1):
        return [SimpleNamespace(in_channels=channels, out_channels=channels)] * count

    small, large = layers(64), layers(8192, 100)
    assert balanced.rows(small) == balanced.feedback_rows
    assert balanced.rows(large) == LEAST_FEEDBACK_ROWS
    assert LEAST_FEEDBACK_ROWS < balanced.rows(layers(2**10, 2**5)) == 2**13
    assert balanced.is_thorough(small)
    assert not balanced.is_thorough(large)
    assert best.rows(large) == best.feedback_rows
    assert best.is_thorough(large)


def test_what_large_models_get(work, monkeypatch):
    """One damping, and classes in the order of max |x|."""
    steps = []
    monkeypatch.setattr(cost_plan, "in_best_order", lambda *_: steps.append("order"))
    monkeypatch.setattr(Work, "is_thorough", lambda *_: False)
    assert work.compile("--policy", "cost").code == 0
    assert not steps
    assert {one.reason for one in roundings(report_of(work))} <= REASONS
    _, inputs = inputs_of(work, Weights.GPTQ)
    with inputs:
        assert inputs(prepare(work.model, Selection()).groups[0]).dampings == (DAMPING,)


# The rows that it needs


def inputs_of(work, method, effort=Effort.BALANCED):
    prepared = prepare(work.model, Selection())
    values = samples(80)
    given = CalibrationData("x", True, 80, lambda: iter([{"x": v[None]} for v in values]))
    inputs = Inputs(given, None, disjoint=True)
    run = Run(prepared, inputs, parse_target("sm_120"), execution_of(prepared), effort)
    return prepared, WeightInputs(run, method)


@pytest.mark.parametrize("effort", Effort)
def test_groups_get_their_rows_and_dampings(work, temporary, effort):
    prepared, inputs = inputs_of(work, Weights.GPTQ, effort)
    with inputs:
        assert not list(temporary.iterdir())  # nobody asked yet
        found = [inputs(group) for group in prepared.groups]
        assert len(list(temporary.rglob("*.f32"))) == len(prepared.groups)
        for group, one in zip(prepared.groups, found, strict=True):
            assert one.seen.shape == (560, group.in_channels)
            assert one.held_back.shape == (80, group.in_channels)
            balanced = Effort.BALANCED if effort is Effort.FAST else effort
            assert one.dampings == WORK[balanced].dampings
        np.testing.assert_array_equal(
            np.unique(np.concatenate([found[0].seen, found[0].held_back]), axis=0),
            np.unique(samples(80).reshape(-1, prepared.groups[0].in_channels), axis=0),
        )
    assert not list(temporary.iterdir())


def test_the_model_runs_once(work, temporary, monkeypatch):
    runs = []
    monkeypatch.setattr(
        "mmcompile.pipeline.weights.collect_token_rows",
        lambda *arguments: runs.append(arguments) or real(*arguments),
    )
    prepared, inputs = inputs_of(work, Weights.GPTQ)
    with inputs:
        inputs.collect()
        for group in (*prepared.groups, *prepared.groups):
            inputs(group)
    assert len(runs) == 1
    assert not list(temporary.iterdir())


real = pipeline.weights_of.__globals__["collect_token_rows"]


def test_rounding_to_nearest_samples_nothing(work, temporary):
    prepared, inputs = inputs_of(work, Weights.NEAREST)
    with inputs:
        assert inputs.collect() is None
        assert [inputs(group) for group in prepared.groups] == [None, None]
        assert not list(temporary.iterdir())


# End to end


@pytest.mark.parametrize(
    "more",
    [
        ["--policy", "cost"],
        ["--policy", "cost", "--effort", "best"],
        ["--policy", "cost", "--effort", "fast", "--weights", "gptq"],
        ["--policy", "micromix", "--weights", "gptq"],
        ["--policy", "mxfp4", "--weights", "gptq"],
        ["--policy", "nvfp4", "--weights", "gptq", "--effort", "best"],
    ],
    ids=" ".join,
)
def test_gptq_on_the_command_line(work, temporary, more):
    result = work.compile(*more, "--nodes")
    assert (result.code, result.err) == (0, "")
    report = report_of(work)
    assert report.verification.passed
    assert report.policy.weights == "gptq"
    asked = "asked for" if "--weights" in more else "the default of policy cost"
    assert report.policy.weights_reason == asked
    assert [one.node for one in roundings(report)] == ["first", "second"]
    for one in roundings(report):
        assert one.reason in REASONS
        assert (one.gain_db > 0) == (not one.reason)
    assert not list(temporary.iterdir())
    shown = call("report", work.out)
    kept = sum(not one.reason for one in roundings(report))
    assert f"GPTQ in {kept} of 2 layers ({asked})" in " ".join(shown.out.split())


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--policy", "micromix"], "the default of policy micromix"),
        (["--policy", "cost", "--weights", "nearest"], "asked for"),
        (["--policy", "cost", "--effort", "fast"], "the default of effort fast"),
    ],
)
def test_nearest_on_the_command_line(work, more, reason):
    assert work.compile(*more).code == 0
    report = report_of(work)
    assert (report.policy.weights, report.policy.weights_reason) == ("nearest", reason)
    assert not roundings(report)
    assert f"to nearest ({reason})" in " ".join(call("report", work.out).out.split())


def test_feedback_changes_bytes_and_nothing_else(work):
    """mxfp4 for both layers; the plan and all sizes are the same."""
    assert work.compile("--policy", "mxfp4").code == 0
    nearest = work.contents()
    assert work.compile("--policy", "mxfp4", "--weights", "gptq").code == 0
    found = work.contents()
    assert any(not one.reason for one in roundings(report_of(work)))
    assert found["plan.json"] == nearest["plan.json"]
    for name in ("model.onnx", "model.onnx.data"):  # small tensors are in the graph
        assert len(found[name]) == len(nearest[name])
        assert found[name] != nearest[name]


def test_a_run_gives_the_same_bytes_again(work):
    assert work.compile("--policy", "cost").code == 0
    first = work.contents()["model.onnx.data"]
    assert work.compile("--policy", "cost").code == 0
    assert work.contents()["model.onnx.data"] == first


def test_a_plan_with_data_and_gptq(work):
    assert work.compile("--policy", "cost").code == 0
    first = work.contents()
    plan = work.folder / "plan.json"
    plan.write_bytes(first["plan.json"])
    given = ["compile", work.model, "--gpu", "sm_120", "--plan", plan, "-o", work.out, "--no-html"]
    assert call(*given, "--calib", work.data, "--weights", "gptq").code == 0
    assert report_of(work).policy.weights_reason == "asked for"
    assert work.contents()["model.onnx.data"] == first["model.onnx.data"]
    # Of a plan of cost it is the default where there is data.
    assert call(*given, "--calib", work.data).code == 0
    assert report_of(work).policy.weights_reason == "the default of policy cost"
    assert work.contents()["model.onnx.data"] == first["model.onnx.data"]
    assert call(*given).code == 0
    policy = report_of(work).policy
    assert (policy.weights, policy.weights_reason) == ("nearest", "there is no calibration data")
    assert work.contents()["model.onnx.data"] != first["model.onnx.data"]


def test_commands_that_repeat_a_run_repeat_its_bytes(work):
    """A plan alone does not: it has no inputs of layers."""
    assert work.compile("--policy", "cost").code == 0
    assert not [line for line in report_of(work).reproduce if "--plan" in line]
    assert work.compile("--policy", "cost", "--weights", "nearest").code == 0
    assert [line for line in report_of(work).reproduce if "--plan" in line]


def test_gptq_without_data_is_one_clear_line(work):
    given = ["--policy", "mxfp4", "--weights", "gptq", "-o", work.out]
    result = call(work.model, *given)
    assert result.code == ExitCode.USAGE
    line = result.line()
    assert "there is no calibration data" in line
    assert "give --calib, or --weights nearest" in line
    assert not work.out.exists()


@pytest.mark.parametrize("more", [["--weights", "round"], ["--effort", "most"]])
def test_unknown_words_are_mistakes_of_usage(work, more):
    assert work.compile(*more).code == ExitCode.USAGE


@pytest.mark.slow
def test_random_data_is_used_only_where_asked(work):
    assert work.compile("--policy", "cost", data="random").code == 0
    assert report_of(work).policy.weights_reason == "the calibration data is random"
    assert work.compile("--policy", "cost", "--weights", "gptq", data="random").code == 0
    assert report_of(work).policy.weights == "gptq"


def test_too_little_data_is_said_layer_by_layer(work):
    np.savez(work.data, x=samples(10))
    assert work.compile("--policy", "cost").code == 0
    reasons = {one.reason for one in roundings(report_of(work))}
    assert reasons == {"fewer than 32 sampled inputs"}
    shown = " ".join(call("report", work.out).out.split())
    assert "GPTQ in 0 of 2 layers" in shown
    assert "fewer than 32 sampled inputs" in shown


def test_a_dry_run_samples_nothing_and_says_what_would_be(work, temporary, monkeypatch):
    monkeypatch.setattr("mmcompile.pipeline.weights.collect_token_rows", None)
    result = work.compile("--policy", "cost", "--dry-run", "--json")
    assert result.code == 0
    assert result.json()["policy"]["weights"] == "gptq"
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_the_largest_error_is_measured_with_feedback(work, temporary, monkeypatch):
    runs = []
    monkeypatch.setattr(
        "mmcompile.pipeline.weights.collect_token_rows",
        lambda *arguments: runs.append(arguments) or real(*arguments),
    )
    command = "--policy", "cost", "--max-error", "0.02"
    assert work.compile(*command).code == 0
    assert not runs  # the rows were taken in calibrating
    assert work.compile(*command).code == 0
    assert len(runs) == 1  # where statistics came from the cache
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_files_are_gone_after_a_failure(work, temporary, monkeypatch, error):
    seen = []

    def failing(*_):
        seen.extend(temporary.rglob("*.f32"))
        raise error

    monkeypatch.setattr(pipeline, "pack_group", failing)
    options = CompileOptions(
        output=work.out,
        data=DataOptions(calibration=work.data),
        policy=CostPolicy(),
        html=False,
    )
    with pytest.raises(error):
        mmcompile.compile(work.model, options)
    assert len(seen) == 2
    assert not list(temporary.iterdir())
    assert not work.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_small_language_models(name, exported, home, temporary):
    random = np.random.default_rng(0)

    def feed(length):
        ids = random.integers(3, SMALL_VOCABULARY, (1, 24))
        mask = np.r_[np.ones(length, np.int64), np.zeros(24 - length, np.int64)]
        feed = {"input_ids": ids, "attention_mask": mask[None]}
        return feed | ({"token_type_ids": np.zeros_like(ids)} if name == "bert" else {})

    feeds = [feed(int(length)) for length in random.integers(12, 25, 40)]
    options = CompileOptions(
        output=home / "out",
        data=DataOptions(calibration=feeds),
        policy=CostPolicy(),
        weights=Weights.GPTQ,
        verify=VerifyOptions(nodes=True),
        html=False,
    )
    model = exported(name)
    before = set(temporary.iterdir())  # PyTorch's, if it was exported now
    result = mmcompile.compile(model, options)
    assert result.report.verification.passed
    assert set(temporary.iterdir()) == before
    assert load_plan(home / "out" / "plan.json") == result.plan
    report = result.report
    assert (report.policy.weights, report.policy.weights_reason) == ("gptq", "asked for")
    for layer in report.layers:
        assert tuple(one.node for one in layer.rounding) == layer.nodes
    found = roundings(report)
    per_sample = [one for one in found if "pooler" in one.node]
    per_token = [one for one in found if "pooler" not in one.node]
    assert {one.reason for one in per_token} <= REASONS
    # Inputs of layers are correlated: that no layer gains would be a fault.
    assert sum(not one.reason for one in per_token) >= len(per_token) / 2
    assert {one.reason for one in per_sample} <= {"fewer than 32 sampled inputs"}
