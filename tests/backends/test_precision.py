"""What an engine runs against what its graph asks for, on products made by hand."""

import json

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile.backends.engines.expectations import expected_by_graph, expected_products
from mmcompile.backends.engines.layer_precision import (
    Expected,
    LayerPrecision,
    Realized,
    product_precision,
)
from mmcompile.backends.engines.precision import (
    check_precision,
    compare,
    lost,
    lost_text,
    precision_lines,
    realized,
    unverified,
)
from mmcompile.errors import VerificationError
from tests.backends.plan_samples import FP8, engine, plugin_record, program, tensor

GEMM = {
    "Name": "fc/MatMul",
    "LayerType": "gemm",
    "Inputs": [{"Format/Datatype": "FP8"}],
    "Outputs": [{"Format/Datatype": "Half"}],
    "Metadata": "[ONNX Layer: fc/MatMul]",
}
XMMA = "sm90_xmma_gemm_{}f16_{}f32_f32_tn_n"
CUSTOM = (
    '  custom_layer={{ name="{0}" output={{"y" }} input={{"x" }} tactic_id="{0}_1_2"'
    ' layers="[ONNX Layer: {0}]" }}\n'
)
PLUGIN = Expected("fc", "NVFP4 96 + MXFP8 32", plugin=True)


def inspection(*layers):
    return json.dumps({"Layers": layers})


def product(node, precision, kind="gemm", **more):
    return LayerPrecision(node, (node,), kind, precision=precision, **more)


def found(*products):
    return Realized("plan text", "", products)


def plugin_engine(*records):
    text = program([tensor("x", "half"), tensor("y", "half")], [CUSTOM.format("fc")])
    return engine(text) + b"\0" + b"".join(records)


def test_without_an_inspector_the_text_tells():
    told = realized(engine(FP8))
    assert (told.source, told.counts) == ("plan text", {"FP8": 1})
    assert "NVIDIA does not document" in told.note


def test_the_inspector_tells_where_it_knows():
    told = realized(engine(FP8), inspection(GEMM | {"TacticName": XMMA.format("e4m3", "e4m3")}))
    assert told.source == "engine inspector"
    assert (told.counts, told.layers[0].accumulation) == ({"FP8": 1}, "FP32")


def test_the_text_tells_what_the_inspector_does_not():
    told = realized(engine(FP8), inspection(GEMM))
    assert told.source == "engine inspector and plan text"
    assert told.counts == {"FP8": 1}


def test_layers_that_the_inspector_leaves_out_are_told_by_the_text():
    other = GEMM | {"Metadata": "[ONNX Layer: other]", "TacticName": XMMA.format("e4m3", "e4m3")}
    told = realized(engine(FP8), inspection(other))
    assert [layer.nodes[0] for layer in told.layers] == ["other", "fc/MatMul"]
    assert told.source == "engine inspector and plan text"


def test_nothing_is_told_of_an_engine_that_tells_nothing():
    told = realized(b"\0" * 1000, "", [Expected("fc", "FP8")])
    assert (told.source, told.counts) == ("nothing", {"unknown": 1})
    assert (told.layers[0].nodes, told.layers[0].kind) == (("fc",), "absent")
    assert lost([Expected("fc", "FP8")], told) == ()
    assert unverified([Expected("fc", "FP8")], told) == ("fc",)


def test_a_plugin_layer_tells_its_formats():
    told = realized(plugin_engine(plugin_record("fc_1_2", [96, 32], [4, 3], [4, 3])))
    assert told.layers[0].precision == "NVFP4 96 + MXFP8 32"
    assert told.counts == {"plugin": 1}
    assert lost([PLUGIN], told) == unverified([PLUGIN], told) == ()


def test_a_plugin_layer_with_other_formats_than_the_plan_is_lost():
    told = realized(plugin_engine(plugin_record("fc_1_2", [128], [3], [3])))
    (missing,) = lost([PLUGIN], told)
    assert (missing.expected, missing.realized) == ("NVFP4 96 + MXFP8 32", "MXFP8 128")


