"""Trial models: their agreement is that of the written model, groups left out stay exact."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from mmcompile.analysis.ground import Candidate, plan_figures
from mmcompile.calib.instrument import watched_tensor
from mmcompile.calib.stats import ActivationStats
from mmcompile.model.selection import Selection
from mmcompile.model.source import load_model
from mmcompile.pipeline.prepare import prepare
from mmcompile.pipeline.trial import TrialBench, worst_error, write_trial
from mmcompile.policy.registry import make_policy
from mmcompile.progress import Silent
from mmcompile.verification.metrics import Agreement
from mmcompile.verification.outputs import compare_outputs
from tests.compiling import uniform
from tests.models import K, typed, weight
from tests.policy.cases import SM120, evidence_of, stats_of
from tests.workplace import CHANNELS, HIDDEN, samples, two_layers


@pytest.fixture
def prepared(tmp_path):
    onnx.save(two_layers(), tmp_path / "model.onnx")
    return prepare(tmp_path / "model.onnx", Selection())


def decided(prepared, name="mxfp4"):
    return list(zip(prepared.groups, plan_of(prepared, name).groups, strict=True))


def plan_of(prepared, name):
    random = np.random.default_rng(0)
    tensors = {
        watched_tensor(group).key: stats_of(
            random.standard_normal((8, group.in_channels)).astype(np.float32)
        )
        for group in prepared.groups
    }
    assert {group.in_channels for group in prepared.groups} == {CHANNELS, HIDDEN}
    stats = ActivationStats(tensors, "random rows", True, 0)
    return make_policy(name).plan(evidence_of(prepared, stats))


def sample_list(count=3, seed=0):
    return [{"x": x[None]} for x in samples(count, seed=seed)]


def test_trials_agree_with_the_comparison_of_written_models(prepared, tmp_path):
    pairs = decided(prepared)
    (tmp_path / "out").mkdir()
    compiled = load_model(write_trial(prepared, pairs, tmp_path / "out"))
    sets = [sample_list(3), sample_list(2, seed=5)]
    with TrialBench(prepared) as bench:
        references = [bench.reference(part, Silent()) for part in sets]
        found = bench.agreements(pairs, references)
        again = bench.agreements(pairs, references[1:])
    for part, agreements in zip(sets, found, strict=True):
        (expected,) = compare_outputs(prepared.source, [compiled], part, frozenset(), Silent())
        assert agreements["y"].cosines == pytest.approx(expected["y"].cosines, abs=1e-6)
        assert 1e-4 < worst_error(agreements) < 0.5
    assert again[0]["y"].cosines == found[1]["y"].cosines
    assert found[0]["y"].cosines[:2] != found[1]["y"].cosines


def test_groups_left_out_are_exact(prepared):
    first, second = decided(prepared)
    with TrialBench(prepared) as bench:
        reference = [bench.reference(sample_list(), Silent())]
        errors = [
            worst_error(bench.agreements(pairs, reference)[0])
            for pairs in ([], [first], [second], [first, second])
        ]
    assert errors[0] == pytest.approx(0, abs=1e-12)
    assert 0 < max(errors[1:3]) < errors[3]


def test_the_temporary_folder_goes(prepared, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with TrialBench(prepared) as bench:
        reference = bench.reference(sample_list(), Silent())
        bench.agreements(decided(prepared), [reference])
        (folder,) = (tmp_path / "temporary").iterdir()
        assert all(path.name.startswith("reference-") for path in folder.iterdir())
    assert not list((tmp_path / "temporary").iterdir())


def test_what_cannot_be_compared_is_infinitely_wrong():
    agreement = Agreement()
    agreement.add(np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32))
    assert worst_error({"y": agreement}) == np.inf


def test_what_cannot_be_compared_is_noted(prepared):
    candidate = Candidate(make_policy("mxfp4"), plan_of(prepared, "mxfp4"))
    broken, fine = Agreement(), Agreement()
    broken.add(np.ones(3, np.float32), np.array([1, np.inf, 1], np.float32))
    fine.add(np.ones(3, np.float32), np.ones(3, np.float32))
    found = plan_figures(candidate, SM120, {"y": broken, "z": fine}, 1.0)
    assert (found.name, found.family) == ("mxfp4", "uniform")
    assert found.error is None
    assert found.note == "y: NaN or infinity where the original has a number"
    assert plan_figures(candidate, SM120, {"z": fine}, 1.0).error == 0


def test_bfloat16_models_run_in_float32(tmp_path):
    path = Path(tmp_path / "model.onnx")
    onnx.save(typed("bf16"), path)
    found = prepare(path, Selection(heads=True))
    x = weight(2, 5, K, seed=4)
    with TrialBench(found) as bench:
        reference = bench.reference([{"x": x}], Silent())
        (left,) = bench.agreements([], [reference])
        (compiled,) = bench.agreements([(g, uniform(g)) for g in found.groups], [reference])
    assert worst_error(left) < 1e-12  # nothing is rounded to bfloat16 on either side
    assert 1e-5 < worst_error(compiled) < 0.1
