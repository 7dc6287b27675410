"""`mmcompile inspect` on engines: the table, JSON, and the comparison with the model beside."""

from __future__ import annotations

import hashlib
import json

import onnx
import pytest

from mmcompile.backends.engines.expectations import expected_by_graph
from tests.backends.plan_samples import FP8, engine, plugin_record, product, program, tensor
from tests.workplace import call

CUSTOM = (
    '  custom_layer={{ name="{0}" output={{"y" }} input={{"x" }} tactic_id="{0}_1_2"'
    ' layers="[ONNX Layer: {0}]" }}\n'
)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "some.plan"
    path.write_bytes(engine(FP8))
    return path


def test_an_engine_is_known_by_its_content(plan):
    result = call("inspect", plan)
    assert result.code == 0, result.err
    assert "fc/MatMul" in result.out and "FP8" in result.out
    assert "NVIDIA does not document it" in result.out
    assert "no model beside it" in result.out


def test_an_engine_for_programs(plan):
    found = call("inspect", plan, "--json").json()
    assert found["counts"] == {"FP8": 1} and found["compared_with"] == ""
    (layer,) = found["precision"]["realized"]["layers"]
    assert layer["nodes"] == ["fc/MatMul", "x/DQ", "w/DQ"] and layer["precision"] == "FP8"


def test_layers_alike_are_one_row_unless_asked(tmp_path):
    tensors = [tensor("x", "half"), tensor("w", "half"), tensor("y", "half")]
    nodes = [product(name, ["x", "w"]) for name in ("fc1", "fc2", "fc3")]
    path = tmp_path / "some.plan"
    path.write_bytes(engine(program(tensors, nodes)))
    short, long = call("inspect", path).out, call("inspect", path, "-v").out
    assert "fc1, …" in short and "fc3" not in short
    assert all(name in long for name in ("fc1", "fc2", "fc3"))


def test_the_inspectors_json_is_read_too(tmp_path):
    path = tmp_path / "layers.json"
    kernel = "sm90_xmma_gemm_e4m3f16_e4m3f32_f32_tn"
    layer = {"Name": "fc", "LayerType": "gemm", "TacticName": kernel, "Inputs": [], "Outputs": []}
    path.write_text(json.dumps({"Layers": [layer]}))
    assert call("inspect", path, "--json").json()["counts"] == {"FP8": 1}
    assert "told by TensorRT's engine inspector" in call("inspect", path).out


def test_options_for_models_have_no_effect_on_engines(plan):
    for option in (["--include", "*"], ["--quantize-heads"]):
        result = call("inspect", plan, *option)
        assert result.code == 2 and "option-without-effect" in result.line()


def test_an_engine_that_tells_nothing(plan):
    plan.write_bytes(b"ftrt" + bytes(1000))
    result = call("inspect", plan)
    assert result.code == 0 and "neither an inspector nor text" in result.out


@pytest.fixture
def built(work, tensorrt):
    """A bundle with an engine; the formats of its layers, by node."""
    assert work.compile().code == 0
    model = onnx.load(work.out / "model.onnx", load_external_data=False)
    return work.out, {entry.node: entry.precision for entry in expected_by_graph(model)}


def write_engine(out, nodes, record=None):
    text = program([tensor("x", "half")], [CUSTOM.format(node) for node in nodes])
    (out / "engine.plan").write_bytes(engine(text) + b"\0" + (record or b""))
    return out / "engine.plan"


def test_an_engine_is_compared_with_its_model(built):
    out, formats = built
    assert len(formats) == 2
    result = call("inspect", write_engine(out, formats))
    assert "Every layer has the precision that" in result.out
    other = plugin_record(f"{next(iter(formats))}_1_2", [32], [0], [0])
    found = call("inspect", write_engine(out, formats, other), "--json").json()
    assert [entry["realized"] for entry in found["precision"]["lost"]] == ["MXFP4 32"]
    line = call("inspect", out / "engine.plan").out
    assert "precision lost: " in line and "became MXFP4 32" in line


def test_a_layer_that_is_not_found_is_lost_if_the_engine_has_too_few(built):
    out, formats = built
    found = call("inspect", write_engine(out, list(formats)[:1]), "--json").json()
    assert [entry["node"] for entry in found["precision"]["lost"]] == list(formats)[1:]


def test_the_inspectors_word_is_kept_with_the_engine(work, tensorrt):
    tensorrt.faults.layers = [
        {"Name": name, "LayerType": "PluginV3"} for name in ("first", "second")
    ]
    assert work.compile().code == 0
    path = work.out / "engine.plan"
    path.write_bytes(b"ftrt" + path.read_bytes())
    assert call("inspect", path, "--json").json()["precision"]["realized"]["source"] == "nothing"
    meta = json.loads((work.out / "engine.meta.json").read_text())
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    meta["engine"] = {"name": "engine.plan", "bytes": len(content), "sha256": digest}
    (work.out / "engine.meta.json").write_text(json.dumps(meta))
    found = call("inspect", path, "--json").json()
    assert found["precision"]["realized"]["source"] == "engine inspector"
    assert found["counts"] == {"plugin": 2} and found["precision"]["lost"] == []


def test_another_model_beside_it_is_not_compared(built):
    out, formats = built
    path = write_engine(out, formats)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    model.doc_string = "another"
    (out / "model.onnx").write_bytes(model.SerializeToString())
    assert call("inspect", path, "--json").json()["compared_with"] == ""
