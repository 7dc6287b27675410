"""The policy `cost` from the command line to a model that runs, and what it refuses."""

import json

import numpy as np
import pytest

from mmcompile.pipeline import evidence
from mmcompile.policy.budget import CLASSES
from tests.running import run
from tests.workplace import call, samples


@pytest.fixture
def collections(monkeypatch):
    """Counts how often gradients are computed."""
    counted = []
    collect = evidence.collect_rows

    def counting(*arguments):
        counted.append(arguments)
        return collect(*arguments)

    monkeypatch.setattr(evidence, "collect_rows", counting)
    return counted


MICROMIX_CLASSES = "mxfp4,mxfp6_e3m2,mxfp8"


def plan_of(work):
    return json.loads((work.out / "plan.json").read_text())


def error(work, x):
    """Mean relative squared error of the compiled model."""
    exact, actual = (run(path, {"x": x})[0] for path in (work.model, work.out / "model.onnx"))
    return float(np.square(actual - exact).mean() / np.square(exact).mean())


def cosine(work, x):
    """Mean cosine similarity of the compiled model's output, sample by sample."""
    exact, actual = (
        run(path, {"x": x})[0].reshape(len(x), -1) for path in (work.model, work.out / "model.onnx")
    )
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(actual, axis=1)
    return float(((exact * actual).sum(axis=1) / lengths).mean())


def test_compiling_by_cost(work):
    errors = {}
    x = samples(20, seed=5)
    for cost in ("1", "1.4", "2"):
        result = work.compile("--policy", "cost", "--target-speed", cost)
        assert (result.code, result.err) == (0, "")
        errors[cost] = error(work, x)
    assert errors["1"] > errors["1.4"] > errors["2"]
    plan = plan_of(work)
    assert plan["policy"] == "cost"
    assert plan["parameters"]["target_speed"] == 2
    assert plan["parameters"]["groups_without_gradient"] == 0
    assert all(group["figures"]["gradient_measured"] == 1 for group in plan["groups"])


def test_better_than_micromix_at_its_cost(work):
    """The reason for the policy: on unseen inputs, at no more tensor-core cost."""
    x = samples(20, seed=5)
    work.compile("--policy", "micromix")
    theirs, split = error(work, x), plan_of(work)
    weights = [
        (sum(group["out_channels"]) * segment["channels"], segment["weight_format"] == "mxfp4")
        for group in split["groups"]
        for segment in group["segments"]
    ]
    cost = sum(size * (1 if four else 2) for size, four in weights) / sum(s for s, _ in weights)
    work.compile("--target-speed", repr(cost), "--classes", MICROMIX_CLASSES)
    assert error(work, x) < theirs


@pytest.mark.slow
def test_the_smallest_budget_within_an_error(work):
    """The found budget keeps the error on calibration data; a smaller one does not."""
    budgets = {}
    for bound in ("0.5", "0.012", "0.002"):
        assert work.compile("--policy", "cost", "--max-error", bound).code == 0
        plan = plan_of(work)
        budgets[bound] = plan["parameters"]["target_speed"]
        assert plan["parameters"]["max_error"] == float(bound)
        assert 1 - cosine(work, samples()) < 1.3 * float(bound)
    assert 1 == budgets["0.5"] < budgets["0.012"] < budgets["0.002"] < 2


def test_an_error_that_no_budget_reaches(work):
    result = work.compile("--policy", "cost", "--max-error", "1e-9")
    assert result.code == 2
    assert "[error-unreachable]" in result.line()


@pytest.mark.parametrize("objective", ["decode", "memory"])
def test_other_objectives(work, objective):
    options = ("--objective", objective, "--target-bits", "6.5")
    assert work.compile("--policy", "cost", *options).code == 0
    plan = plan_of(work)
    assert plan["parameters"]["objective"] == objective
    assert plan["parameters"]["target_bits"] == 6.5


def test_gradients_are_cached(work, collections):
    work.compile("--policy", "cost")
    first = work.contents()["plan.json"]
    work.compile("--policy", "cost", "--target-speed", "1.6")
    assert len(collections) == 1
    work.compile("--policy", "cost")
    assert work.contents()["plan.json"] == first
    work.compile("--policy", "cost", "--seed", "1")
    assert len(collections) == 2


