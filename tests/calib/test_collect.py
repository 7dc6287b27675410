"""Calibration statistics against numpy on tensors that the plain model hands out."""

import zipfile

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mmcompile.calib.collect import ROW_LIMIT, ROWS_PER_SAMPLE, collect, token_mask
from mmcompile.calib.execution import Execution
from mmcompile.calib.instrument import WatchedTensor, instrument, watched_tensor
from mmcompile.calib.stats import ActivationStats, TensorStats, merge
from mmcompile.data.dataset import CalibrationData, InputSpec
from mmcompile.errors import ExitCode, UnsupportedModelError, UsageError
from mmcompile.model.passes.upcast_half import upcast_half
from mmcompile.model.source import load_model
from mmcompile.policy.choices import Thresholds
from mmcompile.policy.split import threshold_ratios
from tests import models
from tests.compiling import prepare
from tests.models import K, N, weight
from tests.running import run

VOCABULARY = 50
RATIOS = (0.0729, 0.25, 0.9)
I64 = TensorProto.INT64
node = helper.make_node


def eighths(*shape, seed=0):
    return np.rint(weight(*shape, seed=seed) * 40) / np.float32(8)


def token_model(sequence="sequence", batch="batch", opset=20):
    """Embedding, two layers per token, one per sequence, one with transA, one after a head.

    Watched: `e` and `r` have a row per token; `pooled` has one per sequence; `t` is stored [K, M].
    All values are multiples of 1/8, so that every product is exact in any order.
    """
    axes = ["axis"] if opset >= 18 else []
    old = {} if axes else {"axes": [1]}
    nodes = [
        node("Gather", ["E", "input_ids"], ["e"], name="embed"),
        node("MatMul", ["e", "W"], ["h"], name="first"),
        node("Relu", ["h"], ["r"], name="relu"),
        node("MatMul", ["r", "V"], ["logits"], name="second"),
        node("ReduceMean", ["r", *axes], ["pooled"], name="pool", keepdims=0, **old),
        node("Gemm", ["pooled", "V"], ["pooler"], name="third"),
        node("Reshape", ["r", "flat"], ["rows"], name="flatten"),
        node("Transpose", ["rows"], ["t"], name="turn", perm=[1, 0]),
        node("Gemm", ["t", "V"], ["turned"], name="fourth", transA=1),
        node("Tanh", ["logits"], ["late"], name="late"),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [
            helper.make_tensor_value_info(name, I64, [batch, sequence])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(name, 1, None) for name in ("late", "pooler", "turned")],
        [
            numpy_helper.from_array(eighths(VOCABULARY, K, seed=4), "E"),
            numpy_helper.from_array(eighths(K, N), "W"),
            numpy_helper.from_array(eighths(N, 32, seed=1), "V"),
            numpy_helper.from_array(np.array([-1, N]), "flat"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


TENSORS = {"e": K, "r": N, "pooled": N, "t": N}
WATCHED = tuple(WatchedTensor(name, size, name == "t") for name, size in TENSORS.items())


def specs_of(model):
    specs = []
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = tuple(d.dim_param or d.dim_value for d in dims)
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        specs.append(InputSpec(value.name, dtype, shape))
    return tuple(specs)


def saved(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return load_model(path)


def collected(model, samples, tmp_path, watched=WATCHED, *, ratios=RATIOS, skeleton=None):
    source = saved(model, tmp_path)
    data = CalibrationData("test data", True, len(samples), lambda: iter(samples))
    proto = skeleton or source.proto
    return collect(Execution(source, proto, specs_of(proto)), watched, data, ratios)


def sample(mask, seed):
    """Tokens under a mask of 0 and 1, given as text."""
    real = np.array([[int(mark) for mark in row] for row in mask.split()], np.int64)
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, real.shape)
    return {"input_ids": np.where(real, ids, 0), "attention_mask": real}


def reference(model, samples, trim):
    """Per tensor and sample, the rows that count; padding is cut off the sample's ends first."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    del marked.graph.output[:]
    marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in TENSORS)
    found = {name: [] for name in TENSORS}
    for feed in samples:
        mask = feed["attention_mask"]
        kept = np.flatnonzero(mask[0])
        seen = slice(kept[0], kept[-1] + 1) if trim and len(mask) == 1 else slice(None)
        cut = {name: values[:, seen] for name, values in feed.items()}
        values = dict(zip(TENSORS, run(marked, cut), strict=True))
        for name, value in values.items():
            rows = value.T if name == "t" else value.reshape(-1, value.shape[-1])
            found[name].append(rows if name == "pooled" else rows[mask[:, seen].reshape(-1) == 1])
    return found


def check(stats, rows_of_samples):
    """Against formulas over the rows themselves."""
    rows = np.concatenate(rows_of_samples).astype(np.float64)
    magnitude = np.abs(rows)
    assert stats.samples == len(rows_of_samples)
    assert stats.tokens == len(rows)
    # Each sample is summed in fp32, in any order: n·2⁻²⁴ of the sum of magnitudes.
    accuracy = {"rtol": max(map(len, rows_of_samples)) * 2.0**-23}
    np.testing.assert_allclose(stats.abs_sum, magnitude.sum(0), **accuracy)
    np.testing.assert_allclose(stats.square_sum, (rows**2).sum(0), **accuracy)
    means = [np.abs(r.astype(np.float64)).mean(0) for r in rows_of_samples]
    np.testing.assert_allclose(stats.mean_abs, np.max(means, axis=0), **accuracy)
    np.testing.assert_array_equal(stats.abs_max, magnitude.max(0))
    assert stats.ratios == RATIOS
    plain = np.abs(np.concatenate(rows_of_samples))
    limits = [plain.max(1, keepdims=True) * np.float32(ratio) for ratio in RATIOS]
    assert stats.exceed.tolist() == [int((plain > limit).sum()) for limit in limits]
    for ratio, limit in zip(RATIOS, limits, strict=True):
        assert stats.exceed_share(ratio) == pytest.approx((plain > limit).mean())
    known = {row.tobytes() for row in np.concatenate(rows_of_samples)}
    assert all(row.tobytes() in known for row in stats.rows)
    expected = sum(min(len(r), ROWS_PER_SAMPLE) for r in rows_of_samples)
    assert len(stats.rows) == len(stats.row_keys) == min(expected, ROW_LIMIT)
    assert stats.rows.dtype == np.float32


SAMPLES = {
    "no padding": [sample("1111111", 0), sample("111", 1), sample("11111", 2)],
    "padding on the right": [sample("1111100", 0), sample("1110000", 1)],
    "padding on the left": [sample("0011111", 0), sample("0000001", 1)],
    "padding in the middle": [sample("1101011", 0), sample("1000001", 1)],
    "padding everywhere": [sample("0110100", 0), sample("0010110", 1), sample("1111111", 2)],
    "one token": [sample("1", 0), sample("0001000", 1)],
}


@pytest.mark.parametrize("case", SAMPLES)
def test_statistics_equal_numpys(case, tmp_path):
    model = token_model()
    stats = collected(model, SAMPLES[case], tmp_path)
    expected = reference(model, SAMPLES[case], trim=True)
    assert stats.tensors.keys() == {"e", "r", "pooled", "t.transposed"}
    for watched in WATCHED:
        check(stats.tensors[watched.key], expected[watched.name])
    real = sum(int(s["attention_mask"].sum()) for s in SAMPLES[case])
    assert stats.tokens == real
    assert stats.masked_tokens == sum(s["attention_mask"].size for s in SAMPLES[case]) - real
    assert (stats.description, stats.fit, stats.samples) == (
        "test data",
        True,
        len(SAMPLES[case]),
    )


@pytest.mark.parametrize("shape", [(7, "batch"), (7, 1), ("sequence", 1)])
def test_fixed_shapes_keep_their_padding_but_do_not_count_it(shape, tmp_path):
    model = token_model(*shape)
    samples = SAMPLES["padding everywhere"] + SAMPLES["padding on the left"]
    stats = collected(model, samples, tmp_path)
    expected = reference(model, samples, trim=shape[0] == "sequence")
    for watched in WATCHED:
        check(stats.tensors[watched.key], expected[watched.name])


def test_fixed_batch_of_several_sequences(tmp_path):
    model = token_model("sequence", 2)
    samples = [sample("11100 01111", 0), sample("11 10", 1)]
    stats = collected(model, samples, tmp_path)
    expected = reference(model, samples, trim=False)
    for watched in WATCHED:
        check(stats.tensors[watched.key], expected[watched.name])


@pytest.mark.parametrize("opset", [15, 17, 18, 25])
def test_every_opset_counts_alike(opset, tmp_path):
    samples = SAMPLES["padding in the middle"]
    model = token_model(opset=opset)
    stats = collected(model, samples, tmp_path)
    expected = reference(model, samples, trim=True)
    for watched in WATCHED:
        check(stats.tensors[watched.key], expected[watched.name])


def test_padding_of_huge_values_does_not_count(tmp_path):
    """Token 0, which stands at the masked positions, has an embedding of a million."""
    model = token_model(7, 1)
    (table,) = (t for t in model.graph.initializer if t.name == "E")
    values = numpy_helper.to_array(table).copy()
    values[0] = 1e6
    table.CopyFrom(numpy_helper.from_array(values, "E"))
    stats = collected(model, SAMPLES["padding everywhere"], tmp_path).tensors
    assert stats["e"].abs_max.max() < 100
    assert stats["pooled"].abs_max.max() > 1e4  # the mean over all positions, computed so


def test_sample_of_padding_only_is_left_out(tmp_path):
    samples = [sample("1111", 0), sample("0000", 1)]
    stats = collected(token_model(4, 1), samples, tmp_path)
    assert (stats.samples, stats.tokens, stats.masked_tokens) == (1, 4, 4)
    with pytest.raises(UsageError, match="no sample with a token that is not padding") as caught:
        collected(token_model(4, 1), samples[1:], tmp_path)
    assert caught.value.code == "no-samples"


def test_tensors_without_tokens(tmp_path):
    """A row filter that lets nothing through in one of the samples."""
    model = models.model_of(
        [
            node("Compress", ["x", "keep"], ["h"], axis=0),
            node("MatMul", ["h", "W"], ["y"], name="linear"),
        ],
        {"W": weight(K, N)},
        x=("rows", K),
        y=("n", N),
        inputs=[helper.make_tensor_value_info("keep", TensorProto.BOOL, ["rows"])],
    )
    x = weight(6, K, seed=3)
    keep = np.array([1, 0, 1, 1, 0, 0], bool)
    samples = [{"x": x, "keep": keep}, {"x": x, "keep": np.zeros(6, bool)}]
    stats = collected(model, samples, tmp_path, [WatchedTensor("h", K)]).tensors["h"]
    np.testing.assert_array_equal(stats.abs_max, np.abs(x[keep]).max(0))
    assert (stats.samples, stats.tokens, len(stats.rows)) == (2, 3, 3)
    none = collected(model, samples[1:], tmp_path, [WatchedTensor("h", K)]).tensors["h"]
    assert (none.tokens, none.abs_max.max(), none.mean_abs.max()) == (0, 0, 0)


def test_rows_are_a_bounded_sample_of_different_tokens(tmp_path):
    """More rows in a sample than there are random keys, and more samples than rows are kept."""
    model = models.matmul()
    x = np.arange(5000, dtype=np.float32)[None, :, None] * np.ones(K, np.float32) + 1
    watched = [WatchedTensor("x", K)]
    stats = collected(
        model, [{"x": x + shift} for shift in (0, 0.25, 0.5)], tmp_path, watched
    ).tensors["x"]
    assert len(stats.rows) == 3 * ROWS_PER_SAMPLE
    # Uniform over 0..4999: the mean of 96 is off by more than 5 standard deviations never.
    assert abs(stats.rows[:, 0].mean() - 2500) < 5 * 5000 / np.sqrt(12 * 96)
    assert len(set(stats.rows[:, 0])) > 80
    short = [{"x": x[:, i : i + 40]} for i in range(0, 800, 40)]
    many = collected(model, short, tmp_path, watched).tensors["x"]
    assert len(many.rows) == ROW_LIMIT
    assert len(np.unique(many.rows[:, 0])) == ROW_LIMIT
    per_sample = np.bincount((many.rows[:, 0].astype(int) - 1) // 40, minlength=20)
    assert per_sample.min() > 0
    again = collected(model, short, tmp_path, watched).tensors["x"]
    np.testing.assert_array_equal(again.rows, many.rows)


def test_half_precision_is_summed_in_float(tmp_path):
    model = models.typed("fp16")
    x = np.full((1, 9, K), 60000, np.float16)
    stats = collected(model, [{"x": x}], tmp_path, [WatchedTensor("x", K)]).tensors["x"]
    np.testing.assert_allclose(stats.abs_sum, 9 * 60000.0)
    np.testing.assert_allclose(stats.square_sum, 9 * 60000.0**2, rtol=1e-6)


def test_bfloat16_model_is_calibrated_in_float(tmp_path):
    nodes = [
        node("MatMul", ["x", "W"], ["h"], name="first"),
        node("Relu", ["h"], ["r"], name="relu"),
        node("MatMul", ["r", "V"], ["y"], name="second"),
    ]
    brain = {
        "W": weight(K, N).astype(ml_dtypes.bfloat16),
        "V": weight(N, N, seed=1).astype(ml_dtypes.bfloat16),
    }
    model = models.model_of(nodes, brain, dtype=TensorProto.BFLOAT16)
    prepared = prepare(model, tmp_path)
    watched = [watched_tensor(group) for group in prepared.groups]
    assert [tensor.name for tensor in watched] == ["x", "r"]
    x = weight(1, 9, K, seed=7)
    skeleton = upcast_half(prepared.source.proto)
    stats = collected(model, [{"x": x}], tmp_path, watched, skeleton=skeleton).tensors
    r = np.maximum(x[0] @ brain["W"].astype(np.float32), 0)
    check(stats["x"], [x[0]])
    # r comes from fp32 products here and there, whose order is free: 98 · 2⁻²⁴ of sums below 10.
    np.testing.assert_allclose(stats["r"].abs_max, r.max(0), atol=6e-5)
    np.testing.assert_allclose(stats["r"].abs_sum, r.sum(0), atol=9 * 6e-5)


def test_policies_without_thresholds_count_none(tmp_path):
    stats = collected(token_model(), SAMPLES["no padding"], tmp_path, ratios=()).tensors["e"]
    assert stats.ratios == ()
    assert stats.exceed.shape == (0,)
    assert stats.tokens == 15


def test_model_without_linears_needs_no_run(tmp_path):
    stats = collected(token_model(), [{"nonsense": np.zeros(1)}], tmp_path, watched=())
    assert (stats.tensors, stats.samples, stats.tokens) == ({}, 0, 0)


def test_only_what_the_watched_tensors_need_is_computed(tmp_path):
    source = saved(token_model(), tmp_path)
    names = {n.name for n in instrument(source.proto, WATCHED[:1], RATIOS, 4).graph.node}
    assert "embed" in names
    assert not names & {"first", "second", "late", "third", "fourth"}
    assert "late" in {n.name for n in source.proto.graph.node}  # its argument is as it was


def test_body_keeps_the_outer_tensors_it_reads(tmp_path):
    """A branch reads what a node outside it makes, and a weight."""
    model = models.subgraph()
    x = weight(1, 5, K, seed=3)
    for condition in (False, True):
        feed = {"x": x, "condition": np.array(condition)}
        stats = collected(model, [feed], tmp_path, [WatchedTensor("y", N)]).tensors["y"]
        (y,) = run(model, feed)
        # fp32 products of K = 96 in any order: 98 · 2⁻²⁴ of magnitudes below 10.
        np.testing.assert_allclose(stats.abs_max, np.abs(y[0]).max(0), atol=1e-4)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_activation_that_is_not_finite_names_its_node(poison, tmp_path):
    model = token_model()
    (table,) = (t for t in model.graph.initializer if t.name == "W")
    values = numpy_helper.to_array(table).copy()
    values[:, 5] = poison
    table.CopyFrom(numpy_helper.from_array(values, "W"))
    samples = [sample("111", 0), sample("11111", 1)]
    with pytest.raises(UnsupportedModelError) as caught:
        collected(model, samples, tmp_path)
    error = caught.value
    assert error.code == "activation-not-finite"
    assert error.where == "node relu (Relu)"
    assert "its output r is NaN or infinite in channel 5 for sample 0" in str(error)
    assert error.exit_code == ExitCode.UNSUPPORTED_MODEL


def test_input_that_is_not_finite_is_named(tmp_path):
    x = np.ones((1, 4, K), np.float32)
    bad = x.copy()
    bad[0, 2, 7] = np.nan
    with pytest.raises(UnsupportedModelError, match=r"input x: .* channel 7 for sample 1"):
        collected(models.matmul(), [{"x": x}, {"x": bad}], tmp_path, [WatchedTensor("x", K)])


def test_rejected_sample_is_named(tmp_path):
    good, bad = sample("111", 0), sample("111", 1)
    bad["input_ids"] = bad["input_ids"] + VOCABULARY
    with pytest.raises(UsageError, match="ONNX Runtime rejected it") as caught:
        collected(token_model(), [good, bad], tmp_path)
    assert caught.value.where == "sample 1"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feed", "mask"),
    [
        ({"attention_mask": np.array([[1, 0, 2]])}, [True, False, True]),
        ({"attention_mask": np.array([[1], [0]])}, [True, False]),
        ({"input_ids": np.zeros((1, 3))}, [True] * 3),
        ({"x": np.zeros((1, 3, 5))}, [True]),
        ({"attention_mask": np.zeros((1, 1, 2, 2)), "input_ids": np.zeros((1, 2))}, [True]),
    ],
)
def test_mask_of_a_sample(feed, mask):
    assert token_mask(feed).tolist() == mask


def random_stats(seed, rows=None, samples=1):
    random = np.random.default_rng(seed)
    count = random.integers(0, 9) if rows is None else rows
    return TensorStats(
        samples=samples,
        tokens=int(random.integers(0, 100)),
        mean_abs=random.random(4),
        abs_sum=random.integers(0, 1000, 4).astype(np.float64),
        abs_max=random.random(4, dtype=np.float32),
        square_sum=random.integers(0, 1000, 4).astype(np.float64),
        ratios=(0.5, 0.25),
        exceed=random.integers(0, 99, 2),
        rows=random.random((count, 4), dtype=np.float32),
        row_keys=random.random(count),
    )


def facts(stats):
    """All fields, the sampled rows in the order of their keys."""
    fields = {name: np.asarray(value).tolist() for name, value in vars(stats).items()}
    order = np.argsort(stats.row_keys)
    return fields | {"rows": stats.rows[order].tolist(), "row_keys": stats.row_keys[order].tolist()}


seeds = st.integers(0, 2**32 - 1)


@given(seeds, seeds, seeds, st.integers(1, 20))
def test_merging_is_associative_and_commutative(a, b, c, limit):
    first, second, third = map(random_stats, (a, b ^ 1 << 32, c ^ 1 << 33))
    left = merge(merge(first, second, limit), third, limit)
    right = merge(first, merge(second, third, limit), limit)
    assert facts(left) == facts(right)
    assert facts(merge(first, second, limit)) == facts(merge(second, first, limit))
    assert len(left.rows) == min(limit, sum(len(s.rows) for s in (first, second, third)))


def test_merged_rows_are_those_with_the_largest_keys():
    first, second = random_stats(1, rows=6), random_stats(2, rows=6)
    both = merge(first, second, 5)
    keys = np.concatenate([first.row_keys, second.row_keys])
    assert sorted(both.row_keys) == sorted(keys)[-5:]
    rows = dict(zip(keys, np.concatenate([first.rows, second.rows]).tolist(), strict=True))
    assert [rows[key] for key in both.row_keys] == both.rows.tolist()


def test_shards_together_are_the_whole(tmp_path):
    samples = SAMPLES["no padding"] + SAMPLES["padding everywhere"]
    whole = collected(token_model(), samples, tmp_path).tensors
    shards = samples[:2], samples[2:]
    parts = [collected(token_model(), shard, tmp_path).tensors for shard in shards]
    for key, stats in whole.items():
        merged = merge(parts[0][key], parts[1][key], ROW_LIMIT)
        for field in ("samples", "tokens", "mean_abs", "abs_max", "exceed"):
            np.testing.assert_array_equal(getattr(merged, field), getattr(stats, field))
        np.testing.assert_allclose(merged.abs_sum, stats.abs_sum, rtol=1e-15 * len(samples))
        np.testing.assert_allclose(merged.square_sum, stats.square_sum, rtol=1e-15 * len(samples))


def test_statistics_taken_otherwise_do_not_merge():
    other = TensorStats(**{**vars(random_stats(1)), "ratios": (0.5, 0.3)})
    with pytest.raises(UsageError, match="differ in channels or thresholds"):
        merge(random_stats(0), other, 9)


def test_share_of_a_threshold_that_was_not_counted_is_refused():
    with pytest.raises(UsageError, match="did not count it"):
        random_stats(0).exceed_share(0.3)


def stored(tmp_path):
    tensors = {"α/MatMul.input": random_stats(3), "b.transposed": random_stats(4, rows=0)}
    return ActivationStats(tensors, "128 samples of tëxt.txt", False, 17), tmp_path / "s.npz"


def test_statistics_survive_the_file(tmp_path):
    stats, path = stored(tmp_path)
    stats.save(path)
    loaded = ActivationStats.load(path)
    assert {k: facts(v) for k, v in loaded.tensors.items()} == {
        k: facts(v) for k, v in stats.tensors.items()
    }
    for key, tensor in stats.tensors.items():
        for field, value in vars(tensor).items():
            read = getattr(loaded.tensors[key], field)
            assert type(read) is type(value)
            assert getattr(read, "dtype", None) == getattr(value, "dtype", None)
    assert (loaded.description, loaded.fit, loaded.masked_tokens) == (
        stats.description,
        False,
        17,
    )
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]
    empty = ActivationStats({}, "nothing", True, 0)
    empty.save(path)
    assert ActivationStats.load(path).tensors == {}


def test_thresholds_survive_the_file_exactly(tmp_path):
    ratios = threshold_ratios(Thresholds.PAPER, 0.7)
    stats = TensorStats(**{**vars(random_stats(0)), "ratios": ratios})
    path = tmp_path / "s.npz"
    ActivationStats({"x": stats}, "", True, 0).save(path)
    assert ActivationStats.load(path).tensors["x"].ratios == ratios
    ActivationStats.load(path).tensors["x"].exceed_share(ratios[1])


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "s.npz"
    np.savez(path, header=np.array(["2", "later"]))
    with pytest.raises(UsageError, match="version 2, 1 is read"):
        ActivationStats.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UsageError) as caught:
        ActivationStats.load(path)
    assert caught.value.code == "stats-unreadable"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UsageError):
        ActivationStats.load(path)
    with pytest.raises(UsageError, match="missing"):
        ActivationStats.load(tmp_path / "missing")
    path.write_bytes(b"")
    with pytest.raises(UsageError):
        ActivationStats.load(path)


@pytest.mark.parametrize(
    ("field", "value"), [(8, 1), (10, 8), (10, 99)], ids=["encrypted", "deflate", "unknown"]
)
def test_damaged_archive_is_refused(field, value, tmp_path):
    """Flags and compression of an entry in the archive's directory."""
    stats, path = stored(tmp_path)
    stats.save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + field] = value
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        ActivationStats.load(path)
    assert caught.value.code == "stats-unreadable"


def test_damaged_compressed_archive_is_refused(tmp_path):
    """Whoever compresses the file again for storage may damage it, too."""
    stats, path = stored(tmp_path)
    stats.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert ActivationStats.load(path).description == stats.description
    content = bytearray(path.read_bytes())
    start = content.index(b"header.npy") + len(b"header.npy")
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UsageError, match="stats-unreadable"):
        ActivationStats.load(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_file_never_gives_wrong_statistics(tmp_path_factory, data):
    """Cut anywhere, or with any byte changed: refused, or read as it was."""
    folder = tmp_path_factory.getbasetemp()
    stats, path = stored(folder)
    stats.save(path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    error = None
    try:
        loaded = ActivationStats.load(path)
    except UsageError as refused:
        error = refused
    if error is not None:
        assert error.code == "stats-unreadable"
        assert "\n" not in str(error)
    else:
        assert {k: facts(v) for k, v in loaded.tensors.items()} == {
            k: facts(v) for k, v in stats.tensors.items()
        }


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    stats, path = stored(tmp_path)
    stats.save(path)
    before = path.read_bytes()

    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        stats.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]
    assert zipfile.is_zipfile(path)
