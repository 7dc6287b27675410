"""A build says what precision its layers got, and fails where one was lost."""

from __future__ import annotations

import json

import pytest

from tests.workplace import call

FP16 = "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n"


def layer(node, kernel=FP16):
    return {"Name": node, "LayerType": "gemm", "TacticName": kernel, "Inputs": [], "Outputs": []}


def plugin(node):
    return {"Name": node, "LayerType": "PluginV3", "PluginType": "MicroMixLinear"}


def precision(work):
    return json.loads((work.out / "engine.meta.json").read_text())["precision"]


@pytest.fixture
def compiled(work):
    """A bundle without an engine."""
    assert work.compile("--backend", "none").code == 0
    return work


def test_a_build_says_what_every_layer_runs(compiled, tensorrt):
    tensorrt.faults.layers = [plugin("first"), plugin("second")]
    result = call("build", compiled.out)
    assert result.code == 0, result.err
    line = "precision: 2 MicroMix (engine inspector: told by TensorRT's engine inspector)"
    assert line in result.out
    kept = precision(compiled)
    assert [found["nodes"] for found in kept["realized"]["layers"]] == [["first"], ["second"]]
    assert (kept["asked"], kept["lost"], kept["unverified"]) == (2, [], [])


def test_what_cannot_be_told_is_said(compiled, tensorrt):
    result = call("build", compiled.out)
    assert result.code == 0
    assert "precision: 2 unknown (nothing: " in result.out
    assert "precision not verified: 2 of 2 layers, first, …" in result.out


def test_a_lost_precision_fails_the_build_and_leaves_the_earlier_engine(compiled, tensorrt):
    assert call("build", compiled.out).code == 0
    before = compiled.contents()
    tensorrt.faults.layers = [plugin("first"), layer("second")]
    result = call("build", compiled.out)
    assert result.code == 5
    line = result.line()
    assert "1 of 2 layers lost their precision: second (" in line and "became FP16" in line
    assert "--allow-fallback" in line and "[precision-lost]" in line
    assert compiled.contents() == before


def test_a_lost_precision_fails_a_compilation(work, tensorrt):
    tensorrt.faults.layers = [layer("first"), plugin("second")]
    result = work.compile()
    assert result.code == 5 and "precision-lost" in result.line()
    assert work.contents() == {}


def test_a_fallback_that_is_allowed_is_said_everywhere(work, tensorrt):
    tensorrt.faults.layers = [plugin("first"), layer("second")]
    result = work.compile("--allow-fallback", "--html")
    assert result.code == 0, result.err
    assert "Precision lost: second (" in result.out
    assert [entry["node"] for entry in precision(work)["lost"]] == ["second"]
    report = json.loads((work.out / "report.json").read_text())
    assert any("precision lost: second (" in line for line in report["engine"]["precision"])
    assert "Precision lost: second (" in (work.out / "report.html").read_text()
    assert call("build", work.out, "--allow-fallback").code == 0
