"""`mmcompile bench` on the command line: modelled limits, pages, mistakes."""

import dataclasses
import json
import re
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import helper, numpy_helper

from mmcompile.backends.engines.layer_precision import Lost, PrecisionCheck, Realized
from mmcompile.bench.engines import Rig, Variant, bench_engines
from mmcompile.bench.modelled import ModelledBench
from mmcompile.bench.page import bench_page
from mmcompile.bench.points import Point
from mmcompile.bench.variants import profile_of
from mmcompile.cli.bench_tables import print_engines
from mmcompile.cuda.clocks import Clocks
from mmcompile.report.bench import Chart, draw_chart, render_bench
from tests.bench.machine import FakeMachine
from tests.bench.test_engines import Engine, bench
from tests.doctor.cuda import install
from tests.models import weight
from tests.workplace import call


def modelled(work, *more):
    return call("bench", work.model, "--modelled", "--json", *more).json()


def test_the_tables_say_that_they_are_a_model(work):
    shown = call("bench", work.model, "--modelled", "--point", "1x1", "--point", "4x64")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("MODELLED, not measured")
    for word in ("GeForce RTX 5090", "an example split", "1 × 1, decode", "4 × 64, prefill"):
        assert word in shown.out
    assert shown.out.count("MODELLED µs") == 3
    assert "measured" not in shown.out.replace("not measured", "")
    for variant in ("FP16", "FP8", "MXFP8", "NVFP4", "MXFP4", "MicroMix"):
        assert variant in shown.out


def test_json_holds_figures_with_sources(work):
    document = modelled(work, "--gpu", "dgxspark", "--point", "8x1")
    assert document["kind"] == "modelled" and "not measured" in document["notice"]
    assert document["gpu"] == "dgxspark"
    assert document["figures"]["bandwidth_bytes_per_s"]["value"] == 0.273e12
    assert all(figure["source"] for figure in document["figures"].values())
    (point,) = document["points"]
    assert (point["rows"], point["phase"]) == (8, "decode")
    first, second = point["layers"]
    assert (first["in_channels"], first["out_channels"]) == (96, 64)
    assert (second["in_channels"], second["out_channels"]) == (64, 48)
    total = sum(layer["limits"]["NVFP4"]["seconds"] for layer in point["layers"])
    assert point["totals"]["NVFP4"] == pytest.approx(total)
    assert point["over_fp16"]["NVFP4"] == pytest.approx(point["totals"]["FP16"] / total)
    packed = msgspec.json.encode(document)
    assert msgspec.json.decode(packed, type=ModelledBench).gpu == "dgxspark"


def test_the_plan_decides_what_micromix_is(work):
    assert work.compile("--policy", "mxfp8").code == 0
    document = modelled(work, "--plan", work.out / "plan.json", "--point", "1x1")
    assert "plan.json" in document["split"]
    for layer in document["points"][0]["layers"]:
        assert layer["limits"]["MicroMix"] == layer["limits"]["MXFP8"]
        assert layer["weight_bits"] == 8.25


def test_layers_that_stay_in_fp16_count_in_every_variant(work):
    model = onnx.load(work.model)
    model.graph.initializer.append(numpy_helper.from_array(weight(48, 80), "W3"))
    model.graph.node.append(helper.make_node("MatMul", ["y", "W3"], ["logits"], name="head"))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("logits", 1, ("batch", "sequence", 80))
    )
    onnx.save(model, work.model)
    layers = modelled(work, "--point", "1x1")["points"][0]["layers"]
    assert [layer["kept"] for layer in layers] == [False, False, True]
    assert layers[2]["nodes"] == ["head"]
    assert len({limit["seconds"] for limit in layers[2]["limits"].values()}) == 1
    assert modelled(work, "--quantize-heads")["points"][0]["layers"][2]["kept"] is False
    kept = modelled(work, "--exclude", "first", "--point", "1x1")["points"][0]["layers"]
    assert {layer["nodes"][0] for layer in kept if layer["kept"]} == {"first", "head"}


def test_files(work):
    page, out = work.folder / "page.html", work.folder / "bench.json"
    shown = call("bench", work.model, "--modelled", "--html", page, "-o", out, "--json")
    assert shown.code == 0
    assert json.loads(out.read_text()) == shown.json()
    text = page.read_text()
    assert text.count("<svg") == 1 and "MODELLED" in text and "Modelled limit" in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "github.com/flashinfer-ai" in text  # sources stand beside their figures


def test_names_of_a_model_cannot_break_the_page(work):
    model = onnx.load(work.model)
    model.graph.node[0].name = "<script>alert(1)</script>$x$"
    onnx.save(model, work.model)
    page = work.folder / "page.html"
    assert call("bench", work.model, "--modelled", "--html", page).code == 0
    assert "<script" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Missing argument 'MODEL'"),
        (["model.onnx", "--modelled", "--kernels"], "exclude each other"),
        (["model.onnx", "--modelled", "--gpu", "sm_120"], "is a family"),
        (["model.onnx", "--modelled", "--gpu", "voodoo2"], "rtx5090, rtx5080"),
        (["model.onnx", "--modelled", "--point", "8"], "point-malformed"),
        (["model.onnx", "--modelled", "--plan", "none.json"], "none.json"),
        (["none.onnx", "--modelled"], "none.onnx"),
        (["model.onnx", "--modelled", "-o", "model.onnx"], "output-is-source"),
        (["model.onnx", "--modelled", "--engine", "A=a.onnx"], "no effect"),
        (["model.onnx", "--engine", "=a.onnx"], "names no variant"),
        (["--prepare", "p"], "Missing argument 'MODEL'"),
        (["model.onnx", "--prepare", "p", "--run", "p"], "exclude each other"),
        (["model.onnx", "--prepare", "p", "--kernels"], "exclude each other"),
        (["--run", "p", "--modelled"], "exclude each other"),
        (["model.onnx", "--run", "p"], "takes no MODEL"),
        (["model.onnx", "--prepare", "p", "--html", "page.html"], "--html: it has no effect"),
        (["--run", "p", "--point", "1x1"], "--point: it has no effect"),
        (["--run", "p", "--gpu", "sm_120"], "--gpu: it has no effect"),
        (["--run", "p", "--calib", "data.npz"], "--calib: it has no effect"),
        (["--run", "p", "--exclude", "first"], "--exclude: it has no effect"),
        (["model.onnx", "--kernels", "--backend", "tensorrt"], "--backend: it has no effect"),
    ],
)
def test_mistakes(work, arguments, word):
    shown = call("bench", *arguments)
    assert shown.code == 2
    assert word in shown.line()


