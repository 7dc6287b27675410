"""The analysis as a document: files, page, plots and documentation."""

import base64
import hashlib
import re
from pathlib import Path

import msgspec
import pytest

from mmcompile.errors import UsageError
from mmcompile.report.analysis import (
    ANALYSIS_VERSION,
    Analysis,
    AnalysisData,
    ChannelDamage,
    DamageProfile,
    FormatShare,
    LayerFigures,
    Layers,
    LayerStress,
    Pareto,
    ParetoPoint,
    PlanFigures,
    ProfileSegment,
    Stability,
    Stress,
    StressErrors,
    StressInput,
    Variant,
    analysis_schema,
    dump_analysis,
    load_analysis,
)
from mmcompile.report.analysis_page import (
    factor_text,
    layer_labels,
    order_verdict,
    render_analysis,
)
from mmcompile.report.model import StageTime
from tests.report.test_report import HOSTILE, Page

DOCS = Path(__file__).parents[2] / "docs" / "analyze.md"
SHARES = (FormatShare("nvfp4", "nvfp4", 0.75), FormatShare("mxfp8", "mxfp4", 0.25))
SECTIONS = ("pareto", "stability", "stress", "layers")


def figures(name, family, cost, bits, error, damage):
    return PlanFigures(
        name=name,
        family=family,
        speed_cost=cost,
        weight_bits=bits,
        act_bits=bits,
        shares=SHARES,
        predicted_damage=damage,
        error=error,
        error_of_worst_sample=error,
        worst_output="logits",
        kl_divergence_nats=0.01,
        note=None if error is not None else "logits: NaN",
    )


def layer(name, share, error):
    return LayerFigures(
        name=name,
        nodes=(name,),
        in_channels=64,
        out_channels=(32, 16),
        shares=SHARES,
        damage=share,
        damage_share=share,
        gradient_measured=share > 0.3,
        error_alone=error,
        output_sqnr_db=20.0,
        channels=(ChannelDamage(3, "nvfp4", "nvfp4", 0.2),),
    )


def analysis(names=("block/a", "block/b"), error=0.01):
    """An analysis with every section."""
    chosen = figures("cost 1.25", "cost", 1.25, 5.4, error, 1.0)
    points = (
        ParetoPoint(chosen, True, True, True),
        ParetoPoint(figures("cost 2", "cost", 2.0, 8.3, 0.002, 0.2), False, True, True),
        ParetoPoint(figures("MicroMix λ 1", "micromix", 1.7, 6.0, 0.02, 1.4), False, False, False),
        ParetoPoint(figures("mxfp4", "uniform", 1.0, 4.3, None, 6.0), False, False, False),
        ParetoPoint(figures("nvfp4", "uniform", 1.0, 4.5, 0.05, 3.0), False, True, True),
    )
    variants = (
        Variant("8 samples", "few", True, 8, 100, 0.8, 0.6, chosen),
        Variant(names[0], names[0], False, 8, 100, 0.7, 0.6, points[1].plan),
    )
    inputs = (
        StressInput("held back", "held back", "as they are", 8),
        StressInput("random tokens", "changed", "random ids", 8),
        StressInput(names[0], "other", names[0], 3),
    )
    profile = (
        ProfileSegment("nvfp4", "nvfp4", 48, (0.0, 1e-6, 1e-3)),
        ProfileSegment("mxfp8", "mxfp4", 16, (1e-7, 1e-4)),
    )
    return Analysis(
        version=ANALYSIS_VERSION,
        created="2026-01-02T03:04:05+00:00",
        command=f"mmcompile analyze {names[0]}",
        versions={"mmcompile": "0"},
        model=f"folder/{names[0]}",
        linears=4,
        groups=2,
        groups_without_gradient=1,
        objective="prefill",
        policy="cost",
        parameters={"target_speed": 1.25},
        weights="nearest",
        data=AnalysisData(names[0], True, 100, 2000, "held", 8, True),
        chosen=chosen,
        pareto=Pareto(points, 0.9, None),
        stability=Stability(chosen, variants),
        stress=Stress(
            inputs,
            (
                StressErrors("cost 1.25", "cost", True, (error, 0.03, None)),
                StressErrors("nvfp4", "uniform", False, (0.05, 0.06, 0.2)),
            ),
            (LayerStress("cost 1.25", "as calibrated", 20.0, 15.0, names[1], None, None),),
        ),
        layers=Layers(
            (layer(names[0], 0.7, 0.008), layer(names[1], 0.3, None)),
            1,
            0.008,
            error,
            (DamageProfile(names[0], profile),),
        ),
        stages=(StageTime(name="pareto", seconds=12.0),),
        peak_memory_bytes=10**9,
    )


def without(found, *names):
    return msgspec.structs.replace(found, **dict.fromkeys(names))


