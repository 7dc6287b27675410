import os
import random
import zipfile

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.errors import ExitCode, MMCompileError, UnsupportedModelError, UsageError
from mmcompile.model.source import load_model

SHAPE = (32, 16)


def good_model():
    weight = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    branch = helper.make_graph(
        [helper.make_node("Add", ["h", "b"], ["o"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, ["M", 16])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Same", ["i"], ["y"], domain="local", name="call"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", 16])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight[0], "b")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    same = [helper.make_node("Identity", ["p"], ["q"])]
    function = helper.make_function("local", "Same", ["p"], ["q"], same, opsets[:1])
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)


def external_model(folder, **entries):
    model = good_model()
    weight = model.graph.initializer[0]
    (folder / "w.data").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.data"} | entries).items():
        weight.external_data.add(key=key, value=value)
    return model


def write(folder, content):
    path = folder / "model.onnx"
    data = content if isinstance(content, bytes) else content.SerializeToString()
    path.write_bytes(data)
    return path


def refused(path, code, *words):
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(path)
    line = str(caught.value)
    assert caught.value.code == code, line
    assert caught.value.exit_code == ExitCode.UNSUPPORTED_MODEL
    assert line.isprintable() and len(line) < 600
    assert caught.value.where.startswith(str(path))
    for word in words:
        assert word in line, line


def test_the_models_that_are_damaged_below_are_good(tmp_path):
    source = load_model(write(tmp_path, good_model()))
    assert source.weights.read("w").shape == SHAPE
    source = load_model(write(tmp_path, external_model(tmp_path)))
    assert source.weights.read("w").shape == SHAPE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\0" * 100, []),
        (b"This is a text file and no model.\n", []),
        (b'{"format": "json"}', []),
        (b"2026-11-21 a log\n", []),
        (random.Random(5).randbytes(5000), []),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ["git lfs pull"]),
        (helper.make_node("Relu", ["x"], ["y"]).SerializeToString(), []),
    ],
    ids=["empty", "zeros", "text", "json", "digits", "random", "git-lfs", "other protobuf"],
)
def test_files_of_other_kinds(tmp_path, content, words):
    refused(write(tmp_path, content), "not-onnx", *words)


def test_a_checkpoint_is_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    refused(tmp_path / "model.pt", "not-onnx", "exported to ONNX first")


def test_a_missing_file_is_a_mistake_of_usage(tmp_path):
    write(tmp_path, good_model())
    for path in (tmp_path / "other.onnx", tmp_path / "model.onnx" / "x", tmp_path / "a\0b"):
        with pytest.raises(UsageError, match="no such file"):
            load_model(path)