def test_a_damaged_cache_entry_is_computed_anew(work, collections):
    work.compile("--policy", "cost")
    first = plan_of(work)
    (entry,) = (work.folder / "cache" / "gradients").iterdir()
    for content in (b"", b"PK\3\4", entry.read_bytes()[:-100]):
        entry.write_bytes(content)
        assert work.compile("--policy", "cost").code == 0
        assert plan_of(work)["groups"] == first["groups"]
    assert len(collections) == 4


def test_planning_alone_gives_a_plan_to_compile_with(work):
    result = call(
        *("calibrate", work.model, "--calib", work.data, "--policy", "cost", "-o", "plan.json"),
        *("--granularity", "32"),
    )
    assert (result.code, result.err) == (0, "")
    result = call(work.model, "--plan", "plan.json", "-o", work.out, "--no-verify", "--no-html")
    assert (result.code, result.err) == (0, "")


def test_random_data_is_flagged(work):
    assert work.compile("--policy", "cost", data="random").code == 0
    assert plan_of(work)["calibration"].endswith("(unfit: random numbers)")


def test_without_data_a_dry_run_gives_the_formats(work):
    result = call(work.model, "--policy", "cost", "--dry-run", "--json")
    assert [entry["format"] for entry in result.json()["formats"]] == list(CLASSES)


@pytest.mark.parametrize(
    ("options", "code", "option"),
    [
        (("--policy", "cost", "--max-error", "0"), "bad-max-error", "--max-error"),
        (("--policy", "micromix", "--max-error", "0.1"), "option-without-effect", "--max-error"),
        (
            ("--policy", "cost", "--max-error", "0.1", "--target-speed", "1.5"),
            "two-budgets",
            "--max-error",
        ),
        (("--policy", "cost", "--target-speed", "0.5"), "budget-too-small", "--target-speed"),
        (("--policy", "cost", "--target-bits", "4"), "budget-too-small", "--target-bits"),
        (("--policy", "cost", "--target-bits", "nan"), "bad-budget", "--target-bits"),
        (("--policy", "cost", "--classes", "mxfp4,fp16"), "unknown-choice", "--classes"),
        (("--policy", "cost", "--classes", ""), "unknown-choice", "--classes"),
        (("--policy", "cost", "--classes", "mxfp8,mxfp8"), "bad-classes", "--classes"),
        (("--policy", "mxfp8", "--target-bits", "5"), "option-without-effect", "--target-bits"),
        (
            ("--policy", "micromix", "--target-speed", "1.5"),
            "option-without-effect",
            "--target-speed",
        ),
        (("--policy", "nvfp4", "--classes", "mxfp8"), "option-without-effect", "--classes"),
        (("--policy", "mxfp4", "--objective", "decode"), "option-without-effect", "--objective"),
        (("--thresholds", "paper"), "option-without-effect", "--thresholds"),
        (("--policy", "mxfp6", "--lambda", "2"), "option-without-effect", "--lambda"),
        (("--classes", "mxfp8"), "budget-too-small", "--target-speed"),
    ],
)
def test_refusals_are_one_line(work, options, code, option):
    result = work.compile(*options)
    assert result.code == 2
    assert f"{option}: " in result.line()
    assert f"[{code}]" in result.line()
    assert not work.out.exists()


def test_saved_statistics_hold_no_gradients(work):
    save = ["calibrate", work.model, "--calib", work.data, "--save-stats", "s.npz"]
    refused = call(*save)
    assert refused.code == 2
    assert "--save-stats: " in refused.line()
    assert "give the --policy to merge them for, such as micromix" in refused.line()
    assert not (work.folder / "s.npz").exists()
    assert call(*save, "--policy", "micromix").code == 0
    result = call("calibrate", work.model, "--stats", "s.npz", "-o", "p.json")
    assert result.code == 2
    assert "--stats: " in result.line()
    assert "--calib instead of --stats" in result.line()
    assert "another --policy, such as micromix" in result.line()
    assert not (work.folder / "p.json").exists()


def test_budgets_beside_a_plan_are_refused(work):
    work.compile("--policy", "cost")
    plan = work.out / "plan.json"
    result = call(work.model, "--plan", plan, "--policy", "cost", "-o", "other")
    assert result.code == 2
    assert "option-beside-plan" in result.line()
