"""What TensorRT-RTX's real builder makes of the baselines, read from the engines' text."""

from collections import Counter
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.backends.engines.expectations import expected_by_graph, expected_products
from mmcompile.backends.engines.plan_text import read_plan_text
from mmcompile.backends.engines.precision import (
    check_precision,
    compare,
    lost,
    realized,
    unverified,
)
from mmcompile.errors import ExitCode, VerificationError
from mmcompile.model.passes.baselines import write_baseline
from mmcompile.model.selection import Selection
from mmcompile.pipeline.prepare import prepare
from tests.models import linear_model, weight
from tests.rtx.building import build
from tests.rtx.stock import build_stock

KINDS = ("fp16", "fp8", "mxfp8", "nvfp4")
PRECISION = {"fp8": "FP8", "nvfp4": "NVFP4", "mxfp8": "MXFP8", "fp16": "FP16"}
WIDENED = "FP16, dequantized from FP8"
K, N = 128, 64


def baseline(model: Path, kind: str, folder: Path):
    """A baseline of a model whose inputs stay below 4."""
    prepared = prepare(model, Selection(heads=True))
    amax = {group.input: 4.0 for group in prepared.groups}
    return write_baseline(kind, prepared.source, prepared.groups, amax, folder)


@pytest.fixture(scope="module")
def engines(exported, tmp_path_factory):
    """`engines(model, kind)`: a baseline of a small model and its engine, each made once."""
    made = {}

    def make(model, kind):
        if (model, kind) not in made:
            written = baseline(exported(model), kind, tmp_path_factory.mktemp(f"{model}-{kind}"))
            made[model, kind] = written, build_stock(written.path)
        return made[model, kind]

    return make


def graph_of(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["llama", "bert"])
def test_every_layer_of_a_baseline_is_told(engines, model, kind):
    """FP8 and NVFP4 are real; TensorRT-RTX 1.7.1 dequantizes MXFP8 and multiplies in half."""
    written, plan = engines(model, kind)
    expected = expected_by_graph(graph_of(written.path))
    asked = Counter(entry.precision for entry in expected)
    if kind == "fp16":
        assert asked["FP16"] == len(expected) >= 12
    else:
        assert asked[PRECISION[kind]] == len(written.quantized) >= 12
        assert asked["FP16"] == len(written.left_alone)
    found = realized(plan, "", expected)
    assert found.source == "plan text" and "does not document" in found.note
    assert unverified(expected, found) == ()
    missing = lost(expected, found)
    if kind == "mxfp8":
        assert {entry.node for entry in missing} == set(written.quantized)
        assert {entry.realized for entry in missing} == {WIDENED}
        assert found.counts[WIDENED] == len(written.quantized)
    else:
        assert missing == ()
        assert "dequantized" not in " ".join(found.counts)
    if kind in ("fp8", "nvfp4"):
        assert found.counts[PRECISION[kind]] == len(written.quantized)


def test_all_optimization_profiles_are_read_and_counted_once(engines):
    written, _ = engines("bert", "fp8")
    expected = expected_by_graph(graph_of(written.path))
    plan = build_stock(written.path, profiles=2)
    assert read_plan_text(plan).programs == 2
    assert realized(plan).counts["FP8"] == len(written.quantized)
    assert lost(expected, realized(plan)) == ()


def test_a_lost_precision_is_an_error_that_names_the_layers(engines):
    written, plan = engines("bert", "mxfp8")
    expected = expected_by_graph(graph_of(written.path))
    check = compare(expected, realized(plan))
    with pytest.raises(VerificationError) as caught:
        check_precision(check, "engine.plan", allow_fallback=False)
    line = caught.value.on_command_line()
    assert caught.value.exit_code == ExitCode.VERIFICATION_FAILED
    assert "\n" not in line and "[precision-lost]" in line and "--allow-fallback" in line
    assert written.quantized[0] in line and f"MXFP8 became {WIDENED}" in line
    check_precision(check, "engine.plan", allow_fallback=True)
    assert len(check.lost) == len(written.quantized)


def quantized_linear(*, scale_axis=None, between=None, wide_weight=False):
    """x → Q → DQ → `between` → MatMul in FP8, with one or more scales of the weight W[K, N]."""
    scale = np.float16(0.01)
    codes = (weight(K, N) / scale).astype(ml_dtypes.float8_e4m3fn)
    zeros = [] if scale_axis is None else [codes.shape[scale_axis]]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["d"], name="d"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="linear"),
    ]
    values = [
        numpy_helper.from_array(np.float16(0.05), "x_scale"),
        helper.make_tensor("x_zero", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True),
    ]
    if wide_weight:
        values.append(numpy_helper.from_array(weight(K, N).astype(np.float16), "w"))
    else:
        axis = {} if scale_axis is None else {"axis": scale_axis}
        inputs = ["codes", "w_scale", "w_zero"]
        nodes.insert(0, helper.make_node("DequantizeLinear", inputs, ["w"], name="w", **axis))
        values += [
            helper.make_tensor(
                "codes", TensorProto.FLOAT8E4M3FN, [K, N], codes.tobytes(), raw=True
            ),
            numpy_helper.from_array(np.full(zeros, scale), "w_scale"),
            helper.make_tensor(
                "w_zero", TensorProto.FLOAT8E4M3FN, zeros, bytes(int(np.prod(zeros))), raw=True
            ),
        ]
    if between is not None:
        nodes.insert(-1, helper.make_node(between, ["d"], ["between"], name="between"))
        nodes[-1].input[0] = "between"
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["rows", N])],
        values,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_layer_whose_pair_fuses_is_kept():
    model = quantized_linear()
    assert expected_by_graph(model) == expected_products(["linear"], "FP8")
    assert lost(expected_by_graph(model), realized(build_stock(model))) == ()