def test_without_a_gpu_one_line_names_the_ways_out(work, monkeypatch):
    install(monkeypatch)
    shown = call("bench", work.model)
    assert shown.code == 4
    assert "TensorRT" in shown.line()
    assert "--modelled" in shown.line() and "--prepare" in shown.line()


# Measured: the tables and pages of a document that a double gave.


def document(**changes):
    machine = FakeMachine()

    def build(variant):
        if variant.name == "NVFP4":
            raise RuntimeError("Could not find any implementation for node fc1")
        return b"x" * 2000

    def opened(_, variant):
        return Engine(machine, 4.0 if variant.name == "MicroMix" else 1.0)

    variants = [Variant(name, Path(f"{name}.onnx")) for name in ("FP16", "NVFP4", "MicroMix")]
    found = bench_engines(bench(), variants, Rig(build, opened, machine))
    return msgspec.structs.replace(found, **changes)


def test_tables_of_engines(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_engines(document(), verbose=True)
    shown = capsys.readouterr().out
    assert "MEASURED" in shown and "median" in shown
    runs = "1 unknown; 1 MicroMix"
    assert re.search(rf"FP16 +{runs} +1\.000 ±0% +16\.000 ±0%", shown)
    assert re.search(rf"MicroMix +{runs} +0\.250 ±0% 4\.00× +4\.000 ±0% 4\.00×", shown)
    assert re.search(r"NVFP4 +– +failed +failed", shown)
    assert "✗ NVFP4: Could not find any implementation for node fc1" in shown
    assert "2.00 kB" in shown or "2.0 kB" in shown
    assert "90% of the profiled time in linear layers" in shown
    assert "/fc2/MatMul" in shown and "MicroMixLinear" in shown and "FP8 → FP16" in shown


def test_tables_tell_the_clocks(capsys):
    found = document()
    reading = Clocks(2407, 3090, 14001, 412, 575, 61, "580", "NVML")
    point = msgspec.structs.replace(found.variants[0].points[0], before=reading, during=reading)
    first = msgspec.structs.replace(found.variants[0], points=(point,))
    print_engines(msgspec.structs.replace(found, variants=(first,)), verbose=False)
    assert "2407 MHz while running (at most 3090)" in capsys.readouterr().out


def test_the_page_of_engines():
    text = render_bench(bench_page(document()))
    assert "MEASURED" in text and "Speed over FP16" in text
    assert "Could not find any implementation" in text and "/fc2/MatMul" in text


def with_loss(name):
    """A document whose variant of that name does not run what it stands for."""
    found = document()
    check = PrecisionCheck(
        Realized("plan text", "", ()), 2, (Lost("fc1", "MXFP8", "FP16, dequantized from FP8"),)
    )
    variants = (
        msgspec.structs.replace(v, precision=check) if v.name == name else v for v in found.variants
    )
    return msgspec.structs.replace(found, variants=tuple(variants))


def test_a_variant_that_is_not_realized_is_marked_and_compared_with_nothing(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    found = with_loss("MicroMix")
    print_engines(found, verbose=False)
    shown = capsys.readouterr().out
    assert re.search(r"MicroMix, not realized .* 0\.250 ±0% +4\.000 ±0%", shown)
    assert "4.00×" not in shown
    assert "precision lost: fc1 (MXFP8 became FP16, dequantized from FP8)" in shown
    assert "1 of 2 layers do not run what it stands for" in shown
    page = bench_page(found)
    assert dict(page.charts[0].series)["MicroMix"] == [None, None]
    text = render_bench(page)
    assert "precision not realized" in text and "compared with nothing" in text


def test_with_a_reference_that_is_not_realized_nothing_is_compared():
    assert document().speed_over("FP16")
    assert with_loss("FP16").speed_over("FP16") == {}


def test_charts_leave_gaps_and_hold_nothing_from_models():
    chart = Chart("Speed", ["1×1 $a$", "2×2"], [("FP16", [1, 1]), ("X", [None, 3.5])])
    svg = str(draw_chart(chart, "c"))
    assert svg.startswith("<svg") and "var(--muted)" in svg
    assert draw_chart(dataclasses.replace(chart, groups=[], series=[]), "d")


def test_one_profile_holds_all_points():
    inputs = [("ids", ("batch", "sequence")), ("x", (1, 4))]
    shapes = [
        {"ids": (point.batch, point.sequence), "x": (1, 4)} for point in (Point(1, 8), Point(4, 2))
    ]
    (span,) = profile_of(inputs, shapes).values()
    assert (span.min, span.opt, span.max) == ((1, 2), (4, 2), (4, 8))
