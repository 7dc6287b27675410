"""All but the compiled linears in half precision: what is written, run, measured and reported."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mmcompile
from mmcompile.data.options import DataOptions
from mmcompile.model.passes.infer_types import tensor_types
from mmcompile.model.selection import Selection
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.policy.registry import make_policy
from mmcompile.report.model import load_report
from tests.models import K, feeds, linear_model, model_of, subgraph, weight
from tests.workplace import CHANNELS, samples, two_layers

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
TYPES = {"fp16": HALF, "bf16": BRAIN, "keep": FLOAT}


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], output, **attributes)


def with_table(scale=1.0):
    """A row of a table, added to x, and two linears; the first one's numbers grow with `scale`."""
    nodes = [
        node("Gather", ["table", "ids"], "row"),
        node("Add", ["x", "row"], "sum"),
        node("MatMul", ["sum", "W"], "h"),
        node("Add", ["h", "b"], "hb"),
        node("Relu", ["hb"], "r"),
        node("MatMul", ["r", "V"], "z"),
        node("Relu", ["z"], "y"),
    ]
    values = {
        "table": weight(50, CHANNELS, seed=3),
        "W": weight(CHANNELS, 64) * np.float32(scale),
        "b": weight(64, seed=1) * np.float32(scale),
        "V": weight(64, 48, seed=2) / np.float32(scale),
    }
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["sequence"])
    sizes = ("batch", "sequence")
    return model_of(nodes, values, x=(*sizes, CHANNELS), y=(*sizes, 48), inputs=[ids])


def calibration(count=10):
    ids = np.arange(8)
    return [{"x": x[None], "ids": ids + i} for i, x in enumerate(samples(count))]


def compiled(work, model, **options):
    onnx.save(model, work.model)
    asked = {
        "output": work.out,
        "policy": make_policy("mxfp8"),
        "data": DataOptions(calibration=calibration()),
        "html": False,
    }
    return mmcompile.compile(work.model, CompileOptions(**asked | options))


def written(work):
    return onnx.load(work.out / "model.onnx")


@pytest.mark.parametrize("rest", ["fp16", "bf16", "keep"])
def test_types_of_nodes_weights_and_interface(work, rest):
    model = with_table()
    compiled(work, model, rest=rest)
    proto = written(work)
    types = tensor_types(proto)
    nodes = [n for n in proto.graph.node if n.op_type == "MicroMixLinear"]
    assert len(nodes) == 2
    for found in nodes:
        assert types[found.input[0]] == types[found.output[0]] == TYPES[rest]
        assert types[found.input[4]] == FLOAT  # the bias
    tensors = {t.name: t for t in proto.graph.initializer}
    assert tensors["table"].data_type == TYPES[rest]
    stored = numpy_helper.to_array(tensors["table"])
    np.testing.assert_array_equal(stored, weight(50, CHANNELS, seed=3).astype(stored.dtype))
    for field in ("input", "output"):
        assert [v.SerializeToString() for v in getattr(model.graph, field)] == [
            v.SerializeToString() for v in getattr(proto.graph, field)
        ]


def test_plans_and_packed_weights_are_the_same_with_any_rest(work):
    found = {}
    for rest in (None, "fp16", "bf16", "keep"):
        compiled(work, with_table(), rest=rest)
        packed = {
            t.name: t.raw_data
            for t in written(work).graph.initializer
            if t.name.startswith("mmcompile.") and "half" not in t.name
        }
        assert len(packed) == 8
        found[rest] = (packed, (work.out / "plan.json").read_bytes())
    assert all(one == found["keep"] for one in found.values())


@pytest.mark.parametrize(("rest", "least", "most"), [("fp16", 50, 80), ("bf16", 35, 60)])
def test_what_the_step_alone_costs_is_measured(work, rest, least, most):
    report = compiled(work, with_table(), rest=rest).report
    (whole,), (alone,) = report.verification.outputs, report.verification.rest_alone
    assert least < alone.sqnr_db < most
    assert 0.99 < whole.cosine_mean < alone.cosine_mean < 1
    if rest == "bf16":
        assert "rounded after every node" in report.verification.note
        assert "every MicroMixLinear node was compared" in report.verification.note
    kept = compiled(work, with_table(), rest="keep").report
    assert kept.verification.rest_alone == ()
    assert kept.verification.outputs[0].sqnr_db == pytest.approx(whole.sqnr_db, abs=1)


@pytest.mark.parametrize("rest", ["fp16", "bf16"])
def test_fail_below_counts_half_precision(work, rest):
    options = VerifyOptions(fail_below=0.99, layers=True, nodes=True)
    report = compiled(work, with_table(), rest=rest, verify=options).report
    assert report.verification.passed
    assert [layer.name for layer in report.verification.layers] == ["h", "z"]
    assert all(layer.cosine > 0.99 for layer in report.verification.layers)
    with pytest.raises(mmcompile.MMCompileError, match="mean cosine similarity"):
        compiled(work, with_table(), rest=rest, verify=VerifyOptions(fail_below=0.999999))


