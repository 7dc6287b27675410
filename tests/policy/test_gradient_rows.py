"""Rows of inputs and gradients: which belong together, over layers of a group and samples."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper

from mmcompile.calib import gradient_rows
from mmcompile.calib.execution import Execution
from mmcompile.calib.gradient_rows import GradientSamples, GroupRows, collect_rows
from mmcompile.data.dataset import open_data
from mmcompile.data.options import DataOptions
from mmcompile.effort import WORK, Effort
from mmcompile.pipeline.prepare import input_specs
from tests.compiling import prepare
from tests.models import K, model_of, weight
from tests.workplace import samples

BALANCED = WORK[Effort.BALANCED]


def two_rectified():
    """y = concat(relu(x·A), relu(x·B)): a group of two layers of different width."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="first"),
        helper.make_node("MatMul", ["x", "B"], ["b"], name="second"),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("Concat", ["ra", "rb"], ["y"], axis=-1),
    ]
    values = {"A": weight(K, 40, seed=1), "B": weight(K, 24, seed=2)}
    return model_of(nodes, values)


def data_of(prepared, values):
    feeds = [{"x": value[None]} for value in values]
    return open_data(feeds, input_specs(prepared.source.proto), DataOptions(samples=None))


def collected(prepared, values, skeleton=None, work=BALANCED):
    source = prepared.source
    execution = Execution(source, skeleton or source.proto, input_specs(source.proto))
    return collect_rows(execution, prepared.groups, data_of(prepared, values), len(values), work)


def test_every_gradient_belongs_to_its_input(tmp_path):
    """The gradient of relu(x·W) is zero exactly where x·W is negative."""
    prepared = prepare(two_rectified(), tmp_path)
    (group,) = prepared.groups
    values = samples(6)
    found = collected(prepared, values)
    assert not found.missing
    rows = found.groups[group.name]
    assert rows.activations.shape == (48, K)  # all 8 tokens of all 6 samples
    assert rows.gradients.shape == (1, 48, 64)
    weights = [site.read_weight(prepared.source) for site in group.sites]
    y = rows.activations @ np.concatenate(weights, axis=1)
    for gradient in rows.gradients:
        np.testing.assert_array_equal(gradient != 0, y > 0)
    seen = {row.tobytes() for row in values.reshape(-1, K)}
    assert {row.tobytes() for row in rows.activations} == seen


def test_rows_are_shared_among_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_rows, "LEAST_GRADIENT_ROWS", 1)
    prepared = prepare(two_rectified(), tmp_path)
    work = dataclasses.replace(BALANCED, gradient_rows=12, directions=3)
    rows = collected(prepared, samples(6), work=work).groups[prepared.groups[0].name]
    assert rows.activations.shape == (12, K)
    assert rows.gradients.shape == (3, 12, 64)


def test_many_samples_are_thinned_evenly(tmp_path):
    prepared = prepare(two_rectified(), tmp_path)
    values = samples(10)
    work = dataclasses.replace(BALANCED, gradient_samples=3)
    rows = collected(prepared, values, work=work).groups[prepared.groups[0].name]
    assert {row.tobytes() for row in rows.activations} == {
        row.tobytes() for row in values[[0, 3, 6]].reshape(-1, K)
    }


def test_old_opsets_have_no_gradients(tmp_path):
    prepared = prepare(two_rectified(), tmp_path)
    old = onnx.ModelProto()
    old.CopyFrom(prepared.source.proto)
    old.opset_import[0].version = 14
    found = collected(prepared, samples(2), old)
    assert not found.groups
    assert "opset 14" in found.missing[prepared.groups[0].name]


def test_a_layer_behind_an_unknown_operator_is_missing_with_the_reason(tmp_path):
    """And the layers after it are measured all the same."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="before"),
        helper.make_node("Reshape", ["a", "shape"], ["square"]),
        helper.make_node("Det", ["square"], ["d"], name="determinant"),
        helper.make_node("ReduceMean", ["d"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["moved"]),
        helper.make_node("MatMul", ["moved", "B"], ["y"], name="after"),
    ]
    values = {
        "A": weight(K, 64, seed=1),
        "B": weight(K, 64, seed=2),
        "shape": np.array([-1, 8, 8]),
    }
    prepared = prepare(model_of(nodes, values), tmp_path)
    before, after = prepared.groups
    found = collected(prepared, samples(2))
    assert set(found.groups) == {after.name}
    assert "Det" in found.missing[before.name]


def test_gradients_that_are_not_finite_are_left_out(tmp_path):
    """The square root has no slope at 0, which one of the samples reaches."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"], name="linear"),
        helper.make_node("Sqrt", ["a"], ["y"]),
    ]
    positive = np.abs(weight(K, 64))
    prepared = prepare(model_of(nodes, {"A": positive}), tmp_path)
    values = np.abs(samples(3))
    values[1, 0] = 0
    rows = collected(prepared, values)
    (group,) = prepared.groups
    assert rows.groups[group.name].activations.shape == (16, K)
    nothing = collected(prepared, values[1:2])
    assert "NaN or infinite" in nothing.missing[group.name]


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"no archive"])
def test_damaged_files_are_none(tmp_path, content):
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    assert GradientSamples.load(path) is None


def test_rows_survive_a_round_trip(tmp_path):
    random = np.random.default_rng(0)
    rows = GroupRows(
        random.standard_normal((5, 8)).astype(np.float32),
        random.standard_normal((2, 5, 3)).astype(np.float32),
    )
    saved = GradientSamples({"a+b": rows}, {"c": "node 'ü' (Loop) has no gradient rule"})
    path = tmp_path / "rows.npz"
    saved.save(path)
    found = GradientSamples.load(path)
    assert found is not None
    assert found.missing == saved.missing
    np.testing.assert_array_equal(found.groups["a+b"].gradients, rows.gradients)
    np.testing.assert_array_equal(found.groups["a+b"].activations, rows.activations)
    assert GradientSamples.load(tmp_path / "none.npz") is None
    assert [file.name for file in tmp_path.iterdir()] == ["rows.npz"]


@pytest.mark.parametrize("effort", Effort)
def test_rows_are_bounded_by_memory_and_work(effort, tmp_path, monkeypatch):
    work = WORK[effort]
    groups = prepare(two_rectified(), tmp_path).groups
    width = sum(g.in_channels + work.directions * g.out_channels for g in groups)
    assert gradient_rows.rows_per_group(groups, work) == work.gradient_rows
    monkeypatch.setattr(gradient_rows, "ROW_BYTES", 4 * width * 200)
    assert gradient_rows.rows_per_group(groups, work) == 200
    weights = sum(g.in_channels * g.out_channels for g in groups)
    monkeypatch.setattr(gradient_rows, "ROW_WEIGHTS", work.directions * weights * 170)
    assert gradient_rows.rows_per_group(groups, work) == 170
    monkeypatch.setattr(gradient_rows, "ROW_BYTES", 1)
    assert gradient_rows.rows_per_group(groups, work) == gradient_rows.LEAST_GRADIENT_ROWS
