"""The reader of the text in TensorRT-RTX's engines, on text made by hand; any bytes."""

import mmap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcompile.backends.engines import plan_text, plugin_fields
from mmcompile.backends.engines.plan_text import read_plan_text
from mmcompile.backends.engines.plugin_fields import read_segments, segments_text
from tests.backends.plan_samples import (
    FP8,
    engine,
    kernel,
    plugin_record,
    product,
    program,
    tensor,
    text_record,
)


def only(*programs):
    (found,) = read_plan_text(engine(*programs)).layers
    return found


def typed(kinds, extra=(), op="fully_connected"):
    """A program with one product whose operands, then further inputs, have these types."""
    names = [f"t{index}" for index in range(len(kinds) + len(extra))]
    tensors = [tensor(n, k) for n, k in zip(names, [*kinds, *extra], strict=True)]
    return program([*tensors, tensor("y", "half")], [product("fc", names, op=op)])


def test_a_product_tells_its_nodes_and_types():
    found = only(FP8)
    assert (found.name, found.kind) == ("fc", "gemm")
    assert found.nodes == ("fc/MatMul", "x/DQ", "w/DQ")
    assert (found.x, found.weight, found.output) == ("FP8", "FP8", "FP16")
    assert (found.precision, found.accumulation) == ("FP8", "unknown")
    assert (found.x_from, found.weight_from) == ("", "")


@pytest.mark.parametrize(
    ("kinds", "extra", "precision"),
    [
        (("half", "half"), (), "FP16"),
        (("float", "float"), ("float", "float"), "FP32"),
        (("bf16", "bf16"), (), "BF16"),
        (("int8", "int8"), ("float", "float"), "INT8"),
        (("fp4_e2m1", "fp4_e2m1"), ("float", "float", "fp8_e4m3", "fp8_e4m3"), "NVFP4"),
        (("fp8_e4m3", "fp8_e4m3"), ("float", "float", "fp8_e8m0", "fp8_e8m0"), "MXFP8"),
        (("fp4_e2m1", "fp4_e2m1"), ("fp8_e8m0", "fp8_e8m0"), "MXFP4"),
        (("fp4_e2m1", "fp4_e2m1"), ("fp8_e8m0", "fp8_e4m3"), "unknown"),
        (("fp8_e4m3", "fp8_e4m3"), ("fp9_e9m9",), "unknown"),
        (("half", "fp8_e4m3"), (), "FP16 × FP8"),
        (("half", "fp6_e3m2"), (), "unknown"),
        (("half",), (), "unknown"),
    ],
)
def test_precision_by_the_types_of_operands_and_scales(kinds, extra, precision):
    assert only(typed(kinds, extra)).precision == precision


def test_convolutions_are_products_and_unknown_operations_are_not():
    assert only(typed(("half", "half"), op="corrltn")).kind == "convolution"
    assert read_plan_text(engine(typed(("half", "half"), op="quantum_dot"))).layers == ()


def test_a_weight_dequantized_in_the_same_program_is_told():
    tensors = [
        tensor("x", "half"),
        tensor("codes", "fp8_e4m3"),
        tensor("wide", "half"),
        tensor("w", "half"),
    ]
    operations = [
        '  cast={ name="c" output={"wide" } input={"codes" } }\n',
        '  mul={ name="m" output={"w" } input={"wide" "scale" } }\n',
        product("fc", ["x", "w"]),
    ]
    found = only(program(tensors, operations))
    assert (found.x_from, found.weight_from) == ("", "FP8")
    assert found.description == "FP16, weight dequantized from FP8"


def called(arguments, piece="ReshCastMul"):
    """A program that dequantizes x and calls another one, which holds the product."""
    main = program(
        [tensor("codes", "fp8_e4m3"), tensor("wide", "half"), tensor("w.main", "half")],
        [
            kernel(f"__myl_{piece}", ["codes"], ["wide"], ["x/DQ"]),
            kernel("__myl_Fc", arguments, ["y"], ["fc", "act"], op="runtime_fusion"),
        ],
    )
    part = program(
        [tensor("a", "half"), tensor("b", "half")],
        [product("fc", ["a", "b"])],
        inputs=("a", "b"),
        version=4,
    )
    return main, part