def test_a_plugin_layer_that_does_not_tell_its_formats_is_still_the_plugin():
    assert lost([PLUGIN], realized(plugin_engine())) == ()
    assert unverified([PLUGIN], realized(plugin_engine())) == ()


def test_a_plugin_layer_that_became_a_product_is_lost():
    (missing,) = lost([PLUGIN], found(product("fc", "FP32")))
    assert missing.realized == "FP32"


def test_a_plugin_layer_that_the_engine_lacks_is_lost():
    (missing,) = lost([PLUGIN], found(product("other", "FP16")))
    assert missing.realized == "no layer of the plugin"
    silent = Realized("engine inspector", "", (product("other", "FP16"),))
    assert lost([PLUGIN], silent) == () and unverified([PLUGIN], silent) == ("fc",)
    renamed = found(product("fc_renamed", "plugin", kind="plugin"))
    assert lost([PLUGIN], renamed) == () and unverified([PLUGIN], renamed) == ("fc",)


def test_one_profile_without_the_precision_is_enough():
    both = found(product("fc", "FP8"), product("fc", "FP16", x_from="FP8", weight_from="FP8"))
    (missing,) = lost([Expected("fc", "FP8")], both)
    assert missing.realized == "FP16, dequantized from FP8"


def test_one_profile_of_which_nothing_is_known_is_not_verified():
    both = found(product("fc", "FP8"), product("fc", "unknown"))
    assert lost([Expected("fc", "FP8")], both) == ()
    assert unverified([Expected("fc", "FP8")], both) == ("fc",)


def test_the_error_names_layers_that_changed_alike_together():
    nodes = [f"fc{index}" for index in range(8)]
    wide = [product(node, "FP16") for node in nodes[:7]] + [product("fc7", "FP32")]
    expected = expected_products(nodes, "NVFP4")
    check = compare(expected, found(*wide))
    with pytest.raises(VerificationError) as caught:
        check_precision(check, "out/engine.plan", allow_fallback=False)
    line = str(caught.value)
    assert "8 of 8 layers lost their precision" in line
    assert "fc0, fc1, fc2, fc3, fc4 and 2 more (NVFP4 became FP16)" in line
    assert "fc7 (NVFP4 became FP32)" in line
    assert caught.value.where == "out/engine.plan"
    check_precision(check, "", allow_fallback=True)
    check_precision(compare(expected, found()), "", allow_fallback=False)
    assert precision_lines(check) == (
        "precision: 7 FP16; 1 FP32 (plan text: )",
        f"precision lost: {lost_text(check.lost)}",
    )
    assert precision_lines(compare(expected, found()))[1:] == (
        "precision not verified: 8 of 8 layers, fc0, …",
    )


def test_products_survive_json():
    told = realized(engine(FP8))
    assert msgspec.json.decode(msgspec.json.encode(told), type=Realized) == told


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("FP4", "FP4", "FP8"), "NVFP4"),
        (("FP4", "FP4", "E8M0"), "MXFP4"),
        (("FP8", "FP8", "E8M0"), "MXFP8"),
        (("INT8", "INT8", "FP8"), "unknown"),
        (("FP8", "unknown"), "unknown"),
    ],
)
def test_names_of_products(parts, name):
    assert product_precision(*parts) == name


def graph(*nodes, **constants):
    values = []
    for name, value in constants.items():
        if isinstance(value, int):
            values.append(TensorProto(name=name, data_type=value, dims=[2]))
        else:
            values.append(numpy_helper.from_array(value, name))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)
    return helper.make_model(helper.make_graph(nodes, "graph", [x], [y], values))