def test_things_that_are_no_files(tmp_path):
    refused(tmp_path, "not-onnx", "folder")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not-onnx", "regular file")
    refused(type(tmp_path)("/dev/zero"), "not-onnx", "regular file")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(loop, "model-unreadable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path, good_model())
    path.chmod(0)
    refused(path, "model-unreadable", "permission")


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    path = write(tmp_path, good_model())

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    refused(path, "model-unreadable", "Permission denied")


def test_a_name_that_external_data_cannot_hold(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.onnx")
    path.write_bytes(good_model().SerializeToString())
    with pytest.raises(UsageError, match="UTF-8"):
        load_model(path)


def test_cut_files(tmp_path):
    data = good_model().SerializeToString()
    refused(write(tmp_path, data[:1500]), "model-truncated", "download the file again")
    refused(write(tmp_path, data[:3]), "model-truncated")


def test_damaged_lengths_inside_the_graph(tmp_path):
    data = bytearray(good_model().SerializeToString())
    at = data.index(b"\x08\x20\x08\x10\x10\x01\x42\x01w")  # dims, type and name of `w`
    data[at + 7] = 0x7F  # its name claims to be longer than the tensor's end
    refused(write(tmp_path, bytes(data)), "model-corrupt")
    data[at + 6] = 0x43  # a group
    refused(write(tmp_path, bytes(data)), "model-corrupt", "wire type 3")
    data[at + 6] = 0x02  # field 0
    refused(write(tmp_path, bytes(data)), "model-corrupt", "field number 0")


def test_numbers_that_never_end(tmp_path):
    data = b"\x08\x0a\x3a" + b"\xff" * 20
    refused(write(tmp_path, data), "model-corrupt", "64 bits")


def test_a_weight_with_two_values(tmp_path):
    model = good_model()
    tensor = model.graph.initializer[0].SerializeToString()
    raw = TensorProto(raw_data=b"x" * 2000).SerializeToString()
    elsewhere = TensorProto()
    elsewhere.external_data.add(key="location", value="w.data")
    for rest in (raw, elsewhere.SerializeToString()):
        both = tensor + rest
        length = bytes([len(both) & 127 | 128, len(both) >> 7])
        graph = b"\x2a" + length + both
        length = bytes([len(graph) & 127 | 128, len(graph) >> 7])
        model.ClearField("graph")
        data = model.SerializeToString() + b"\x3a" + length + graph
        refused(write(tmp_path, data), "model-corrupt", "two values")


def test_a_graph_in_too_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcompile.model.wire.MAX_FIELDS", 5)
    refused(write(tmp_path, good_model()), "model-too-large", "5 parts")


def test_a_skeleton_that_protobuf_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcompile.model.wire.MAX_SKELETON", 300)
    refused(write(tmp_path, good_model()), "model-too-large", "external data")


def change(edit):
    def changed():
        model = good_model()
        edit(model)
        return model

    return changed


def clear(*fields):
    def edit(model):
        for field in fields:
            model.graph.ClearField(field)

    return edit


def opset(version, domain=""):
    def edit(model):
        model.opset_import[0].version = version
        model.opset_import[0].domain = domain

    return edit


def tensor_field(**fields):
    def edit(model):
        for key, value in fields.items():
            if key == "dims":
                model.graph.initializer[0].dims[:] = value
            else:
                setattr(model.graph.initializer[0], key, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (lambda m: m.ClearField("graph"), "model-incomplete", ["no graph"]),
        (clear("node", "output"), "model-incomplete", ["no node"]),
        (clear("input"), "model-incomplete", ["no input"]),
        (clear("output"), "model-incomplete", ["no output"]),
        (lambda m: m.ClearField("ir_version"), "model-ir-version", ["is 0"]),
        (lambda m: setattr(m, "ir_version", 99), "model-ir-version", ["is 99", "3 to 13"]),
        (lambda m: m.ClearField("opset_import"), "model-opset", ["no opset"]),
        (opset(14), "model-opset", ["is 14", "15 to 25"]),
        (opset(26), "model-opset", ["is 26"]),
        (opset(18, "other"), "model-opset", ["no opset"]),
        (
            lambda m: m.opset_import.add(domain="ai.onnx", version=17),
            "model-opset",
            ["17 and 18"],
        ),
        (
            lambda m: m.graph.initializer.append(m.graph.initializer[0]),
            "model-malformed",
            ["share the name 'w'"],
        ),
        (tensor_field(name=""), "model-malformed", ["no name"]),
        (lambda m: m.graph.node.insert(0, m.graph.node.pop()), "model-malformed", ["'i'"]),
        (lambda m: m.graph.node[0].input.pop(), "model-malformed", ["node 'product'"]),
        (
            lambda m: m.graph.node[0].input.__setitem__(0, "nothing"),
            "model-malformed",
            ["node 'product'", "'nothing'"],
        ),
        (
            lambda m: setattr(m.graph.output[0], "name", "nothing"),
            "model-malformed",
            ["nothing produces its output 'nothing'"],
        ),
        (
            lambda m: setattr(m.graph.node[0], "op_type", "MatMull"),
            "model-malformed",
            ["node 'product'", "MatMull"],
        ),
        (lambda m: setattr(m.graph.node[0], "domain", "absent"), "model-malformed", ["absent"]),
        (
            lambda m: m.graph.node[2].attribute[0].g.node[0].input.__setitem__(1, "nothing"),
            "model-malformed",
            ["nothing"],
        ),
        (tensor_field(dims=(32, 17)), "weight-size", ["weight 'w'", "2048", "2176"]),
        (tensor_field(dims=(-32, -16)), "weight-invalid", ["weight 'w'", "negative"]),
        (tensor_field(dims=(2**62, 2**62)), "weight-size", ["weight 'w'"]),
        (tensor_field(dims=(2**62, 0)), "weight-size", ["weight 'w'", "needs 0"]),
        (tensor_field(data_type=0), "weight-invalid", ["element type"]),
        (tensor_field(data_type=999), "weight-invalid", ["element type 999"]),
        (tensor_field(data_type=8), "weight-invalid", ["STRING"]),
        (tensor_field(data_type=11), "weight-size", ["weight 'w'"]),
        (
            lambda m: m.graph.initializer[1].dims.append(7),
            "weight-size",
            ["weight 'b'", "64 bytes"],
        ),
        (
            lambda m: m.graph.initializer.append(
                TensorProto(name="f", data_type=1, dims=[3], float_data=[1.0])
            ),
            "model-malformed",
            ["f"],
        ),
    ],
)
def test_damaged_models(tmp_path, edit, code, words):
    refused(write(tmp_path, change(edit)()), code, *words)


@pytest.mark.parametrize("place", ["node", "input", "weight", "op_type", "attribute", "producer"])
def test_names_that_are_no_text(tmp_path, place):
    model = good_model()
    mark = "Z#Z"
    if place == "node":
        model.graph.node[0].name = mark
    elif place == "input":
        model.graph.node[0].input.append(mark)
    elif place == "weight":
        model.graph.initializer[1].name = mark
    elif place == "op_type":
        model.graph.node[2].attribute[0].g.node[0].op_type = mark
    elif place == "attribute":
        model.graph.node[1].attribute[0].name = mark
    else:
        model.producer_name = mark
    data = model.SerializeToString().replace(b"Z#Z", b"Z\xffZ")
    refused(write(tmp_path, data), "model-corrupt", "no valid text")


@pytest.mark.parametrize(
    ("entries", "code", "words"),
    [
        ({"location": "absent.data"}, "weight-missing", ["absent.data", "beside the model"]),
        ({"location": ""}, "weight-invalid", ["no file"]),
        ({"location": "."}, "weight-missing", ["regular file"]),
        ({"location": "w.data/x"}, "weight-missing", []),
        ({"location": "x" * 5000}, "weight-missing", []),
        ({"location": "/etc/passwd"}, "weight-outside", ["not inside"]),
        ({"location": "../w.data"}, "weight-outside", ["not inside"]),
        ({"location": "sub/../../w.data"}, "weight-outside", ["not inside"]),
        ({"location": "link"}, "weight-outside", ["link", "cp -L"]),
        ({"location": "folder-link/w.data"}, "weight-outside", ["link"]),
        ({"location": "pipe"}, "weight-missing", ["regular file"]),
        ({"location": "pointer"}, "weight-truncated", ["git lfs pull"]),
        ({"offset": "-4"}, "weight-invalid", ["offset '-4'"]),
        ({"offset": "4"}, "weight-truncated", ["2052", "2048"]),
        ({"offset": "1" * 19}, "weight-truncated", []),
        ({"offset": "1" * 4000}, "weight-invalid", ["offset"]),
        ({"offset": "0x10"}, "weight-invalid", ["offset"]),
        ({"offset": "\u0661"}, "weight-invalid", ["offset"]),
        ({"length": "-2048"}, "weight-invalid", ["length"]),
        ({"length": "2044"}, "weight-size", ["2044", "2048"]),
        ({"length": "1e3"}, "weight-invalid", ["length"]),
        ({"length": ""}, "weight-invalid", ["length"]),
    ],
)
def test_bad_external_data(tmp_path, entries, code, words):
    folder = tmp_path / "model"
    outside = tmp_path / "outside"
    for path in (folder, outside, folder / "sub"):
        path.mkdir()
    (outside / "w.data").write_bytes(bytes(4096))
    (tmp_path / "w.data").write_bytes(bytes(4096))
    (folder / "link").symlink_to(outside / "w.data")
    (folder / "folder-link").symlink_to(outside)
    (folder / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    os.mkfifo(folder / "pipe")
    refused(write(folder, external_model(folder, **entries)), code, "weight 'w'", *words)


def test_external_data_that_is_fine(tmp_path):
    model = external_model(tmp_path, location="sub/inside", offset="7", checksum="0", extra="?")
    data = np.random.default_rng(1).bytes(2055)
    (tmp_path / "real").write_bytes(data)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inside").symlink_to(tmp_path / "real")
    value = load_model(write(tmp_path, model)).weights.read("w")
    assert value.tobytes() == data[7:]


def test_too_much_external_data_outside_initializers(tmp_path, monkeypatch):
    monkeypatch.setattr("mmcompile.model.source._MAX_INLINED", 3000)
    model = external_model(tmp_path)
    for i in range(2):
        constant = helper.make_node("Constant", [], [f"k{i}"], value=model.graph.initializer[0])
        model.graph.node.append(constant)
    refused(write(tmp_path, model), "model-too-large", "initializers of the main graph")


def test_a_link_with_weights_on_both_sides(tmp_path):
    model = external_model(tmp_path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(999, np.float32), "e"))
    real = write(tmp_path, model)
    load_model(real)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "m.onnx").symlink_to(real)
    refused(tmp_path / "links" / "m.onnx", "weight-outside", "cp -L")


