"""Parts of data and changed inputs, before any model runs."""

import dataclasses

import numpy as np
import onnx
import pytest

from mmcompile.analysis.stability import parts
from mmcompile.analysis.stress import (
    AS_CALIBRATED,
    OUTLIER_SCALE,
    OUTLIERS,
    SCALED_ROWS,
    UNCHANGED,
    StressSet,
    changed_rows,
    id_ranges,
    stress_sets,
)
from mmcompile.data.dataset import CalibrationData
from mmcompile.model.selection import Selection
from mmcompile.pipeline.prepare import prepare
from mmcompile.pipeline.run import Inputs, Run, execution_of
from tests.analysis.models import VOCABULARY, token_model, token_samples
from tests.analysis.test_figures import FOUR, group
from tests.policy.cases import SM120
from tests.workplace import samples, two_layers


def data_of(items):
    return CalibrationData("numbers", True, len(items), lambda: iter(items))


def read(data):
    return [int(sample["x"]) for sample in data]


def test_parts_are_spread_and_halves_disjoint():
    items = [{"x": np.array(i)} for i in range(45)]
    found = dict(parts(data_of(items), 45))
    assert list(found) == ["8 samples", "32 samples", "first half", "second half"]
    assert read(found["8 samples"]) == list(range(0, 40, 5))
    assert len(read(found["32 samples"])) == 32
    halves = read(found["first half"]), read(found["second half"])
    assert sorted(halves[0] + halves[1]) == list(range(45))
    assert not set(halves[0]) & set(halves[1])
    for part in found.values():
        assert part.count == len(read(part)) and part.description.startswith("numbers; ")
    assert parts(data_of(items[:1]), 1) == []


def test_outliers_hit_the_cheapest_class_alone():
    made = group("a", range(96), [FOUR, (64, "mxfp8", "mxfp8")])
    rows = np.random.default_rng(0).standard_normal((4, 96)).astype(np.float32)
    found = changed_rows(rows, made, np.random.default_rng(1))
    assert np.array_equal(found[AS_CALIBRATED], rows)
    assert np.array_equal(found[SCALED_ROWS], 16 * rows)
    factors = found[OUTLIERS] / rows
    hit = np.flatnonzero(np.abs(factors[0] - OUTLIER_SCALE) < 1e-3)
    assert hit.size == 1 and hit[0] < 32
    assert np.allclose(np.delete(factors, hit, axis=1), 1)


def test_one_per_cent_of_a_large_class_become_outliers():
    made = group("a", range(640), [(640, "mxfp4", "mxfp4")])
    found = changed_rows(np.ones((1, 640), np.float32), made, np.random.default_rng(1))
    assert (found[OUTLIERS] == OUTLIER_SCALE).sum() == 6


def sets_of(folder, model, items, seed=0, others=()):
    onnx.save(model, folder / "model.onnx")
    prepared = prepare(folder / "model.onnx", Selection())
    nothing = Inputs(None, None, disjoint=True)
    run = Run(prepared, nothing, SM120, execution_of(prepared, seed))
    return {s.name: s for s in stress_sets(run, items, items, others)}


def test_ids_are_drawn_from_the_range_seen(tmp_path):
    items = token_samples(40)
    ranges = id_ranges(items, ["input_ids"])
    low, high = ranges["input_ids"]
    assert 5 <= low < high < VOCABULARY
    other = StressSet("other.npz", "other", "words", tuple(items[:2]))
    found = sets_of(tmp_path, token_model(), items, others=(other,))
    assert list(found) == [UNCHANGED, "random tokens", "shuffled tokens", "other.npz"]
    random = np.concatenate([s["input_ids"].ravel() for s in found["random tokens"].samples])
    assert set(random.tolist()) == set(range(low, high + 1))
    for before, after in zip(items, found["shuffled tokens"].samples, strict=True):
        assert np.array_equal(np.sort(before["input_ids"]), np.sort(after["input_ids"]))
        assert np.array_equal(before["attention_mask"], after["attention_mask"])
    shuffled = [s["input_ids"] for s in found["shuffled tokens"].samples]
    assert any(not np.array_equal(a, b["input_ids"]) for a, b in zip(shuffled, items, strict=True))
    assert found["random tokens"].samples[0]["input_ids"].dtype == np.int64


def test_floats_are_scaled_and_replaced(tmp_path):
    items = [{"x": x[None]} for x in samples(3)]
    found = sets_of(tmp_path, two_layers(), items)
    assert list(found) == [UNCHANGED, "inputs × 4", "inputs × 0.25", "gaussian noise"]
    x = items[0]["x"]
    assert np.array_equal(found["inputs × 4"].samples[0]["x"], 4 * x)
    assert np.array_equal(found["inputs × 0.25"].samples[0]["x"], x / 4)
    noise = found["gaussian noise"].samples[0]["x"]
    assert noise.dtype == np.float32 and noise.shape == x.shape
    assert noise.std() == pytest.approx(x.std(), rel=0.2)
    assert abs(np.corrcoef(noise.ravel(), x.ravel())[0, 1]) < 0.2


def test_changes_follow_the_seed(tmp_path):
    items = token_samples(4)
    first, again, other = (
        sets_of(tmp_path, token_model(), items, seed)["random tokens"].samples[0]["input_ids"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_parts_keep_what_the_data_is():
    items = [{"x": np.array(i)} for i in range(9)]
    unfit = dataclasses.replace(data_of(items), fit=False)
    assert not any(part.fit for _, part in parts(unfit, 9))