def test_the_report_says_what_and_why(work):
    report = compiled(work, with_table()).report
    assert report == load_report(work.out / "report.json")
    assert (report.rest.dtype, report.rest.reason) == ("float16", "the default")
    assert (report.rest.samples, report.rest.beyond, report.rest.notes) == (8, (), ())
    assert report.rest.nodes == 6  # the Adds, Relus and nodes; Gather, too
    table = 50 * CHANNELS
    weights = table + CHANNELS * 64 + 64 + 64 * 48
    assert report.model.bytes_before - report.model.bytes_fp16 == 2 * weights
    kept = compiled(work, with_table(), rest="keep").report
    assert (kept.rest.dtype, kept.rest.reason) == ("float32", "kept as it was, as asked for")
    assert kept.model.bytes_after - report.model.bytes_after == pytest.approx(2 * table, abs=4000)


def test_numbers_beyond_float16_stay_in_float32(work):
    result = compiled(work, with_table(scale=3e4))
    rest = result.report.rest
    assert {"hb", "r"} <= set(rest.beyond)
    assert {island.code for island in rest.islands} == {"magnitude"}
    assert "numbers that float16 cannot" in rest.notes[0]
    types = tensor_types(written(work))
    nodes = {n.name: n for n in written(work).graph.node}
    assert types[nodes["h"].output[0]] == types[nodes["h"].input[0]] == FLOAT
    assert types["hb"] == types["r"] == FLOAT
    assert types[nodes["z"].input[0]] == FLOAT  # it reads r
    (output,) = result.report.verification.outputs
    assert output.cosine_mean > 0.99
    blind = compiled(work, with_table(scale=3e4), data=DataOptions())
    assert blind.report.rest.notes == ("whether all numbers fit float16 was not measured",)
    assert blind.report.rest.islands == ()
    brain = compiled(work, with_table(scale=3e4), rest="bf16").report
    assert brain.rest.islands == ()
    assert brain.verification.outputs[0].cosine_mean > 0.99


@pytest.mark.parametrize("name", ["shared_input", "gemm_trans_a"])
def test_inner_tensors_are_as_wide_as_what_they_hold(work, name):
    """A merged output one of whose parts is too large, and a transposed input that is."""
    model = linear_model(name)
    large = model.graph.initializer[0]
    grown, fed = (1e6, 1) if name == "shared_input" else (1e-6, 1e6)
    values = numpy_helper.to_array(large) * np.float32(grown)
    large.CopyFrom(numpy_helper.from_array(values, large.name))
    feed = {key: value * np.float32(fed) for key, value in feeds(model).items()}
    options = {
        "data": DataOptions(calibration=[feed] * 2),
        "selection": Selection(heads=True),
    }
    report = compiled(work, model, **options).report
    types = tensor_types(written(work))
    (inner,) = (n for n in types if n.startswith(("mmcompile.x.", "mmcompile.y.")))
    assert types[inner] == FLOAT
    (output,) = report.verification.outputs
    assert output.cosine_mean > 0.99


def test_float16_models_take_float32_files(work):
    onnx.save(two_layers(np.float16), work.model)
    np.savez(work.data, x=samples())  # float32
    result = work.compile()
    assert (result.code, result.err) == (0, "")
    report = load_report(work.out / "report.json")
    assert "x rounded from float32 to float16" in report.calibration.description
    assert report.rest.reason == "the model computes in float16, and was left as it is"
    assert report.verification.rest_alone == ()
    assert report.model.bytes_fp16 == report.model.bytes_before


def test_from_bfloat16_to_float16(work):
    onnx.save(two_layers(ml_dtypes.bfloat16), work.model)
    np.savez(work.data, x=samples())
    result = work.compile("--rest", "fp16", "--fail-below", "0.98")
    assert (result.code, result.err) == (0, "")
    types = tensor_types(written(work))
    for found in written(work).graph.node:
        if found.op_type == "MicroMixLinear":
            assert types[found.input[0]] == HALF
    report = load_report(work.out / "report.json")
    assert 40 < report.verification.rest_alone[0].sqnr_db < 80


def test_operators_that_onnx_does_not_know(work):
    """The default keeps the types of such a model; asked for, half precision is refused."""
    model = two_layers(final="Relu")
    model.graph.node[2].op_type, model.graph.node[2].domain = "FastGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, work.model)
    assert work.compile().code == 0
    report = load_report(work.out / "report.json")
    assert report.rest.dtype == "float32"
    assert "kept as it was: node relu (com.microsoft::FastGelu)" in report.rest.reason
    refused = work.compile("--rest", "fp16", "--calib", "missing.npz")
    assert refused.code == 2  # the data is looked for first
    refused = work.compile("--rest", "fp16")
    assert refused.code == 3
    assert "the type of its output 'r' cannot be inferred" in refused.line()


def test_bodies_stay_in_float32(work):
    model = subgraph()
    x = weight(2, 8, K)
    feed = {"x": x, "condition": np.array(True)}
    feed = {v.name: feed[v.name] for v in model.graph.input}
    options = {
        "data": DataOptions(calibration=[feed] * 2),
        "selection": Selection(heads=True),
    }
    report = compiled(work, model, **options).report
    assert "body" in {island.code for island in report.rest.islands}
    assert report.verification.passed


def test_rest_in_a_config_file_and_a_dry_run(work):
    onnx.save(two_layers(), work.model)
    (work.folder / "options.toml").write_text('rest = "keep"\n')
    work.compile("--config", "options.toml")
    assert load_report(work.out / "report.json").rest.dtype == "float32"
    dry = work.compile("--dry-run", "--json").json()
    assert dry["rest"]["dtype"] == "float16"
    assert dry["rest"]["notes"] == ["whether all numbers fit float16 was not measured"]
    wrong = work.compile("--rest", "fp8")
    assert wrong.code == 2
    assert "fp16" in wrong.line()