def test_what_common_tools_write_is_accepted(tmp_path):
    model = good_model()
    model.graph.node[0].input[0] = "n"
    norm = helper.make_node("SimplifiedLayerNormalization", ["x", "s"], ["n"], axis=-1)
    model.graph.node.insert(0, norm)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(32, np.float32), "s"))
    model.functions[0].node.append(helper.make_node(norm.op_type, ["q", "q"], ["r"], axis=-1))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, SHAPE))
    load_model(write(tmp_path, model))


@pytest.mark.parametrize("form", ["embedded", "external"])
@pytest.mark.parametrize("damage", ["cut", "flip", "splice"])
def test_fuzz(tmp_path, form, damage):
    chance = random.Random(f"{form} {damage}")
    model = good_model() if form == "embedded" else external_model(tmp_path, length="2048")
    good = model.SerializeToString()
    lines = []
    for _ in range(250):
        data = bytearray(good)
        if damage == "cut":
            del data[chance.randrange(len(data)) :]
        elif damage == "flip":
            for _bit in range(chance.choice((1, 1, 2, 5, 20))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            start, length = chance.randrange(len(data)), chance.randrange(1, 40)
            data[start : start + chance.randrange(40)] = chance.randbytes(length)
        try:
            source = load_model(write(tmp_path, bytes(data)))
            for name in source.weights.names:
                source.weights.read(name).tobytes()
        except MMCompileError as error:
            lines.append(str(error))
    assert len(lines) > 50
    assert all(line.isprintable() for line in lines)
