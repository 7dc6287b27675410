"""The reader of the engine inspector's JSON, on layers as public issues show them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcompile.backends.engines.inspector import (
    layer_nodes,
    layer_types,
    parse_layers,
    read_inspection,
)

NODES = ("/fc1/MatMul", "/fc1/Add", "/act/Relu", "/fc2/MatMul", "/fc2/Add")


def layer(kernel="", kind="gemm", x="Half", y="Half", **more):
    tensors = {
        side: [{"Name": "t", "Format/Datatype": text}] if text else []
        for side, text in (("Inputs", x), ("Outputs", y))
    }
    return {"Name": "/fc1/MatMul", "LayerType": kind, "TacticName": kernel, **tensors, **more}


def only(*layers):
    (found,) = read_inspection(json.dumps({"Layers": layers}), NODES)
    return found


@pytest.mark.parametrize(
    ("kernel", "x", "precision", "sums"),
    [
        ("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64", "Half", "FP16", "FP16"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64", "Half", "FP16", "FP32"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_x", "BFloat16", "BF16", "FP32"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_x", "FP8", "FP8", "FP32"),
        ("sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_x", "Int8", "INT8", "INT32"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n", "Row major linear FP32", "FP32", "FP32"),
        (
            "cutlass3x_sm120_bstensorop_s16864gemm_block_scaled_ue4m3xe2m1_ue4m3xe2m1_f32_f16_f16_"
            "128x128x128_1x1x1",
            "FP4",
            "NVFP4",
            "FP32",
        ),
        (
            "cutlass3x_sm120_bstensorop_s16832gemm_block_scaled_ue8m0xe4m3_ue8m0xe4m3_f32_bf16_"
            "bf16_128x128x128",
            "FP8",
            "MXFP8",
            "FP32",
        ),
        ("cutlass3x_sm90_tensorop_s64x128x32gemm_e4m3_e4m3_f32_f16_f16_128", "FP8", "FP8", "FP32"),
        ("cutlass3x_sm90_tensorop_s64x128x32gemm_e4m3_f16_f32_f16_f16_1", "", "FP8 × FP16", "FP32"),
        ("cutlass3x_gemm_block_scaled_ue4m3xe2m1_ue8m0xe2m1_f32_f16_f16_", "", "unknown", "FP32"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_x", "Half", "unknown", "FP32"),
        ("ampere_h16816gemm_256x128_ldg8_nn_v1", "Half", "unknown", "unknown"),
        ("__myelin_CASK_STUB", "Half", "unknown", "unknown"),
        ("", "", "unknown", "unknown"),
    ],
)
def test_precision_and_sums_by_the_name_of_the_kernel(kernel, x, precision, sums):
    found = only(layer(kernel, x=x))
    assert (found.precision, found.accumulation) == (precision, sums)
    assert found.kind == "gemm"


def test_kinds_of_layers():
    assert only(layer(kind="CaskConvolution")).kind == "convolution"
    assert only(layer("_gemm_mha_v2", kind="kgen")).precision == "FP16"
    assert only(layer("sm80_xmma_gemm_f16f16_f16f16_f16_nn", kind="Other")).kind == "gemm"
    plugin = layer(kind="PluginV3", PluginType="MicroMixLinear")
    assert (only(plugin).kind, only(plugin).precision) == ("plugin", "plugin")
    assert only(layer(kind="PluginV3")).kind == "plugin"
    for none in (
        layer(kind="PluginV3", PluginType="Another"),
        layer("__myl_AddCast_0x1", kind="kgen"),
        layer(kind="Reformat"),
    ):
        assert read_inspection(json.dumps({"Layers": [none]}), NODES) == ()


def test_nodes_come_from_metadata_and_else_from_the_name():
    told = layer(Metadata="[ONNX Layer: /fc2/MatMul]\x1e[ONNX Layer: /fc2/Add]")
    assert only(told).nodes == ("/fc2/MatMul", "/fc2/Add")
    assert only(layer()).nodes == ("/fc1/MatMul",)
    assert only(layer() | {"Name": "/fc1/MatMul + /fc1/Add"}).nodes == NODES[:2]


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("/fc1/MatMul + /fc1/Add", ("/fc1/MatMul", "/fc1/Add")),
        ("{ForeignNode[/fc1/MatMul.../fc2/Add]}", ("/fc1/MatMul", "/fc2/Add")),
        ("PWN(/act/Relu)", ("/act/Relu",)),
        ("/fc2/MatMul", ("/fc2/MatMul",)),
        ("Reformatting CopyNode for Input Tensor 0 to /fc1/MatMul", ()),
        ("/fc1/MatMul_myl0_1", ()),
        ("", ()),
    ],
)
def test_names_of_fused_layers(name, nodes):
    assert layer_nodes(name, {}, NODES) == nodes


def test_types_of_a_layer_in_words():
    assert layer_types(layer(x="Row major linear FP8 format")) == "FP8 → FP16"
    assert layer_types(layer(x="FP8E4M3", y="FP4E2M1")) == "FP8 → FP4"
    assert layer_types({}) == ""


def test_inspections_of_all_kinds():
    assert parse_layers("") == []
    assert parse_layers("no json") == []
    assert parse_layers(b"\xff\xfe") == []
    assert parse_layers('{"Layers": 3}') == []
    assert parse_layers('{"Layers": ["a", {"Name": "b"}]}') == [{"Name": "a"}, {"Name": "b"}]


JSON = st.sampled_from([None, True, 3, "", "gemm", [], [None], [{}], ["Half"], {"a": [1]}])
KEYS = ("Name", "LayerType", "TacticName", "Inputs", "Outputs", "Metadata", "PluginType")


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), max_size=3))
@settings(deadline=None)
def test_any_json_gives_an_answer(layers):
    for product in read_inspection(json.dumps({"Layers": layers}), NODES):
        assert product.precision in ("unknown", "plugin")
