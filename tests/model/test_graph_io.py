import errno
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.errors import EnvironmentProblem, MMCompileError, UnsupportedModelError
from mmcompile.model.source import load_model
from mmcompile.model.writer import ModelWriter
from mmcompile.output import DATA_FILE, MODEL_FILE
from tests.running import run

CHANNELS = 48
STORED_TYPES = [
    number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")
]


def chain_model(layers=3, extra=()):
    rng = np.random.default_rng(7)
    names = [f"h{i}" for i in range(layers)] + ["y"]
    nodes = [helper.make_node("Identity", ["x"], [names[0]], name="first")]
    weights = []
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"mm{i}"))
        value = rng.standard_normal((CHANNELS, CHANNELS)).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"w{i}"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", CHANNELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", CHANNELS])],
        [*weights, *extra],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def save(model, folder, form):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    if form == "external":
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location="w.data", size_threshold=0)
    else:
        path.write_bytes(model.SerializeToString())
    return path


def tensor_of(elem_type, elements):
    name = TensorProto.DataType.Name(elem_type)
    bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.get(name)
    if bits is None:
        bits = 6 if "FLOAT6" in name else 8 * helper.tensor_dtype_to_np_dtype(elem_type).itemsize
    data = np.random.default_rng(elem_type).bytes(elements * bits // 8)
    if elem_type == TensorProto.BOOL:
        data = bytes(byte & 1 for byte in data)
    return TensorProto(name="t", data_type=elem_type, dims=[2, elements // 2], raw_data=data)


@pytest.mark.parametrize("form", ["embedded", "external"])
def test_weights_are_the_same_wherever_they_lie(tmp_path, form):
    model = chain_model()
    source = load_model(save(model, tmp_path, form))
    assert source.weights.names == ("w0", "w1", "w2")
    for tensor in model.graph.initializer:
        value = source.weights.read(tensor.name)
        np.testing.assert_array_equal(value, numpy_helper.to_array(tensor))
        assert value.dtype == np.float32
        assert not value.flags.writeable
    assert source.proto.ByteSize() < 2000
    assert all(t.data_location == TensorProto.EXTERNAL for t in source.proto.graph.initializer)
    assert source.size_bytes > 3 * CHANNELS * CHANNELS * 4
    assert source.folder == tmp_path


@pytest.mark.parametrize("elem_type", STORED_TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("form", ["embedded", "external"])
@pytest.mark.parametrize("elements", [24, 24000], ids=["inline", "on disk"])
def test_every_element_type_is_read(tmp_path, elem_type, form, elements):
    tensor = tensor_of(elem_type, elements)
    source = load_model(save(chain_model(extra=[tensor]), tmp_path, form))
    assert (source.weights.ref("t") is not None) == (elements > 24)
    value = source.weights.read("t")
    expected = numpy_helper.to_array(tensor)
    assert value.dtype == expected.dtype and value.shape == (2, elements // 2)
    assert value.tobytes() == expected.tobytes()
    assert not value.flags.writeable


def test_other_parts_of_the_model_survive_the_split(tmp_path):
    model = chain_model()
    model.doc_string = "a model"
    model.metadata_props.add(key="k", value="v")
    model.graph.initializer[1].doc_string = "a weight"
    identity = helper.make_node("Identity", ["a"], ["b"])
    function = helper.make_function(
        "local", "Same", ["a"], ["b"], [identity], [helper.make_opsetid("", 18)]
    )
    model.functions.append(function)
    model.opset_import.add(domain="local", version=1)
    source = load_model(save(model, tmp_path, "embedded"))
    rebuilt = onnx.ModelProto()
    rebuilt.CopyFrom(source.proto)
    for tensor in rebuilt.graph.initializer:
        tensor.raw_data = source.weights.read(tensor.name).tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    assert rebuilt == model


def test_reading_does_not_copy_and_keeps_the_file_mapped(tmp_path):
    source = load_model(save(chain_model(), tmp_path, "embedded"))
    first, second = source.weights.read("w0"), source.weights.read("w0")
    assert np.shares_memory(first, second)
    ref = source.weights.ref("w0")
    data = ref.path.read_bytes()
    assert data[ref.offset : ref.offset + ref.nbytes] == first.tobytes()
    part = first[3:5, ::2].T
    expected = part.copy()
    del first, second
    np.testing.assert_array_equal(part, expected)


def test_small_values_outside_initializers_are_read_in(tmp_path):
    constant = numpy_helper.from_array(np.arange(4096, dtype=np.float32), "c")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["o"])],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4096])],
        [numpy_helper.from_array(np.full(4096, 3, np.float32), "inner")],
    )
    model = chain_model()
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["k"], ["i"], then_branch=branch, else_branch=branch),
    ]
    model.graph.node.extend(nodes)
    data = b""
    stored = [nodes[0].attribute[0].t, *(a.g.initializer[0] for a in nodes[2].attribute)]
    del model.graph.node[-3:]
    for tensor in stored:
        for key, value in (("location", "w.data"), ("offset", str(len(data)))):
            tensor.external_data.add(key=key, value=value)
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.extend(nodes)
    path = save(model, tmp_path, "embedded")
    (tmp_path / "w.data").write_bytes(data)
    source = load_model(path)
    nodes = source.proto.graph.node
    assert numpy_helper.to_array(nodes[-3].attribute[0].t).sum() == 4096 * 4095 / 2
    assert numpy_helper.to_array(nodes[-1].attribute[1].g.initializer[0])[-1] == 3