def test_an_operand_is_followed_into_the_program_that_calls():
    found = only(*called(["wide", "w.main"]))
    assert (found.precision, found.x_from, found.weight_from) == ("FP16", "FP8", "")


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["wide"], "ReshCastMul"),  # another number of arguments than the program has inputs
        (["wide", "w.main"], "CastMulAdd"),  # computes, so that its result is a new value
        (["wide", "w.main"], "CastEtc"),  # TensorRT cuts long names
    ],
)
def test_what_cannot_be_followed_says_nothing_of_dequantization(arguments, piece):
    assert only(*called(arguments, piece)).x_from == ""


def test_a_tensor_made_of_itself_ends():
    tensors = [tensor("x", "half"), tensor("w", "half")]
    loop = '  cast={ name="c" output={"w" } input={"w" } }\n'
    assert only(program(tensors, [loop, product("fc", ["x", "w"])])).weight_from == ""


def test_attention_is_of_one_type_where_all_its_operands_are():
    tensors = [tensor("q", "half"), tensor("k", "half"), tensor("mask", "bool")]
    call = kernel("_gemm_mha_v2", ["q", "k", "mask", "rows"], ["y"], ["qk", "softmax", "pv"])
    found = only(program(tensors, [call]))
    assert (found.kind, found.precision) == ("attention", "FP16")
    mixed = program([tensor("q", "half"), tensor("k", "fp8_e4m3")], [call])
    assert only(mixed).precision == "unknown"


def test_only_kernels_of_attention_are_taken_for_it():
    tensors = [tensor("q", "half"), tensor("y", "half")]
    others = [
        kernel("__myl_Cast_mha", ["q"], ["y"], ["mha/cast"]),
        '  cast={ name="my_mha_gemm" output={"y" } input={"q" } layers="[ONNX Layer: mha]" }\n',
    ]
    assert read_plan_text(engine(program(tensors, others))).layers == ()


def test_plugins_and_generated_kernels_stand_apart():
    plugin = (
        '  custom_layer={ name="fc" output={"y" "w" } input={"x" } tactic_id="fc_1_2"'
        ' layers="[ONNX Layer: fc]" }\n'
    )
    sums = kernel("__myl_MulSum", ["x"], ["y"], ["small"])
    found = read_plan_text(engine(program([tensor("x", "half")], [plugin, sums])))
    assert found.layers == () and found.complete and found.programs == 1
    assert found.plugins["fc_1_2"].kind == "plugin"
    assert found.plugins["fc_1_2"].precision == "plugin"
    assert found.generated["small"].kind == "generated"


def test_profiles_that_compute_alike_are_one():
    second = FP8.replace('"fc"', '"fc [profile 1]"')
    assert only(FP8, second) == only(FP8)
    wide = FP8.replace("fp8_e4m3", "half")
    assert [p.precision for p in read_plan_text(engine(FP8, wide)).layers] == ["FP8", "FP16"]


@pytest.mark.parametrize("name", ['say "type=half" }', "a\\b", "a] b", "{x} y={", "é\n  z={"])
def test_odd_names_stay_inside_their_quotes(name):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    text = FP8.replace('name="fc"', f'name="{escaped}"').replace("fc/MatMul", escaped)
    found = only(text)
    assert found.nodes[0] == name and found.precision == "FP8"


def test_two_tensors_of_one_name_are_not_trusted():
    text = FP8.replace("main {", tensor("w", "half") + "main {")
    assert only(text).precision == "unknown"


@given(st.binary(max_size=2000), st.integers(0, len(FP8)))
@settings(max_examples=200, deadline=None)
def test_hostile_bytes_give_an_answer(noise, cut):
    for data in (noise, b"header {\n" + noise, engine(FP8[:cut]) + noise):
        read_plan_text(data)
        read_segments(data, ["fc"])


