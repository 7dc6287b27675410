"""Sampled inputs on disk against the rows that the plain model hands out."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from mmcompile.calib import execution, token_rows
from mmcompile.calib.collect import ROWS_PER_SAMPLE, collect, collect_token_rows
from mmcompile.calib.execution import Execution
from mmcompile.calib.token_rows import LEAST_SAMPLED_ROWS, TokenRows, TokenRowWriter, bounded_rows
from mmcompile.data.dataset import CalibrationData
from mmcompile.errors import EnvironmentProblem, ExitCode
from tests.calib.test_collect import (
    SAMPLES,
    TENSORS,
    WATCHED,
    reference,
    sample,
    saved,
    specs_of,
    token_model,
)

LONG = [sample("1" * 23, seed) for seed in range(12)]


def collected(samples, tmp_path, rows=10**6, watched=WATCHED, count=True, seed=0):
    model = token_model()
    source = saved(model, tmp_path)
    folder = tmp_path / "rows"
    folder.mkdir(exist_ok=True)
    known = len(samples) if count else None
    data = CalibrationData("test data", True, known, lambda: iter(samples))
    writer = TokenRowWriter(watched, data, rows, folder)
    running = Execution(source, source.proto, specs_of(source.proto), seed)
    collect_token_rows(running, data, writer)
    assert writer.finished
    return writer.found


def joined(found, key):
    return np.concatenate(found.split(key))


def in_any_order(rows):
    return sorted(row.tobytes() for row in rows)


@pytest.mark.parametrize("case", SAMPLES)
def test_all_rows_are_those_of_real_tokens(case, tmp_path):
    """Padding tokens are not among them; a pooled tensor has one row per sequence."""
    found = collected(SAMPLES[case], tmp_path)
    expected = reference(token_model(), SAMPLES[case], trim=True)
    for watched in WATCHED:
        rows = joined(found, watched.key)
        assert (rows.dtype, rows.shape[1]) == (np.float32, TENSORS[watched.name])
        assert in_any_order(rows) == in_any_order(np.concatenate(expected[watched.name]))
        assert found.files[watched.key].stat().st_size == rows.nbytes


@pytest.mark.parametrize("count", [True, False])
def test_samples_share_the_rows(count, tmp_path):
    """Whether or not the data tells how many samples there are: text does not."""
    found = collected(LONG, tmp_path, rows=60, count=count)
    expected = reference(token_model(), LONG, trim=True)["r"]
    rows = joined(found, "r")
    assert len(rows) == 60
    for part, whole in zip(np.split(rows, len(LONG)), expected, strict=True):
        assert Counter(in_any_order(part)) <= Counter(in_any_order(whole))
    assert len(joined(found, "pooled")) == len(LONG)


def test_one_in_eight_rows_is_held_back_the_last_ones(tmp_path):
    found = collected(LONG, tmp_path, rows=LEAST_SAMPLED_ROWS)
    seen, held_back = found.split("e")
    total = 22 * len(LONG)  # ⌈256 / 12⌉ of 23
    assert (len(seen), len(held_back)) == (total - total // 8, total // 8)
    last = np.concatenate(reference(token_model(), LONG[-2:], trim=True)["e"])
    assert set(in_any_order(held_back)) <= set(in_any_order(last))
    np.testing.assert_array_equal(
        np.concatenate([seen, held_back]).ravel(), np.fromfile(found.files["e"], np.float32)
    )
    assert isinstance(seen, np.memmap)


@pytest.mark.parametrize(("rows", "held"), [(0, 0), (1, 0), (7, 0), (8, 1), (15, 1), (16, 2)])
def test_sizes_of_the_parts(rows, held, tmp_path):
    values = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    values.tofile(tmp_path / "0.f32")
    seen, held_back = TokenRows({"x": tmp_path / "0.f32"}, {"x": 3}).split("x")
    np.testing.assert_array_equal(seen, values[: rows - held])
    np.testing.assert_array_equal(held_back, values[rows - held :])
    assert seen.shape[1] == held_back.shape[1] == 3


def test_the_seed_chooses_the_rows(tmp_path):
    def rows(seed):
        folder = tmp_path / str(seed)
        folder.mkdir()
        return joined(collected(LONG, folder, rows=60, seed=seed), "e")

    assert in_any_order(rows(0)) != in_any_order(rows(1))


def test_the_disk_bounds_the_rows(monkeypatch):
    width = 4 * sum(TENSORS.values())
    assert bounded_rows(WATCHED, 4096) == 4096
    monkeypatch.setattr(token_rows, "DISK_BYTES", 1000 * width + width - 1)
    assert bounded_rows(WATCHED, 4096) == 1000
    assert bounded_rows(WATCHED, 300) == 300
    monkeypatch.setattr(token_rows, "DISK_BYTES", width)
    assert bounded_rows(WATCHED, 4096) == LEAST_SAMPLED_ROWS
    assert bounded_rows(WATCHED, 7) == 7


@pytest.mark.parametrize("count", [True, False])
def test_the_files_keep_within_the_bound(count, tmp_path, monkeypatch):
    """All but what rounding up per sample adds."""
    monkeypatch.setattr(token_rows, "LEAST_SAMPLED_ROWS", 1)
    monkeypatch.setattr(token_rows, "DISK_BYTES", 100 * 4 * sum(TENSORS.values()))
    found = collected(LONG, tmp_path, count=count)
    size = sum(path.stat().st_size for path in found.files.values())
    assert size <= token_rows.DISK_BYTES * (1 + len(LONG) / 100)
    assert len(joined(found, "r")) == 9 * len(LONG)


def test_no_tensors_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "open_session", None)
    found = collected(LONG, tmp_path, watched=())
    assert not found.files
    assert not list((tmp_path / "rows").iterdir())


def test_samples_that_are_all_padding_add_nothing(tmp_path):
    masked = [{**LONG[0], "attention_mask": np.zeros_like(LONG[0]["attention_mask"])}]
    found = collected(masked, tmp_path)
    for name, channels in (("e", TENSORS["e"]), ("pooled", TENSORS["pooled"])):
        seen, held_back = found.split(name)
        assert seen.shape == held_back.shape == (0, channels)


@pytest.mark.parametrize("place", range(len(WATCHED)))
def test_a_full_disk_is_an_error_for_the_user(place, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / f"{place}.f32").symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem) as caught:
        collected(LONG, tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("disk-full", ExitCode.ENVIRONMENT)
    assert str(tmp_path / "rows") in caught.value.where


def test_a_folder_that_is_gone_is_an_error_for_the_user(tmp_path):
    data = CalibrationData("test data", True, len(LONG), lambda: iter(LONG))
    with pytest.raises(EnvironmentProblem):
        TokenRowWriter(WATCHED, data, 9, tmp_path / "no")


@pytest.mark.parametrize("rows", [5, 60, 10**6])
def test_the_run_for_statistics_takes_the_same_rows(rows, tmp_path):
    """And its statistics are those without a writer, which may keep more rows, or fewer."""
    alone = collected(LONG, tmp_path, rows)
    source = saved(token_model(), tmp_path)
    data = CalibrationData("test data", True, len(LONG), lambda: iter(LONG))
    folder = tmp_path / "together"
    folder.mkdir()
    writer = TokenRowWriter(WATCHED, data, rows, folder)
    running = Execution(source, source.proto, specs_of(source.proto))
    arguments = running, WATCHED, data, (0.5,)
    stats, expected = collect(*arguments, writer), collect(*arguments)
    assert writer.finished
    for watched in WATCHED:
        found = writer.found.files[watched.key].read_bytes()
        assert found == alone.files[watched.key].read_bytes()
        tensor, wanted = stats.tensors[watched.key], expected.tensors[watched.key]
        assert len(wanted.rows) <= ROWS_PER_SAMPLE * len(LONG)
        for field in dataclasses.fields(wanted):
            np.testing.assert_array_equal(getattr(tensor, field.name), getattr(wanted, field.name))


def test_transposed_tensors_have_rows_of_channels(tmp_path):
    """A Gemm with transA reads [K, M]."""
    only = tuple(w for w in WATCHED if w.transposed)
    found = collected(LONG, tmp_path, watched=only)
    assert dataclasses.asdict(found)["channels"] == {"t.transposed": TENSORS["t"]}
    expected = reference(token_model(), LONG, trim=True)["t"]
    rows = joined(found, "t.transposed")
    assert in_any_order(rows) == in_any_order(np.concatenate(expected))