def test_a_scale_per_input_channel_loses_the_precision_that_the_graph_asks_for():
    """No such scale can leave the product: the builder widens both operands, without a word."""
    model = quantized_linear(scale_axis=0)
    (missing,) = lost(expected_by_graph(model), realized(build_stock(model)))
    assert (missing.node, missing.expected, missing.realized) == ("linear", "FP8", WIDENED)


@pytest.mark.parametrize(
    ("planted", "realized_as"),
    [
        ({"between": "Relu"}, "FP16, weight dequantized from FP8"),
        ({"wide_weight": True}, "FP16, x dequantized from FP8"),
    ],
)
def test_layers_of_a_baseline_that_cannot_fuse_are_found(planted, realized_as):
    """The graph does not ask for FP8 any more, but who wrote the baseline does."""
    (missing,) = lost(
        expected_products(["linear"], "FP8"), realized(build_stock(quantized_linear(**planted)))
    )
    assert missing.realized == realized_as


@pytest.mark.parametrize("planted", ["wide input", "wide weight"])
def test_one_damaged_layer_of_an_nvfp4_model_is_found_among_the_good_ones(engines, planted):
    """One layer's x, or its weight, is taken as it was before its quantization."""
    written, _ = engines("bert", "nvfp4")
    model = onnx.load(written.path)
    makers = {name: node for node in model.graph.node for name in node.output}
    victim = next(n for n in model.graph.node if n.name == written.quantized[-1])
    if planted == "wide input":
        place, narrow = 0, victim.input[0]
        while makers[narrow].op_type != "TRT_FP4DynamicQuantize":
            narrow = makers[narrow].input[0]
        victim.input[place] = makers[narrow].input[0]
    else:
        values = np.zeros((128, 64), np.float16) + np.float16(0.01)
        model.graph.initializer.append(numpy_helper.from_array(values, "planted"))
        victim.input[1] = "planted"
    found = realized(build_stock(model))
    (missing,) = lost(expected_products(written.quantized, "NVFP4"), found)
    assert missing.node == victim.name and missing.realized.startswith("FP16")
    assert found.counts["NVFP4"] == len(written.quantized) - 1


def test_a_product_inside_a_generated_kernel_is_not_judged():
    """One row times a small matrix becomes multiplications and a sum, without a product."""
    model = linear_model("fp16")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    expected = expected_by_graph(model)
    found = realized(build_stock(model), "", expected)
    assert [entry.node for entry in expected] == ["linear"]
    assert lost(expected, found) == () and unverified(expected, found) == ("linear",)
    assert [product.kind for product in found.layers] == ["generated"]


def test_names_with_quotes_and_brackets_are_read_as_they_are():
    model = linear_model("fp16")
    model.graph.node[0].name = 'li"n]e} a{r\\x é'
    (product,) = realized(build_stock(model)).layers
    assert product.nodes[0] == 'li"n]e} a{r\\x é' and product.precision == "FP16"


def test_a_cut_engine_says_less_and_nothing_else(engines):
    _, plan = engines("bert", "fp8")
    whole = set(realized(plan).layers)
    for part in np.linspace(0, len(plan), 40).astype(int):
        read = realized(plan[:part]).layers
        assert {p for p in read if p.precision != "unknown"} <= whole


def test_plugin_layers_tell_the_formats_of_the_plan(encoder, plugin, tmp_path):
    """From the fields that the engine keeps, in every profile."""
    built = build(plugin, encoder.path, tmp_path)
    assert built.plan, built.log
    expected = expected_by_graph(encoder.proto)
    ours = [entry for entry in expected if entry.plugin]
    found = realized(built.plan, "", expected)
    assert lost(expected, found) == unverified(expected, found) == ()
    told = {x.nodes[0]: x.precision for x in found.layers if x.kind == "plugin"}
    assert told == {entry.node: entry.precision for entry in ours}
    assert len(told) == len(encoder.plans) and all(told.values())
    (first, *others) = ours
    planted = [msgspec.structs.replace(first, precision="NVFP4 32"), *others]
    (missing,) = lost(planted, found)
    assert (missing.node, missing.realized) == (first.node, first.precision)
