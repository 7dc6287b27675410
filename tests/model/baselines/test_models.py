"""Whole models: exported ones, MiniLM, and what is on disk afterwards."""

import numpy as np
import onnx
import pytest

from mmcompile.errors import UsageError
from mmcompile.model.passes.baselines import KINDS
from tests.compiling import prepare
from tests.model.baselines.making import largest, make, make_from
from tests.models import SMALL_MODELS, SMALL_VOCABULARY, matmul
from tests.running import cosine, run

pytestmark = pytest.mark.slow

LEAST = {"fp16": 0.9999, "fp8": 0.98, "mxfp8": 0.98, "nvfp4": 0.8}
"""Cosine similarity with random weights; measured .99999, .9985, .9985 and .97 at worst."""


def token_feed(model):
    ids = np.random.default_rng(0).integers(3, SMALL_VOCABULARY, (2, 12))
    names = {value.name for value in onnx.load(model, load_external_data=False).graph.input}
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feed["attention_mask"][1, :4] = 0
    feed |= {"token_type_ids": np.zeros_like(ids)}
    return {name: value for name, value in feed.items() if name in names}


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_exported_models(name, exported, tmp_path):
    model = exported(name)
    feed = token_feed(model)
    prepared = prepare(model, tmp_path, heads=False)
    amax = largest(prepared, feed)
    before = onnx.load(model, load_external_data=False).graph
    (reference, *_) = run(model, feed)
    for kind in KINDS:
        result = make_from(kind, prepared, tmp_path / kind, amax)
        for path in {result.path, result.runnable}:
            onnx.checker.check_model(str(path), full_check=True)
            graph = onnx.load(path, load_external_data=False).graph
            assert list(graph.input) == list(before.input)
            assert list(graph.output) == list(before.output)
        (actual, *_) = run(result.runnable, feed)
        assert actual.dtype == reference.dtype
        real = feed.get("attention_mask", np.ones((2, 12))).astype(bool)
        found = cosine(actual[real], reference[real])
        print(name, kind, found)
        assert found >= LEAST[kind], kind


def test_minilm(exported, tmp_path):
    model = exported("minilm")
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 32))
    feed = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    prepared = prepare(model, tmp_path, heads=False)
    amax = largest(prepared, feed)
    (reference, *_) = run(model, feed)
    sizes = {}
    for kind, least in (("fp16", 0.9999), ("fp8", 0.985), ("mxfp8", 0.985), ("nvfp4", 0.9)):
        result = make_from(kind, prepared, tmp_path / kind, amax)
        (actual, *_) = run(result.runnable, feed)
        assert cosine(actual, reference) >= least, kind
        assert len(result.quantized) == (0 if kind == "fp16" else 36)
        sizes[kind] = result.bytes
    assert sizes["nvfp4"] < sizes["fp8"] < sizes["mxfp8"] < sizes["fp16"] < 46e6


@pytest.fixture
def folders(tmp_path):
    for kind in KINDS:
        (tmp_path / kind).mkdir()
    return tmp_path


def test_unknown_kind(folders):
    (folders / "int8").mkdir()
    with pytest.raises(UsageError) as caught:
        make("int8", matmul(), folders)
    assert caught.value.code == "unknown-baseline"


def test_the_model_itself_is_not_replaced(folders):
    model = folders / "model.onnx"
    onnx.save(matmul(), model)
    prepared = prepare(model, folders)
    before = model.read_bytes()
    with pytest.raises(UsageError) as caught:
        make_from("fp16", prepared, folders)
    assert caught.value.code == "output-is-source"
    assert model.read_bytes() == before


def test_files_of_another_kind_go(folders):
    prepared = prepare(matmul(), folders)
    out = folders / "out"
    make_from("nvfp4", prepared, out)
    names = {path.name for path in out.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "model.onnxruntime.onnx"}
    result = make_from("fp8", prepared, out)
    assert result.runnable == result.path
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert result.bytes == sum(path.stat().st_size for path in out.iterdir())


def test_both_copies_share_one_data_file(folders):
    result = make_from("nvfp4", prepare(matmul(), folders), folders / "out")
    ours, theirs = (
        {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
        for path in (result.runnable, result.path)
    )
    name = "mmcompile.baseline.weight.linear"
    assert ours[name].external_data == theirs[name].external_data
    assert ours[name].data_type == onnx.TensorProto.UINT8
    assert theirs[name].data_type == onnx.TensorProto.FLOAT4E2M1
    assert [*theirs[name].dims] == [ours[name].dims[0], 2 * ours[name].dims[1]]


def test_a_failure_leaves_what_was_there(folders, monkeypatch):
    prepared = prepare(matmul(), folders)
    make_from("fp8", prepared, folders / "out")
    before = {path.name: path.read_bytes() for path in (folders / "out").iterdir()}

    def fail(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", fail)
    from mmcompile.errors import EnvironmentProblem

    with pytest.raises(EnvironmentProblem) as caught:
        make_from("mxfp8", prepared, folders / "out")
    assert caught.value.code == "disk-full"
    assert {path.name: path.read_bytes() for path in (folders / "out").iterdir()} == before