def test_a_written_analysis_reads_back_equal(tmp_path):
    found = analysis()
    (tmp_path / "a.json").write_text(dump_analysis(found))
    assert load_analysis(tmp_path / "a.json") == found


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "analysis-malformed"),
        (b'{"version": 99}', "analysis-version"),
        (b'{"version": 1}', "analysis-malformed"),
        (b"\xff", "analysis-malformed"),
    ],
)
def test_a_bad_file_is_one_line_of_error(tmp_path, content, code):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UsageError, match=code):
        load_analysis(tmp_path / "a.json")
    with pytest.raises(UsageError, match="analysis-unreadable"):
        load_analysis(tmp_path / "absent.json")


def test_the_documentation_names_every_field_and_no_other():
    documented = {
        section.split("\n", 1)[0]: re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        for section in DOCS.read_text(encoding="utf-8").split("\n## ")
    }
    types = analysis_schema()["$defs"]
    assert {"Analysis", "PlanFigures", "StageTime"} <= set(types)
    for name, schema in types.items():
        assert documented.get(name) == list(schema["properties"]), name


@pytest.mark.parametrize("left", [SECTIONS, *([name] for name in SECTIONS), ()])
def test_the_page_is_complete_with_any_sections(left):
    found = without(analysis(), *(set(SECTIONS) - set(left)))
    source = render_analysis(found)
    page = Page(source)
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    for name in SECTIONS:
        assert (name in ids) == (name in left)
    targets = [x for x in page.attributes("href") if x != "data:,"]
    targets += [f"#{x}" for x in page.attributes("aria-labelledby")]
    targets += page.attributes("xlink:href")
    targets += re.findall(r"url\((#[^)]*)\)", source)
    assert {x for x in targets if x[1:] not in ids} == set()
    assert not re.search(r"https?:|//\w+\.\w|@import|url\((?!#)", source)
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source
    drawn = len(re.findall(r"<svg", source))
    assert drawn == 3 * ("pareto" in left) + sum(n in left for n in SECTIONS[1:]) + (
        "layers" in left
    )


def test_names_from_models_and_files_stay_text():
    source = render_analysis(analysis(names=(HOSTILE, f"{HOSTILE} b")))
    page = Page(source)
    assert page.count("script") == 1 and "<script>alert" not in source
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", source)
    assert page.text.count(HOSTILE.replace("\x1b", "\\x1b")) > 5


def test_colours_of_plots_are_those_of_the_page():
    source = render_analysis(analysis())
    defined = set(re.findall(r"(--[\w]+):", source))
    assert set(re.findall(r"var\((--[\w]+)\)", source)) <= defined
    for drawing in re.findall(r"<svg.*?</svg>", source, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}|font-family|\brgb", drawing)


def test_ticks_are_written_as_they_are():
    """Numbers in the text of a plot keep their digits; coordinates lose theirs."""
    (drawing, *_) = re.findall(r"<svg.*?</svg>", render_analysis(analysis()), re.DOTALL)
    assert {"0.005", "0.01", "0.02"} <= set(re.findall(r">([\d.]+)</text>", drawing))
    tags = "".join(re.findall(r"<[^>]*>", drawing))
    assert not re.search(r"\d\.\d{3,}", tags)


def test_bad_runs_are_announced():
    found = analysis()
    assert 'role="alert"' not in render_analysis(found)
    unfit = msgspec.structs.replace(found.data, fit=False, disjoint=False)
    source = render_analysis(msgspec.structs.replace(found, data=unfit))
    assert "not fit for use" in source and "what calibration saw" in source


@pytest.mark.parametrize("error", [None, 0.0, 1e-9, 2.0])
def test_unusual_errors_are_drawn(error):
    assert "<svg" in render_analysis(analysis(error=error))


def test_nothing_measured_has_a_page():
    found = analysis(error=None)
    points = tuple(
        msgspec.structs.replace(point, plan=msgspec.structs.replace(point.plan, error=None))
        for point in found.pareto.points
    )
    plans = tuple(msgspec.structs.replace(p, errors=(None,) * 3) for p in found.stress.plans)
    layers = tuple(
        msgspec.structs.replace(x, error_alone=None, output_sqnr_db=None)
        for x in found.layers.layers
    )
    found = msgspec.structs.replace(
        found,
        pareto=Pareto(points, None, None),
        stability=Stability(found.chosen, ()),
        stress=msgspec.structs.replace(found.stress, plans=plans, layers=()),
        layers=msgspec.structs.replace(found.layers, layers=layers, profiles=()),
    )
    assert "too few plans" in render_analysis(found)


def test_equal_analyses_make_equal_pages():
    assert render_analysis(analysis()) == render_analysis(analysis())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (factor_text(0.02, 0.01), "2×"),
        (factor_text(None, 0.01), "–"),
        (factor_text(0.02, 0.0), "–"),
        (layer_labels([layer("m/a/x", 1, None), layer("m/b/x", 1, None)])["m/a/x"], "a"),
    ],
)
def test_figures_are_written_for_people(written, expected):
    assert written == expected


@pytest.mark.parametrize(
    ("correlation", "words"),
    [(None, "too few"), (0.95, "as measured errors do"), (0.7, "similar"), (0.1, "does not")],
)
def test_the_verdict_on_the_prediction(correlation, words):
    assert words in order_verdict(correlation)