@pytest.mark.parametrize("form", ["embedded", "external"])
def test_weights_of_up_to_a_kibibyte_are_part_of_the_skeleton(tmp_path, form):
    extra = [numpy_helper.from_array(np.arange(n, dtype=np.float32), f"w{n}") for n in (256, 257)]
    source = load_model(save(chain_model(1, extra), tmp_path, form))
    assert source.weights.ref("w256") is None
    assert source.weights.ref("w257").nbytes == 1028
    assert source.proto.graph.initializer[1] == extra[0]
    np.testing.assert_array_equal(source.weights.read("w256"), np.arange(256))


def test_digest_is_of_the_content(tmp_path):
    model = chain_model()
    first = load_model(save(model, tmp_path / "a", "external"))
    second = load_model(save(model, tmp_path / "b", "external"))
    assert first.digest() == second.digest()
    data = bytearray((tmp_path / "b" / "w.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "b" / "w.data").write_bytes(data)
    assert second.digest() == first.digest()  # computed once
    assert load_model(tmp_path / "b" / "model.onnx").digest() != first.digest()
    assert load_model(save(model, tmp_path / "c", "embedded")).digest() != first.digest()


def test_onnxruntime_runs_the_skeleton_of_an_embedded_model(tmp_path):
    path = save(chain_model(), tmp_path, "embedded")
    source = load_model(path)
    assert source.weights.ref("w1").offset % 4  # the hard case
    options = onnxruntime.SessionOptions()
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(source.folder))
    session = onnxruntime.InferenceSession(source.proto.SerializeToString(), options)
    feed = {"x": np.eye(CHANNELS, dtype=np.float32)}
    np.testing.assert_array_equal(session.run(None, feed)[0], run(path, feed)[0])


def test_a_linked_model_is_read_where_it_lies(tmp_path):
    real = save(chain_model(), tmp_path / "real", "embedded")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "m.onnx"
    link.symlink_to(real)
    source = load_model(link)
    assert source.path == real
    assert source.weights.read("w0").shape == (CHANNELS, CHANNELS)
    external = save(chain_model(), tmp_path / "other", "external")
    link.unlink()
    link.symlink_to(external)
    (tmp_path / "other" / "w.data").rename(tmp_path / "links" / "w.data")
    source = load_model(link)
    assert source.path == link
    assert source.weights.ref("w0").path == tmp_path / "links" / "w.data"


def test_a_file_that_changes_is_noticed_before_it_is_read(tmp_path):
    source = load_model(save(chain_model(), tmp_path, "external"))
    source.weights.read("w0")
    os.truncate(tmp_path / "w.data", 100)
    with pytest.raises(EnvironmentProblem, match="model-changed"):
        source.weights.read("w2")
    (tmp_path / "w.data").unlink()
    with pytest.raises(EnvironmentProblem, match="model-changed"):
        source.digest()


def test_threads_may_read(tmp_path):
    source = load_model(save(chain_model(), tmp_path, "embedded"))
    expected = source.weights.read("w0").sum()
    sums = []

    def read():
        sums.extend(float(source.weights.read("w0").sum()) for _ in range(200))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [float(expected)] * 800


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
from mmcompile.model.source import load_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
source = load_model(Path(sys.argv[1]))
print(len(source.weights.names), peak() - before)
source.digest()
for name in source.weights.names:
    source.weights.read(name).max()
print(len(source.weights.names), peak() - before)
"""


def sparse_model(path, form, layers=50, rows=2048):
    size = rows * CHANNELS * 4 * 20
    shape = (rows * 20, CHANNELS)
    model = chain_model(0)
    if form == "external":
        for i in range(layers):
            tensor = model.graph.initializer.add(name=f"w{i}", data_type=1, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "big.data"), ("offset", str(i * size))):
                tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        (path.parent / "big.data").touch()
        os.truncate(path.parent / "big.data", layers * size)
        return
    # A tensor whose raw data follows as the last field, and is never made in memory.
    heads = []
    for i in range(layers):
        tensor = TensorProto(name=f"w{i}", data_type=1, dims=shape).SerializeToString()
        tensor += b"\x4a" + varint(size)
        heads.append(b"\x2a" + varint(len(tensor) + size) + tensor)
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    length = len(graph) + sum(map(len, heads)) + layers * size
    with path.open("wb") as file:
        file.write(model.SerializeToString() + b"\x3a" + varint(length) + graph)
        for head in heads:
            file.write(head)
            file.seek(size, os.SEEK_CUR)
        file.truncate()


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize("form", ["embedded", "external"])
def test_memory_does_not_grow_with_the_model(tmp_path, form):
    path = tmp_path / "model.onnx"
    sparse_model(path, form)
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (names, loaded), (_, used) = (map(float, line.split()) for line in result.stdout.splitlines())
    assert names == 50  # 393 MB
    assert loaded < 30
    assert used < 60


def write(source, folder, **new):
    folder.mkdir(exist_ok=True)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    with ModelWriter(folder) as writer:
        for name in source.weights.names:
            if name in new:
                writer.add(name, new[name])
            elif source.weights.ref(name):
                writer.copy(source.weights.ref(name))
        return writer.finish(proto)


def test_a_written_model_runs_with_new_weights(tmp_path):
    path = save(chain_model(), tmp_path / "in", "embedded")
    source = load_model(path)
    new = 2 * source.weights.read("w1")
    written = write(source, tmp_path / "out", w1=new)
    feed = {"x": np.eye(CHANNELS, dtype=np.float32)}
    np.testing.assert_allclose(run(written, feed)[0], 2 * run(path, feed)[0], rtol=1e-6)
    assert written == tmp_path / "out" / MODEL_FILE
    onnx.checker.check_model(written)
    again = load_model(written)
    np.testing.assert_array_equal(again.weights.read("w1"), new)
    assert {again.weights.ref(n).path.name for n in again.weights.names} == {DATA_FILE}


@pytest.mark.parametrize("shape", [(), (3,), (700, 3), (0, 4)])
@pytest.mark.parametrize("form", ["embedded", "external"])
def test_weights_piece_by_piece(tmp_path, form, shape):
    value = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32)
    extra = [numpy_helper.from_array(value, "w")]
    source = load_model(save(chain_model(extra=extra), tmp_path / "in", form))
    pieces = list(source.weights.pieces("w", 1000))
    assert all(piece.ndim == 1 for piece in pieces)
    if value.size > 1000:
        assert [piece.size for piece in pieces] == [1000, 1000, 100]
    np.testing.assert_array_equal(np.concatenate(pieces or [value.reshape(-1)]), value.reshape(-1))
    assert sum(piece.size for piece in pieces) == value.size


@pytest.mark.parametrize("count", [100, 5000])
def test_pieces_are_written_one_after_the_other(tmp_path, count):
    value = np.arange(count, dtype=np.float32)
    source = load_model(save(chain_model(), tmp_path / "in", "embedded"))
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    proto.graph.initializer.add(name="w", data_type=1, dims=[count])
    with ModelWriter(tmp_path) as writer:
        for name in filter(source.weights.ref, source.weights.names):
            writer.copy(source.weights.ref(name))
        writer.add_pieces("w", value.nbytes, iter([value[:7], value[7:7], value[7:]]))
        path = writer.finish(proto)
    np.testing.assert_array_equal(load_model(path).weights.read("w"), value)


@pytest.mark.parametrize("given", [99, 101])
@pytest.mark.parametrize("size", [100, 5000])
def test_pieces_of_another_length_are_a_bug(tmp_path, given, size):
    value = np.zeros(size * given // 100, np.float32)
    with ModelWriter(tmp_path) as writer, pytest.raises(MMCompileError) as caught:
        writer.add_pieces("w", 4 * size, [value[:3], value[3:]])
    assert caught.value.code == "weights-mismatch"


def test_weights_are_aligned_for_mapping(tmp_path):
    large = np.ones((1024, 512), np.float32)
    extra = [numpy_helper.from_array(large, "large"), numpy_helper.from_array(large, "larger")]
    source = load_model(save(chain_model(extra=extra), tmp_path / "in", "embedded"))
    again = load_model(write(source, tmp_path / "out"))
    for name in again.weights.names:
        ref = again.weights.ref(name)
        assert ref.offset % (4096 if name.startswith("large") else 64) == 0
        np.testing.assert_array_equal(again.weights.read(name), source.weights.read(name))


def test_small_weights_are_written_inline(tmp_path):
    extra = [numpy_helper.from_array(np.arange(256, dtype=np.float32), "limit")]
    extra += [numpy_helper.from_array(np.arange(257, dtype=np.float32), "above")]
    extra += [numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty")]
    source = load_model(save(chain_model(0, extra=extra), tmp_path / "in", "embedded"))
    values = {n: source.weights.read(n) for n in source.weights.names}
    again = load_model(write(source, tmp_path / "out", **values))
    assert again.weights.ref("limit") is None and again.weights.ref("empty") is None
    assert again.weights.ref("above") is not None
    for name, value in values.items():
        np.testing.assert_array_equal(again.weights.read(name), value)
    source = load_model(save(chain_model(0, extra=extra[:1]), tmp_path / "in", "embedded"))
    write(source, tmp_path / "out", limit=values["limit"])
    assert not (tmp_path / "out" / DATA_FILE).exists()


@pytest.mark.parametrize(
    "reshape",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(">f4"),
        lambda a: np.frombuffer(b"x" + a.tobytes(), np.float32, a.size, 1).reshape(a.shape),
    ],
    ids=["column-major", "strided", "reversed", "big-endian", "unaligned"],
)
def test_arrays_of_any_layout_are_written_in_c_order(tmp_path, reshape, monkeypatch):
    monkeypatch.setattr("mmcompile.model.writer._CHUNK", 1000)  # several pieces
    source = load_model(save(chain_model(1), tmp_path / "in", "embedded"))
    value = source.weights.read("w0")
    again = load_model(write(source, tmp_path / "out", w0=reshape(value)))
    np.testing.assert_array_equal(again.weights.read("w0"), value)


@pytest.mark.parametrize("supported", ["not at all", "in part"])
def test_copying_works_where_the_kernel_cannot(tmp_path, monkeypatch, supported):
    copy_range = os.copy_file_range
    calls = []

    def refuse(source, target, count, start, position):
        calls.append(count)
        if supported == "in part" and len(calls) == 1:
            return copy_range(source, target, 1000, start, position)
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr("mmcompile.model.writer._CHUNK", 1000)  # several pieces
    source = load_model(save(chain_model(1), tmp_path / "in", "embedded"))
    again = load_model(write(source, tmp_path / "out"))
    assert calls
    np.testing.assert_array_equal(again.weights.read("w0"), source.weights.read("w0"))


def test_a_source_that_shrinks_is_noticed_while_copying(tmp_path):
    source = load_model(save(chain_model(), tmp_path / "in", "external"))
    os.truncate(tmp_path / "in" / "w.data", 100)
    with pytest.raises(EnvironmentProblem, match="model-changed"):
        write(source, tmp_path / "out")


def test_the_writer_refuses_what_does_not_match(tmp_path):
    source = load_model(save(chain_model(1), tmp_path, "embedded"))
    value = source.weights.read("w0")
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    with ModelWriter(tmp_path) as writer:
        with pytest.raises(MMCompileError, match="never written"):
            writer.finish(proto)
        writer.add("w0", value)
        with pytest.raises(MMCompileError, match="written twice"):
            writer.add("w0", value)
        writer.add("other", value)
        with pytest.raises(MMCompileError, match="no initializer has its name"):
            writer.finish(proto)
    proto.graph.initializer[0].dims[0] += 1
    with ModelWriter(tmp_path) as writer:
        writer.add("w0", value)
        with pytest.raises(MMCompileError, match=r"its shape .* needs"):
            writer.finish(proto)


def test_the_writer_refuses_references_of_other_tensors(tmp_path):
    source = load_model(save(chain_model(1), tmp_path, "embedded"))
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    constant = helper.make_node("Constant", [], ["c"], value=proto.graph.initializer[0])
    proto.graph.node.append(constant)
    with ModelWriter(tmp_path / "..") as writer:
        writer.copy(source.weights.ref("w0"))
        with pytest.raises(MMCompileError, match="refers to another file"):
            writer.finish(proto)


def test_a_graph_beyond_two_gigabytes_is_refused(tmp_path):
    source = load_model(save(chain_model(0), tmp_path, "embedded"))

    def refuse(deterministic):
        raise ValueError("exceeds maximum protobuf size of 2GB")

    main = source.proto.graph
    proto = SimpleNamespace(SerializeToString=refuse, graph=main, functions=())
    with ModelWriter(tmp_path) as writer, pytest.raises(UnsupportedModelError, match="too-large"):
        writer.finish(proto)


@pytest.mark.parametrize("step", ["add", "copy", "finish"])
def test_a_full_disk_is_one_line(tmp_path, step):
    source = load_model(save(chain_model(1), tmp_path / "in", "embedded"))
    out = tmp_path / "out"
    out.mkdir()
    (out / (MODEL_FILE if step == "finish" else DATA_FILE)).symlink_to("/dev/full")
    new = {"w0": source.weights.read("w0")} if step == "add" else {}
    with pytest.raises(EnvironmentProblem) as caught:
        write(source, out, **new)
    assert caught.value.code == "disk-full"
    assert "free some space" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_size_limit_is_one_line(tmp_path):
    source = load_model(save(chain_model(1), tmp_path / "in", "embedded"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(EnvironmentProblem) as caught:
            write(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code == "disk-full"


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(EnvironmentProblem, match="cannot write"), ModelWriter(tmp_path / "none"):
        pass
