"""`mmcompile analyze` from the command line to its files, and what it refuses."""

import json
import re

import msgspec
import numpy as np
import onnx
import pytest

from mmcompile.analysis import ground, run
from mmcompile.pipeline import trial
from mmcompile.report.analysis import load_analysis
from tests.analysis.models import token_model, token_samples
from tests.models import typed
from tests.workplace import Workplace, call, samples

ALL = ("pareto", "stability", "stress", "layers")
FILES = {"analysis.json", "analysis.html"}


class Place(Workplace):
    """A folder with a model and 20 samples."""

    def __init__(self, folder):
        super().__init__(folder, samples(20))
        self.out = folder / "analysis"

    def analyze(self, *more, data=None, page=False):
        """Analyses in this process, few trial models unless told otherwise."""
        more = more if page else (*more, "--no-html")
        options = ["--granularity", "32", "--budgets", "1,1.5", "--verify-samples", "2"]
        if "--sections" in more and "pareto" not in more[more.index("--sections") + 1]:
            options = options[:2] + options[4:]
        given = ("--calib", data or self.data)
        return call("analyze", self.model, *given, "-o", self.out, *options, *more)

    def figures(self):
        return load_analysis(self.out / "analysis.json")


@pytest.fixture
def work(home):
    return Place(home)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """One whole analysis: its place and the result of the command."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("analysis")
        patch.setenv("MMCOMPILE_CACHE_DIR", str(folder / "cache"))
        patch.delenv("COLUMNS", raising=False)
        place = Place(folder)
        np.savez(folder / "other.npz", x=3 * samples(6, seed=9))
        options = ("--other-calib", folder / "other.npz", "--stress-data", folder / "other.npz")
        return place, place.analyze(*options, page=True)


def test_everything_is_written_and_shown(analysed):
    work, result = analysed
    assert (result.code, result.err) == (0, "")
    assert set(work.contents()) == FILES
    for said in (
        "chosen plan cost 1.25",
        "Error against cost",
        "calibrated on other data",
        "Error on inputs far from calibration",
        "Layers alone on changed rows",
        "layers with the most predicted damage",
        f"wrote {work.out / 'analysis.json'}",
    ):
        assert said in result.out
    assert not list(work.folder.glob("analysis/.mmcompile*"))


def test_points_of_all_families_are_on_fronts(analysed):
    pareto = analysed[0].figures().pareto
    names = {point.plan.name: point for point in pareto.points}
    assert {"cost 1", "cost 1.5", "cost 1.25", "MicroMix λ 1"} <= set(names)
    assert {"mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8"} <= set(names)
    assert [point.plan.name for point in pareto.points if point.chosen] == ["cost 1.25"]
    assert names["mxfp8"].plan.error < names["mxfp6_e2m3"].plan.error < names["mxfp4"].plan.error
    assert names["cost 1"].plan.error > names["cost 1.5"].plan.error
    assert names["mxfp8"].on_speed_front and not names["mxfp6_e3m2"].on_speed_front
    assert pareto.rank_correlation > 0.8
    for point in pareto.points:
        assert sum(share.share for share in point.plan.shares) == pytest.approx(1)
        assert point.plan.worst_output == "y"
        assert point.plan.error <= point.plan.error_of_worst_sample


def test_other_data_gives_other_plans(analysed):
    figures = analysed[0].figures()
    variants = {variant.name: variant for variant in figures.stability.variants}
    assert list(variants) == ["8 samples", "first half", "second half", "other.npz"]
    assert variants["8 samples"].samples == 8
    assert variants["other.npz"].samples == 6
    assert figures.stability.chosen.error == figures.chosen.error
    for variant in variants.values():
        assert 0.3 < variant.agreement <= 1
        assert 0 < variant.agreement_by_chance < 1
        assert variant.plan.error > 0


def test_stress_compares_the_plans(analysed):
    stress = analysed[0].figures().stress
    kinds = [given.kind for given in stress.inputs]
    assert kinds == ["held back", "changed", "changed", "changed", "other"]
    plans = {plan.plan: plan for plan in stress.plans}
    assert list(plans) == ["cost 1.25", "MicroMix λ 1", "mxfp4", "nvfp4", "mxfp8"]
    figures = analysed[0].figures()
    assert plans["cost 1.25"].errors[0] == figures.chosen.error
    points = {point.plan.name: point.plan for point in figures.pareto.points}
    assert plans["mxfp4"].errors[0] == points["mxfp4"].error
    by_case = {(entry.plan, entry.case): entry for entry in stress.layers}
    assert len(by_case) == 3 * len(plans)
    # A power of two shifts every MX block exponent alike: nothing is lost.
    assert by_case["mxfp8", "rows × 16"].worst_loss_db == pytest.approx(0, abs=1e-3)
    assert by_case["nvfp4", "rows × 16"].worst_loss_db > 1
    for (plan, case), entry in by_case.items():
        assert entry.worst_sqnr_db <= entry.median_sqnr_db
        assert (entry.median_loss_db is None) == (case == "as calibrated"), plan


def test_layers_add_up(analysed):
    layers = analysed[0].figures().layers
    assert [layer.nodes for layer in layers.layers] == [("first",), ("second",)]
    assert sum(layer.damage_share for layer in layers.layers) == pytest.approx(1)
    alone = [layer.error_alone for layer in layers.layers]
    assert sum(alone) == pytest.approx(layers.sum_of_errors_alone)
    assert max(alone) < layers.error < 2 * sum(alone)
    for layer, profile in zip(
        sorted(layers.layers, key=lambda x: -x.damage), layers.profiles, strict=True
    ):
        assert profile.layer == layer.name
        assert sum(segment.channels for segment in profile.segments) == layer.in_channels
        damage = [channel.damage for channel in layer.channels]
        assert len(damage) == 10 and damage == sorted(damage, reverse=True)
        assert max(max(s.damage) for s in profile.segments) == pytest.approx(damage[0], rel=1e-3)


@pytest.mark.slow
def test_the_same_command_gives_the_same_figures(work):
    first, second = [], []
    for found in (first, second):
        assert work.analyze("--sections", "stress,layers", "--seed", "3").code == 0
        found.append(work.figures())
    times = {"created": "", "stages": (), "peak_memory_bytes": 0}
    assert msgspec.structs.replace(first[0], **times) == msgspec.structs.replace(second[0], **times)


@pytest.mark.slow
@pytest.mark.parametrize("section", ALL)
def test_one_section_alone(work, section):
    assert work.analyze("--sections", section, page=True).code == 0
    figures = work.figures()
    for name in ALL:
        assert (getattr(figures, name) is not None) == (name == section)
    page = (work.out / "analysis.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert f'id="{section}"' in page
    for name in set(ALL) - {section}:
        assert f'id="{name}"' not in page


def test_fewer_layers_alone(work):
    assert work.analyze("--sections", "layers", "--layers", "1").code == 0
    layers = work.figures().layers
    alone = {layer.damage: layer.error_alone for layer in layers.layers}
    assert alone[max(alone)] > 0 and alone[min(alone)] is None
    assert layers.measured == 1


def test_tokens_are_stressed_as_tokens(work):
    onnx.save(token_model(), work.model)
    items = token_samples(12)
    np.savez(
        work.data, **{name: np.concatenate([item[name] for item in items]) for name in items[0]}
    )
    assert work.analyze("--sections", "stress").code == 0
    names = [given.name for given in work.figures().stress.inputs]
    assert names == ["held back", "random tokens", "shuffled tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["decode", "memory"])
def test_objectives_count_bits(work, objective):
    options = ("--sections", "pareto", "--objective", objective, "--budgets", "1,6.5,8")
    assert work.analyze(*options, "--target-bits", "7").code == 0
    figures = work.figures()
    assert figures.objective == objective
    bits = {p.plan.name: p.plan.weight_bits for p in figures.pareto.points}
    assert bits["cost 6.5 bits"] <= 6.5 and bits["cost 8 bits"] <= 8
    assert "cost 1 bits" not in bits, "what no formats meet is left out"
    assert figures.chosen.name == "cost 7 bits"


@pytest.mark.slow
def test_the_default_ladder_reaches_from_the_cheapest_to_mxfp8(work):
    given = ("--calib", work.data, "--granularity", "32", "--verify-samples", "1")
    assert call("analyze", work.model, *given, "--sections", "pareto", "-o", work.out).code == 0
    points = [p.plan for p in work.figures().pareto.points if p.plan.family == "cost"]
    assert len(points) >= 5
    assert points[0].speed_cost == 1 and points[-1].speed_cost == 2
    damage = [point.predicted_damage for point in points]
    assert damage == sorted(damage, reverse=True)


@pytest.mark.slow
def test_other_policies_and_errors_can_be_chosen(work):
    assert work.analyze("--sections", "stability", "--policy", "micromix").code == 0
    assert work.figures().chosen.family == "micromix"
    result = work.analyze("--sections", "stability", "--max-error", "0.012")
    assert result.code == 0
    figures = work.figures()
    assert figures.parameters["target_speed"] < 2
    assert figures.chosen.error < 0.02
    for variant in figures.stability.variants:
        assert variant.plan.speed_cost <= figures.parameters["target_speed"] + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["nearest", "gptq"])
def test_weights_are_rounded_as_asked(work, monkeypatch, weights):
    """With error feedback, every packing in the analysis gets sampled inputs, else none does."""
    given = []
    for module in (trial, ground):

        def packing(sites, plan, source, inputs=None, pack=module.pack_group):
            given.append(inputs)
            return pack(sites, plan, source, inputs)

        monkeypatch.setattr(module, "pack_group", packing)
    assert work.analyze("--sections", "stress,layers", "--weights", weights).code == 0
    assert work.figures().weights == weights
    assert len(given) > 10
    assert all((inputs is None) == (weights == "nearest") for inputs in given)


def test_json_is_the_file(work):
    result = work.analyze("--sections", "layers", "--json", page=True)
    assert result.code == 0
    assert result.json() == json.loads((work.out / "analysis.json").read_text())
    assert "wrote" in result.err


def test_without_the_page(work):
    assert work.analyze("--sections", "layers", page=True).code == 0
    assert work.analyze("--sections", "layers").code == 0
    assert set(work.contents()) == {"analysis.json"}


def test_random_data_is_flagged(work):
    result = work.analyze("--sections", "layers", data="random", page=True)
    assert result.code == 0
    assert "UNFIT" in result.out
    assert not work.figures().data.fit
    assert "not fit for use" in (work.out / "analysis.html").read_text()


@pytest.mark.slow
def test_too_few_samples_to_hold_back_are_announced(work):
    np.savez(work.data, x=samples(3))
    result = work.analyze("--sections", "stability,stress", page=True)
    assert result.code == 0
    assert not work.figures().data.disjoint
    assert "what calibration saw" in result.out
    assert "what calibration saw" in (work.out / "analysis.html").read_text()


def test_inputs_to_measure_on_can_be_given(work):
    np.savez(work.folder / "held.npz", x=samples(2, seed=8))
    data = ("--verify-data", work.folder / "held.npz")
    assert work.analyze("--sections", "layers", *data).code == 0
    found = work.figures().data
    assert found.disjoint and found.held_back_samples == 2 and found.samples == 20


@pytest.mark.slow
def test_what_overflows_shows_no_nan(work):
    work.replace_weight("W2", lambda w: w * np.float32(1e36))
    assert work.analyze("--sections", "pareto,stress,layers", page=True).code == 0
    page = (work.out / "analysis.html").read_text()
    shown = re.sub(r"<script>.*</script>|gave NaN or infinity", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf)\b", shown, re.IGNORECASE)


def test_a_failure_leaves_earlier_files(work, monkeypatch):
    assert work.analyze("--sections", "layers").code == 0
    before = work.contents()

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(run, "render_analysis", fail)
    assert work.analyze("--sections", "stress", page=True).code == 4
    assert work.contents() == before


def test_a_failure_leaves_no_folder(work, monkeypatch):
    monkeypatch.setattr(run, "render_analysis", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        work.analyze("--sections", "layers", page=True)
    assert not work.out.exists()


@pytest.mark.parametrize(
    ("options", "code", "where"),
    [
        (("--sections", "pareto,plots"), "unknown-choice", "--sections"),
        (("--sections", ","), "no-section", "--sections"),
        (("--budgets", "1,x"), "bad-budget", "--budgets"),
        (("--budgets", "1,-2"), "bad-budget", "--budgets"),
        (("--budgets", "nan"), "bad-budget", "--budgets"),
        (("--sections", "layers", "--budgets", "1"), "option-without-effect", "--budgets"),
        (("--sections", "layers", "--other-calib", "x.npz"), "option-without-effect", "--other"),
        (("--sections", "layers", "--stress-data", "x.npz"), "option-without-effect", "--stress"),
        (("--other-calib", "absent.npz"), "calibration-missing", "absent.npz"),
        (("--stress-data", "absent.npz"), "calibration-missing", "absent.npz"),
        (("--target-speed", "0.5"), "budget-too-small", "--target-speed"),
        (("--policy", "mxfp8", "--target-bits", "5"), "option-without-effect", "--target-bits"),
        (("--logits", "absent"), "no-such-output", "--logits"),
        (("--classes", "mxfp4,fp16"), "unknown-choice", "--classes"),
    ],
)
def test_refusals_are_one_line(work, options, code, where):
    result = call("analyze", work.model, "--calib", work.data, "-o", work.out, *options)
    assert result.code == 2
    assert f"{where}" in result.line()
    assert f"[{code}]" in result.line()
    assert not work.out.exists()


def test_models_without_layers_are_refused(work):
    onnx.save(typed("fp16"), work.model)
    np.savez(work.data, x=samples(2, dtype=np.float16))
    assert "[nothing-to-analyze]" in work.analyze().line()


def test_bfloat16_models_are_analysed(work):
    onnx.save(typed("bf16"), work.model)
    result = work.analyze("--quantize-heads", "--sections", "layers")
    assert (result.code, result.err) == (0, "")


def test_data_is_needed(work):
    result = call("analyze", work.model, "-o", work.out)
    assert (result.code, "[no-calibration-data]" in result.line()) == (2, True)