def node(op, inputs, output, **attributes):
    domain = "trt" if op.startswith("TRT_") else attributes.pop("domain", "")
    outputs = output.split()
    name = attributes.pop("name", outputs[0])
    return helper.make_node(op, inputs.split(), outputs, name=name, domain=domain, **attributes)


def matmul(x, weight, op="MatMul"):
    return node(op, f"{x} {weight}", "y", name="fc")


QDQ = (node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"))
WEIGHT = node("DequantizeLinear", "codes s z", "w")
E4M3, HALF = TensorProto.FLOAT8E4M3FN, np.zeros(2, np.float16)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        (graph(*QDQ, WEIGHT, matmul("d", "w"), z=E4M3, codes=E4M3, s=HALF), "FP8"),
        (graph(*QDQ, WEIGHT, matmul("d", "w", "Gemm"), z=E4M3, codes=E4M3, s=HALF), "FP8"),
        (graph(*QDQ, WEIGHT, matmul("d", "w"), z=3, codes=3, s=HALF), "INT8"),
        (
            graph(
                *QDQ,
                WEIGHT,
                node("Transpose", "w", "wt"),
                node("Cast", "wt", "wc", to=10),
                matmul("d", "wc"),
                z=E4M3,
                codes=E4M3,
            ),
            "FP8",
        ),
        (
            graph(
                node("TRT_FP4DynamicQuantize", "x t", "q qs"),
                node("DequantizeLinear", "q qs", "d", axis=-1, block_size=16),
                node("DequantizeLinear", "codes ws", "w", axis=-1, block_size=16),
                matmul("d", "w"),
                codes=TensorProto.FLOAT4E2M1,
            ),
            "NVFP4",
        ),
        (
            graph(
                node("TRT_MXFP8DequantizeLinear", "q qs", "d"),
                node("TRT_MXFP8DequantizeLinear", "c cs", "w"),
                matmul("d", "w"),
            ),
            "MXFP8",
        ),
        (graph(matmul("x", "W"), W=HALF), "FP16"),
        (graph(node("Transpose", "W", "w"), matmul("x", "w"), W=HALF), "FP16"),
        (graph(matmul("x", "W"), W=TensorProto.BFLOAT16), "BF16"),
        # Nothing narrow is asked for: only one side is quantized, or something is computed between.
        (graph(WEIGHT, matmul("x", "w"), z=E4M3, codes=E4M3, s=HALF), None),
        (
            graph(*QDQ, node("Relu", "d", "r"), WEIGHT, matmul("r", "w"), z=E4M3, codes=E4M3),
            None,
        ),
        (graph(matmul("x", "W"), W=np.zeros(2, np.float32)), None),
        (graph(node("Cast", "W", "w", to=1), matmul("x", "w"), W=HALF), None),
        (graph(matmul("x", "x")), None),
        (
            graph(
                *QDQ,
                node("DequantizeLinear", "codes s z", "w", block_size=32),
                matmul("d", "w"),
                z=E4M3,
                codes=E4M3,
            ),
            None,
        ),
    ],
)
def test_what_a_graph_asks_for(model, precision):
    asked = [] if precision is None else [Expected("fc", precision)]
    assert list(expected_by_graph(model)) == asked


def test_a_compiled_graph_asks_for_its_plugins_and_their_formats():
    fields = {
        "segment_channels": [96, 32],
        "segment_act_formats": [4, 3],
        "segment_weight_formats": [4, 3],
    }
    ours = node("MicroMixLinear", "x o w s", "y", name="fc", domain="mmcompile", **fields)
    assert expected_by_graph(graph(ours)) == (PLUGIN,)
    other = node("MicroMixLinear", "x", "y", domain="somebody")
    assert expected_by_graph(graph(other)) == ()


def test_a_circle_of_shape_operators_ends():
    circle = graph(node("Reshape", "b", "a"), node("Reshape", "a", "b"), matmul("a", "b"))
    assert expected_by_graph(circle) == ()
    assert expected_by_graph(onnx.ModelProto()) == ()