@given(st.integers(0, len(FP8)), st.sampled_from([*'{}="\\ \n\x1f', "header {\n"]))
@settings(max_examples=300, deadline=None)
def test_one_changed_character_never_makes_another_precision(place, character):
    """Of one product in FP8, a damaged text tells FP8 or nothing."""
    damaged = FP8[:place] + character + FP8[place + 1 :]
    precisions = {p.precision for p in read_plan_text(engine(damaged)).layers}
    assert precisions <= {"FP8", "unknown"}


def test_text_beyond_the_bounds_is_not_read_and_said_so(monkeypatch):
    monkeypatch.setattr(plan_text, "MAX_PROGRAMS", 3)
    assert not read_plan_text(engine(*[FP8] * 5)).complete
    monkeypatch.setattr(plan_text, "MAX_TEXT", 100)
    assert not read_plan_text(engine(FP8)).complete


@pytest.mark.parametrize(
    "text",
    [
        b"a={" * 400_000,
        b'a={ "' * 200_000,
        b"a={ x={ y={ z={ " * 60_000,
        b"word" * 300_000,
        b'a={ b="' + b"\\" * 1_000_000,
        b"header {\n\0" * 90_000,
        b'  tensor={ name="x" type=half }\n' * 40_000,
    ],
)
def test_time_grows_with_the_length_of_the_text(text):
    """A megabyte each; quadratic reading would take minutes."""
    start = time.perf_counter()
    read_plan_text(b"header {\n" + text)
    assert time.perf_counter() - start < 30


def test_a_mapped_file_is_read_in_place(tmp_path):
    path = tmp_path / "engine.plan"
    path.write_bytes(b"\0" * 5_000_000 + engine(FP8))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        (found,) = read_plan_text(mapped).layers
        assert read_segments(mapped, ["fc"]) == {}
    assert found.precision == "FP8"


def test_the_formats_of_plugin_layers():
    data = (
        b"\0" * 100
        + plugin_record("fc1_1_2", [96, 32], [4, 3], [4, 3])
        + plugin_record("fc2_1_2", [64, 32], [3, 3], [2, 3])
        + plugin_record("unasked", [64], [3], [3])
    )
    found = read_segments(data, ["fc1_1_2", "fc2_1_2", "absent"])
    assert found == {
        "fc1_1_2": "NVFP4 96 + MXFP8 32",
        "fc2_1_2": "MXFP8 × MXFP6_E3M2 64 + MXFP8 32",
    }


def test_formats_that_are_not_understood_are_not_told():
    assert segments_text([32], [3], [99]) == ""
    assert segments_text([32, 32], [3], [3]) == ""
    assert segments_text([32, 0], [3, 3], [3, 3]) == ""
    record = plugin_record("fc", [96, 32], [4, 3], [4, 3])
    assert read_segments(record.replace(b"INT32", b"INT64"), ["fc"]) == {}
    assert read_segments(record[: record.index(b"segment_weight") + 60], ["fc"]) == {}
    twice = record + plugin_record("fc", [128], [3], [3])
    assert read_segments(twice, ["fc"]) == {}
    two_names = text_record(b"other") + record
    assert read_segments(two_names, ["fc"]) != {} == read_segments(two_names, ["fc", "other"])


def test_no_more_records_than_the_bound(monkeypatch):
    monkeypatch.setattr(plugin_fields, "MAX_RECORDS", 1)
    data = plugin_record("a", [32], [3], [3]) + plugin_record("b", [32], [3], [3])
    assert read_segments(data, ["a", "b"]) == {"a": "MXFP8 32"}


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_record_tells_its_formats_or_nothing(data):
    """A byte that is changed outside the numbers themselves changes no format."""
    record = plugin_record("fc", [96, 32], [4, 3], [4, 3])
    numbers = set(_values(record))
    place = data.draw(st.integers(0, len(record) - 1).filter(lambda at: at not in numbers))
    damaged = bytearray(record)
    damaged[place] ^= data.draw(st.integers(1, 255))
    assert read_segments(bytes(damaged), ["fc"]) in ({}, {"fc": "NVFP4 96 + MXFP8 32"})


def _values(record):
    """Places of the numbers of every field."""
    at = record.find(b"INT32")
    while at >= 0:
        start = at + len(b"INT32") + 6 + 8
        yield from range(start, start + 8)
        at = record.find(b"INT32", at + 1)
