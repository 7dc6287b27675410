import base64
import hashlib
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console

from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.plan import LeftAlone, Segment
from mmcompile.report import summary
from mmcompile.report.html import render_html
from mmcompile.report.model import (
    EXACT_DB,
    PROFILE_POINTS,
    CalibrationInfo,
    Island,
    LayerError,
    LayerReport,
    ModelInfo,
    OutputReport,
    PolicyInfo,
    Report,
    RestInfo,
    StageTime,
    TargetInfo,
    VerificationReport,
    WeightRounding,
    channel_profile,
    load_report,
    report_schema,
    write_json,
)
from mmcompile.report.terminal import print_summary

DOCS = Path(__file__).parents[2] / "docs" / "report.md"
HOSTILE = "<script>alert('$x^{')</script>&\"[bold]\x1b[31m$\\frac{$"
KINDS = (("qkv", 1024, (1024, 256, 256)), ("o", 1024, (1024,)), ("up", 1024, (2816, 2816)))


def segment(channels: int, act: str, weight: str | None = None) -> Segment:
    return Segment(channels, act, weight or act, 1.75, 1.75)


def layer(number: int, name: str, k: int, n: tuple[int, ...], prefix: str = "") -> LayerReport:
    rng = np.random.default_rng(number)
    high = 32 * int(rng.integers(1, 4))
    middle = 32 * int(rng.integers(0, 9))
    low = -(-k // 32) * 32 - high - middle
    parts = (("mxfp4", low), ("mxfp6_e2m3", middle), ("mxfp8", high))
    segments = tuple(segment(size, form) for form, size in parts if size)
    if number % 7 == 3:
        last = segments[-1]
        segments = (*segments[:-1], segment(last.channels, "mxfp8", "mxfp4"))
    bits = sum(s.channels * (s.weight.element.bits + 0.25) for s in segments) / k
    act_bits = sum(s.channels * (s.activation.element.bits + 0.25) for s in segments) / k
    mean = np.sort(np.exp(rng.normal(-1.2, 0.7, k)))
    mean = np.pad(mean, (0, low + middle + high - k))
    largest = mean * np.exp(np.abs(rng.normal(1.4, 0.35, mean.size)))
    outliers = rng.integers(mean.size - 24, mean.size, 8)
    largest[outliers] *= rng.uniform(3, 30, 8)
    max_points, mean_points, step = channel_profile(largest, mean)
    sqnr = 27 - 0.25 * number % 6 - 6 * (name == "down") + float(rng.normal(0, 1.3))
    path = f"{prefix}/model/layers.{number // 4}/{'mlp' if name in ('up', 'down') else 'self_attn'}"
    return LayerReport(
        name=f"{path}/{name}/MicroMixLinear",
        nodes=tuple(f"{path}/{name}_{i}/MatMul" for i in range(len(n))),
        input=f"{path}/input_{number}",
        in_channels=k,
        out_channels=n,
        segments=segments,
        act_bits=act_bits,
        weight_bits=bits,
        bytes_before=4 * k * sum(n),
        bytes_after=int(k * sum(n) * bits / 8) + 4 * k,
        weight_sqnr_db=sqnr + 1.7,
        output_sqnr_db=sqnr,
        output_cosine=1 - 0.5 * 10 ** (-sqnr / 10),
        channel_max=max_points,
        channel_mean=mean_points,
        channel_step=step,
    )


def make_report(blocks: int = 6, prefix: str = "") -> Report:
    kinds = (*KINDS, ("down", 2816, (1024,)))
    layers = tuple(
        layer(4 * block + i, *kind, prefix)
        for block in range(blocks)
        for i, kind in enumerate(kinds)
    )
    before = 4 * 32000 * 1024 + sum(x.bytes_before for x in layers)
    after = 2 * 32000 * 1024 + sum(x.bytes_after for x in layers)
    errors = tuple(
        LayerError(
            name=x.nodes[0],
            cosine=0.999 - 0.0004 * i,
            sqnr_db=(x.output_sqnr_db or 0) - 2 - 0.15 * i,
        )
        for i, x in enumerate(layers)
    )
    logits = OutputReport(
        name=f"{prefix}logits",
        dtype="float32",
        cosine_mean=0.998132,
        cosine_min=0.99207,
        sqnr_db=24.31,
        max_abs_error=1.873,
        kl_divergence_nats=0.01182,
        top1_agreement=0.962,
        is_logits=True,
    )
    cache = OutputReport(
        name="present.0.key",
        dtype="float32",
        cosine_mean=0.99951,
        cosine_min=0.99893,
        sqnr_db=30.2,
        max_abs_error=0.0713,
    )
    return Report(
        version=1,
        created="2026-11-21T10:04:31+01:00",
        command="mmcompile llama-8l.onnx --gpu sm_120 --calib wikitext.txt -o out",
        versions={
            "mmcompile": "0.1.0",
            "onnx": "1.23.2",
            "onnxruntime": "1.31.1",
            "numpy": "2.4.6",
            "python": "3.11.7",
        },
        model=ModelInfo(
            path=f"llama-8l.onnx{prefix}",
            bytes_before=before,
            bytes_after=after,
            parameters=before // 4,
            opset=20,
            dtype="float32",
            bytes_fp16=before // 2,
        ),
        rest=RestInfo(
            dtype="float16",
            reason="the default",
            nodes=412,
            islands=(
                Island(code="sum", reason=f"a sum needs more bits{prefix}", nodes=33),
                Island(code="range", reason="it leaves the range", nodes=12),
            ),
            samples=8,
            notes=(f"weight emb: 2 values beyond ±65504 became ±65504 in float16{prefix}",),
        ),
        target=TargetInfo(name="sm_120", description="GeForce Blackwell (RTX 50 series)"),
        policy=PolicyInfo(
            name="micromix",
            parameters={"scale_rule": "balanced", "lambda": 1.0},
            granularity_channels=32,
        ),
        calibration=CalibrationInfo(
            description="wikitext.txt, first 32 chunks of 512 tokens",
            samples=32,
            tokens=16384,
            fit=True,
            masked_tokens=212,
            seconds=21.4,
        ),
        layers=layers,
        left_alone=(
            *(
                LeftAlone(
                    node=f"{prefix}/model/layers.{i}/self_attn/MatMul",
                    code="not-constant",
                    reason="both operands are activations",
                )
                for i in range(blocks)
            ),
            LeftAlone(
                node="/lm_head/MatMul", code="excluded", reason="matches --exclude 'lm_head'"
            ),
            LeftAlone(node="/router/MatMul", code="too-small", reason="K = 16 is below 32"),
        ),
        verification=VerificationReport(
            inputs="held-out chunks of wikitext.txt",
            samples=8,
            outputs=(logits, cache),
            rest_alone=(replace(logits, sqnr_db=61.7), replace(cache, sqnr_db=64.9)),
            layers=errors,
            threshold="minimum cosine of logits 0.99",
            passed=True,
        ),
        stages=(
            StageTime(name="load", seconds=0.31),
            StageTime(name="calibrate", seconds=21.4),
            StageTime(name="plan", seconds=1.9),
            StageTime(name="pack", seconds=3.8),
            StageTime(name="rewrite", seconds=0.9),
            StageTime(name="verify", seconds=14.2),
        ),
        peak_memory_bytes=1_430_000_000,
        reproduce=("mmcompile llama-8l.onnx --gpu sm_120 --plan out/plan.json -o out",),
    )


replace = msgspec.structs.replace
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements and text of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.elements if (value := attrs.get(name)) is not None]

    def count(self, tag: str) -> int:
        return sum(element == tag for element, _ in self.elements)


def printed(report: Report, verbose: bool = False, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(report, console, verbose)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def small() -> Report:
    return make_report(2)


@pytest.fixture(scope="module")
def small_page(small: Report) -> str:
    return render_html(small)


@pytest.fixture(scope="module")
def hostile() -> Report:
    report = make_report(25, HOSTILE)
    assert report.verification is not None
    return replace(
        report,
        calibration=replace(report.calibration, fit=False, description=HOSTILE),
        policy=replace(report.policy, name=HOSTILE, parameters={HOSTILE: HOSTILE}),
        target=TargetInfo(name=HOSTILE, description=HOSTILE),
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        reproduce=(HOSTILE, "second line"),
        left_alone=(LeftAlone(HOSTILE, HOSTILE, HOSTILE),),
        stages=(StageTime(name=HOSTILE, seconds=1.0),),
        verification=replace(
            report.verification,
            passed=False,
            inputs=HOSTILE,
            threshold=HOSTILE,
            note=HOSTILE,
            measured_on=HOSTILE,
            first_bad_layer=report.layers[7].nodes[0],
        ),
    )


@pytest.fixture(scope="module")
def hostile_page(hostile: Report) -> str:
    return render_html(hostile)


def bare(**changes: object) -> Report:
    """One layer with nothing measured."""
    report = make_report(1)
    only = replace(
        report.layers[0],
        name="only",
        **{
            "weight_sqnr_db": None,
            "output_sqnr_db": None,
            "output_cosine": None,
            "channel_max": (),
            "channel_mean": (),
            **changes,
        },
    )
    return replace(report, layers=(only,), left_alone=(), verification=None)


# report.json


def test_a_written_report_reads_back_equal(tmp_path: Path, small: Report) -> None:
    write_json(small, tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == small


def test_figures_that_json_lacks_become_none_or_the_ceiling(tmp_path: Path, small: Report) -> None:
    output = OutputReport(
        name="y",
        dtype="float32",
        cosine_mean=math.nan,
        cosine_min=float(np.float64(0.25)),
        sqnr_db=math.inf,
        max_abs_error=math.inf,
    )
    assert (output.cosine_mean, output.max_abs_error) == (None, None)
    assert (output.cosine_min, output.sqnr_db) == (0.25, EXACT_DB)
    assert LayerError(name="x", cosine=1.0, sqnr_db=-math.inf).sqnr_db == -EXACT_DB
    assert small.verification is not None
    checked = replace(small.verification, outputs=(output,))
    write_json(
        replace(small, verification=checked, peak_memory_bytes=np.int64(7)),
        tmp_path / "report.json",
    )
    back = load_report(tmp_path / "report.json")
    assert back.verification == checked
    assert back.peak_memory_bytes == 7


def test_lists_of_figures_stand_on_one_line(tmp_path: Path, small: Report) -> None:
    tricky = replace(small, command="[\n 1,\n 2]", reproduce=("1", "[2]"))
    write_json(tricky, tmp_path / "report.json")
    lines = (tmp_path / "report.json").read_text().splitlines()
    assert load_report(tmp_path / "report.json") == tricky
    profiles = [line for line in lines if '"channel_max": [' in line]
    assert len(profiles) == len(small.layers)
    assert all(line.endswith("],") for line in profiles)
    assert max(map(len, lines)) < 20 * PROFILE_POINTS


def test_an_unwritable_folder_is_an_error_for_the_user(tmp_path: Path, small: Report) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem):
        write_json(small, tmp_path / "file" / "report.json")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "report-malformed"),
        (b"\xff\xfe\x00", "report-malformed"),
        (b"[]", "report-malformed"),
        (b'{"version": 1}', "report-malformed"),
        (b'{"version": 1, "x": ' + b"[" * 100_000, "report-malformed"),
        (b'{"version": 2, "anything": 0}', "report-version"),
        (b'{"version": "1"}', "report-malformed"),
    ],
)
def test_a_bad_file_is_one_line_of_error(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_report(tmp_path / "report.json")
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_for_the_user(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(UsageError, match="report-unreadable"):
            load_report(path)


def test_an_edited_report_is_checked(tmp_path: Path, small: Report) -> None:
    write_json(small, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    for old, new in (('"mxfp4"', '"fp4"'), ('"opset"', '"opsets"'), ('"fit": true', '"fit": 1')):
        assert old in text
        (tmp_path / "edited.json").write_text(text.replace(old, new))
        with pytest.raises(UsageError, match="report-malformed"):
            load_report(tmp_path / "edited.json")


def test_the_documentation_names_every_field_and_no_other() -> None:
    documented = {
        section.split("\n", 1)[0]: re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        for section in DOCS.read_text(encoding="utf-8").split("\n## ")
    }
    types = report_schema()["$defs"]
    assert {"Report", "LayerReport", "Segment", "LeftAlone", "VerificationReport"} <= set(types)
    for name, schema in types.items():
        assert documented.get(name) == list(schema["properties"]), name


@pytest.mark.parametrize("channels", [0, 1, 31, 512, 513, 1024, 11008])
def test_a_channel_profile_keeps_the_largest_and_the_mean_of_each_step(channels: int) -> None:
    rng = np.random.default_rng(channels)
    largest = rng.uniform(1, 2, channels).astype(np.float32)
    mean = rng.uniform(0, 1, channels)
    max_points, mean_points, step = channel_profile(largest, mean)
    assert len(max_points) == len(mean_points) == math.ceil(channels / step) <= PROFILE_POINTS
    assert step == max(1, math.ceil(channels / PROFILE_POINTS))
    for i, (top, middle) in enumerate(zip(max_points, mean_points, strict=True)):
        part = slice(i * step, (i + 1) * step)
        # Four significant digits: half a unit of the fourth is at most 0.05 % of the value.
        assert top == pytest.approx(largest[part].max(), rel=5.1e-4)
        assert middle == pytest.approx(mean[part].mean(), rel=5.1e-4)


# figures and notation


def test_totals_weigh_bits_by_weights_and_by_input_channels() -> None:
    template = make_report(1).layers[0]
    first = replace(
        template,
        nodes=("a", "b"),
        in_channels=100,
        out_channels=(10, 20),
        segments=(segment(96, "mxfp4"), segment(32, "mxfp8", "mxfp4")),
        weight_bits=4.0,
        act_bits=5.0,
        bytes_before=1000,
        bytes_after=300,
        output_sqnr_db=20.0,
    )
    second = replace(
        first,
        nodes=("c",),
        in_channels=300,
        out_channels=(40,),
        segments=(segment(320, "mxfp8"),),
        weight_bits=8.0,
        act_bits=9.0,
        output_sqnr_db=None,
    )
    totals = summary.layer_totals((first, second), left_alone=2)
    assert (totals.linears, totals.candidates, totals.weights) == (3, 5, 3000 + 12000)
    assert (totals.bytes_before, totals.bytes_after) == (2000, 600)
    assert totals.weight_bits == pytest.approx((4 * 3000 + 8 * 12000) / 15000)
    assert totals.act_bits == pytest.approx((5 * 100 + 9 * 300) / 400)
    assert totals.worst is first
    assert [part.label for part in totals.split] == ["mxfp4", "A mxfp8 / W mxfp4", "mxfp8"]
    whole = 128 * 30 + 320 * 40
    shares = [part.share for part in totals.split]
    assert shares == pytest.approx([96 * 30 / whole, 32 * 30 / whole, 320 * 40 / whole])
    assert [part.share for part in totals.act_split] == pytest.approx(
        [96 / 448, 32 / 448, 320 / 448]
    )
    assert summary.layer_totals((), left_alone=1).weight_bits is None


def test_layers_are_ordered_worst_first_and_unmeasured_last() -> None:
    layers = make_report(1).layers
    figures = (3.0, None, -4.0, 1.0)
    named = [replace(x, output_sqnr_db=y) for x, y in zip(layers, figures, strict=True)]
    assert [x.output_sqnr_db for x in summary.worst_first(named)] == [-4.0, 1.0, 3.0, None]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["/m/l.0/q/X", "/m/l.1/q/X"], ["l.0", "l.1"]),
        (["/m/l.0/q/X", "/m/l.0/k/X", "/m/h/X"], ["l.0/q", "l.0/k", "h"]),
        (["/m/q/X"], ["m/q/X"]),
        (["a", "b"], ["a", "b"]),
        (["a", "a/b"], ["a", "a/b"]),
        (["x/x", "x/x/x"], ["x", "x/x"]),
        (["/", "x\x1b[1m"], ["/", "x\\x1b[1m"]),
    ],
)
def test_labels_drop_what_all_names_share(names: list[str], labels: list[str]) -> None:
    layers = [replace(make_report(1).layers[0], name=name) for name in names]
    assert list(summary.layer_labels(layers).values()) == labels


def test_kinds_gather_layers_that_differ_in_numbers() -> None:
    layers = make_report(3).layers
    kinds = summary.layer_kinds(layers, summary.layer_labels(layers))
    assert [kind.name for kind in kinds] == [
        "layers.*/self_attn/qkv",
        "layers.*/self_attn/o",
        "layers.*/mlp/up",
        "layers.*/mlp/down",
    ]
    assert all(len(kind.layers) == 3 for kind in kinds)


def test_reasons_are_grouped_by_code_largest_first() -> None:
    entries = [
        LeftAlone("a", "x", "one"),
        LeftAlone("b", "y", "two"),
        LeftAlone("c", "y", "three"),
        LeftAlone("d", "y", "two"),
    ]
    groups = summary.reason_groups(entries)
    assert [(group.code, group.count) for group in groups] == [("y", 3), ("x", 1)]
    assert groups[0].reasons == (("two", ("b", "d")), ("three", ("c",)))


def test_the_verdict_says_when_nothing_was_demanded_or_compared(small: Report) -> None:
    check = small.verification
    assert check is not None
    cases = {
        ("not run", "open"): None,
        ("passed", "good"): check,
        ("failed", "bad"): replace(check, passed=False),
        ("outputs not compared", "open"): replace(check, outputs=()),
        ("compared, no threshold set", "open"): replace(check, threshold=None),
    }
    for (text, state), verification in cases.items():
        assert summary.verdict(verification) == summary.Verdict(text, state)


def test_a_group_has_the_error_of_its_worst_node(small: Report) -> None:
    check = small.verification
    assert check is not None
    nodes = small.layers[0].nodes
    figures = zip(nodes, (9.0, None, 7.0), strict=True)
    errors = tuple(LayerError(name=node, cosine=1.0, sqnr_db=x) for node, x in figures)
    found = summary.layer_errors(small.layers, replace(check, layers=errors))
    assert {name: error.sqnr_db for name, error in found.items()} == {small.layers[0].name: 7.0}
    assert summary.layer_errors(small.layers, None) == {}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (summary.bytes_text(999), "999 B"),
        (summary.bytes_text(999_600), "1.00 MB"),
        (summary.bytes_text(12_345_678), "12.3 MB"),
        (summary.bytes_text(444_000_000), "444 MB"),
        (summary.bytes_text(16_060_000_000), "16.1 GB"),
        (summary.bytes_text(None), "–"),
        (summary.change_text(400, 100), ("4.00×", "smaller")),
        (summary.change_text(100, 150), ("1.50×", "larger")),
        (summary.change_text(0, 100), ("–", "")),
        (summary.decibel_text(EXACT_DB), "exact"),
        (summary.decibel_text(-3.04), "-3.0 dB"),
        (summary.cosine_text(0.999999), "0.99999"),
        (summary.cosine_text(1.0), "1.00000"),
        (summary.cosine_text(0.29), "0.29000"),
        (summary.percent_text(0.5), "50.0 %"),
        (summary.seconds_text(0.0421), "42 ms"),
        (summary.seconds_text(59.96), "1 min 0 s"),
        (summary.seconds_text(179.2), "2 min 59 s"),
        (summary.figure_text(0.000123456), "0.000123"),
        (summary.file_name("/data/model.onnx"), "model.onnx"),
    ],
)
def test_figures_are_written_for_people(written: object, expected: object) -> None:
    assert written == expected


# report.html


def test_the_page_is_well_formed_and_its_links_lead_somewhere(
    small_page: str, hostile_page: str
) -> None:
    for source in (small_page, hostile_page, render_html(bare())):
        page = Page(source)
        ids = page.attributes("id")
        assert len(set(ids)) == len(ids)
        targets = [x for x in page.attributes("href") if x != "data:,"]
        targets += [f"#{x}" for x in page.attributes("aria-labelledby")]
        targets += page.attributes("xlink:href")
        targets += re.findall(r"url\((#[^)]*)\)", source)
        assert len(targets) > 10
        assert {x for x in targets if x[1:] not in ids} == set()
        assert all(x.startswith("#") for x in targets)
        headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert headings[:2] == ["h1", "h2"] and set(headings) == {"h1", "h2", "h3"}


def test_the_page_makes_no_request(small_page: str, hostile_page: str) -> None:
    for source in (small_page, hostile_page):
        page = Page(source)
        assert not re.search(r"https?:|//\w+\.\w|@import|url\((?!#)", source)
        assert page.attributes("src") == []
        (policy,) = (x for x in page.attributes("content") if "default-src" in x)
        assert "default-src 'none'" in policy
        (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy


def test_names_from_the_model_stay_text(hostile: Report, hostile_page: str) -> None:
    page = Page(hostile_page)
    assert page.count("script") == 1 and "<script>alert" not in hostile_page
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", hostile_page)
    shown = HOSTILE.replace("\x1b", "\\x1b")
    assert page.text.count(shown) > 100
    assert f"{shown} second line" in page.text
    titles = page.attributes("title")
    assert hostile.layers[0].name.replace("\x1b", "\\x1b") in titles


def test_colours_of_plots_are_those_of_the_page(small_page: str) -> None:
    defined = set(re.findall(r"(--[\w]+):", small_page))
    used = set(re.findall(r"var\((--[\w]+)\)", small_page))
    assert {"--mxfp4", "--mxfp8", "--ink", "--accent"} <= used <= defined
    for name in BLOCK_FORMATS:
        assert small_page.count(f"--{name}:") == 2, "one colour for each scheme"
    (drawing, *_) = re.findall(r"<svg.*?</svg>", small_page, re.DOTALL)
    assert not re.search(r"#[0-9a-f]{6}|font-family|rgb", drawing)
    assert small_page.count("prefers-color-scheme: dark") == 1


def test_the_page_shows_the_figures(small: Report, small_page: str) -> None:
    text = Page(small_page).text
    totals = summary.report_totals(small)
    worst = totals.worst
    assert worst is not None
    for figure in (
        summary.bits_text(totals.weight_bits),
        summary.decibel_text(worst.output_sqnr_db),
        "✓ Passed",
        "0.99207",
        "KL divergence",
        "96.2 %",
        "both operands are activations",
        "mmcompile llama-8l.onnx --gpu sm_120 --plan out/plan.json -o out",
        "Nothing in this report was run on sm_120",
        "peak memory 1.43 GB",
        "1.31.1",
        *(summary.cosine_text(x.output_cosine) for x in small.layers),
        *(summary.split_text(x.segments) for x in small.layers),
    ):
        assert figure in text, figure
    executed = replace(small, target=replace(small.target, executed=True))
    assert "Nothing in this report was run" not in Page(render_html(executed)).text


def test_every_layer_up_to_sixty_has_its_plot_beyond_the_worst_24(
    small: Report, small_page: str, hostile: Report, hostile_page: str
) -> None:
    assert Page(small_page).count("article") == len(small.layers) == 8
    page = Page(hostile_page)
    worst = [x.name for x in summary.worst_first(hostile.layers)[:24]]
    numbers = [i for i, x in enumerate(hostile.layers, 1) if x.name in worst]
    shown = [attrs["id"] for tag, attrs in page.elements if tag == "article"]
    assert shown == [f"layer-{i}" for i in numbers]
    assert "The 24 layers with the lowest output SQNR, of 100" in page.text
    assert page.count("svg") == 24 + 2
    assert len(hostile_page.encode()) < 1_500_000


def test_a_bad_run_is_announced(small_page: str, hostile_page: str) -> None:
    assert "not fit for use" not in small_page and 'role="alert"' not in small_page
    text = Page(hostile_page).text
    assert "The calibration data is not fit for use" in text
    assert "Verification failed" in text and "First layer out of bounds" in text


def test_a_run_with_hardly_any_figures_has_a_page() -> None:
    text = Page(render_html(bare())).text
    assert "not measured" in text and "Not run" in text
    assert "No channel magnitudes were recorded" in text
    assert "every linear layer that was found was rewritten" in text
    empty = Page(render_html(replace(bare(), layers=(), stages=(), peak_memory_bytes=None)))
    assert empty.count("svg") == 0 and "Overview" not in empty.text


@pytest.mark.parametrize(
    ("largest", "mean"),
    [
        ((0.0, 0.0), (0.0, 0.0)),
        ((math.nan, None), (math.nan, None)),
        ((1.0, 1.0), (1.0, 1.0)),
        ((1e-30, 1e30), (0.0, 1e29)),
        ((math.nan, 2.0), (None, 0.5)),
        ((1.0, 2.0), ()),
        (tuple(range(1, 401)), tuple([0.5] * 400)),
    ],
)
def test_unusual_magnitudes_are_drawn(
    largest: tuple[float | None, ...], mean: tuple[float | None, ...]
) -> None:
    changes = {"channel_max": largest, "channel_mean": mean, "channel_step": 512}
    changes |= {"output_sqnr_db": EXACT_DB, "segments": (segment(1024, "nvfp4"),)}
    source = render_html(bare(**changes))
    drawn = any(x for x in largest if x and x > 0) and len(mean) == len(largest)
    assert Page(source).count("svg") == 1 + drawn
    for path in re.findall(r' d="([^"]*)"', source):
        assert not re.search(r"nan|inf", path)
    assert "exact" in source


def profile_labels(source: str) -> dict[str, float]:
    """Format names above the only profile of a page, with the x coordinate of their middles."""
    (profile,) = re.findall(r'<svg[^>]*"Magnitude.*?</svg>', source)
    found = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>((?:mx|nv)fp\w+)</text>', profile)
    return {name: float(x) for x, name in found}


def test_many_narrow_segments_are_drawn_without_names() -> None:
    formats = list(BLOCK_FORMATS) * 20
    segments = tuple(segment(32, form) for form in formats)
    layer = {"segments": segments, "channel_max": (1.0, 3.0) * 250, "channel_mean": (0.5,) * 500}
    assert profile_labels(render_html(bare(**layer, channel_step=7, in_channels=3200))) == {}


@pytest.mark.parametrize(
    ("channels", "formats"),
    [
        ((4000, 32), ("mxfp4", "mxfp8")),
        ((32, 64, 32, 4000), ("nvfp4", "mxfp6_e2m3", "mxfp4", "mxfp8")),
        ((2000, 32, 32, 32, 2000), ("nvfp4", "mxfp6_e2m3", "mxfp4", "mxfp6_e3m2", "mxfp8")),
        ((4000, 32, 32, 32), ("nvfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8")),
    ],
)
def test_segment_names_stand_side_by_side(
    channels: tuple[int, ...], formats: tuple[str, ...]
) -> None:
    segments = tuple(segment(*pair) for pair in zip(channels, formats, strict=True))
    source = render_html(bare(segments=segments, channel_max=(1.0, 9.0), channel_mean=(1.0, 1.0)))
    places = profile_labels(source)
    assert list(places) == list(formats)
    # A bold letter of 11 px is at most 0.7 times as wide; the plot spans 46 to 504 px.
    halves = [0.35 * 11 * len(name) for name in formats]
    edges = [(x - half, x + half) for x, half in zip(places.values(), halves, strict=True)]
    flat = [46, *(x for edge in edges for x in edge), 504]
    assert flat == sorted(flat)


def test_equal_reports_make_equal_pages_and_leave_matplotlib_alone(
    small: Report, small_page: str
) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    assert render_html(small) == small_page
    assert dict(mpl.rcParams) == before


def test_heavy_packages_are_imported_only_to_render() -> None:
    code = (
        "import sys, mmcompile.report.html, mmcompile.report.model;"
        "sys.exit(bool({'matplotlib', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    folder = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0


# terminal


def test_the_terminal_shows_every_layer_of_a_small_model(small: Report) -> None:
    text = printed(small)
    for layer in small.layers:
        assert summary.layer_labels(small.layers)[layer.name] in text
        assert summary.decibel_text(layer.output_sqnr_db) in text
    for part in (" smaller", "mxfp6", "0.99207", "Verification: passed", "nothing was run"):
        assert part in text
    assert "NOT FIT" not in text


def test_the_terminal_shows_kinds_and_the_worst_of_a_large_model(hostile: Report) -> None:
    report = replace(hostile, verification=None)
    text = printed(report)
    labels = summary.layer_labels(report.layers)
    worst = {x.name for x in summary.worst_first(report.layers)[:20]}
    shown = {x.name for x in report.layers if f" {labels[x.name]} " in text}
    assert shown == worst
    assert "layers.*/self_attn/qkv" in text and "20 layers" in text and "of 100" in text
    everything = printed(report, verbose=True)
    assert all(f" {label} " in everything for label in labels.values())


def test_the_terminal_takes_names_literally_and_warns_loudly(hostile: Report) -> None:
    for verbose in (False, True):
        text = printed(hostile, verbose, width=400)
        assert "\x1b" not in text
        assert "[bold]\\x1b[31m$\\frac{$" in text
        assert "CALIBRATION IS NOT FIT FOR USE" in text
        assert "failed" in text and "First layer out of bounds" in text


def test_the_terminal_groups_what_was_left_alone(small: Report) -> None:
    nodes = tuple(LeftAlone(f"/block.{i}/MatMul", "too-small", "K is 8") for i in range(9))
    short = printed(replace(small, left_alone=nodes))
    assert short.count("too-small: K is 8") == 1 and "and 6 more" in short
    assert "/block.8/MatMul" not in short
    assert "/block.8/MatMul" in printed(replace(small, left_alone=nodes), verbose=True)


def test_the_terminal_copes_with_hardly_any_figures() -> None:
    report = bare()
    assert "–" in printed(report)
    empty = replace(
        report,
        layers=(),
        stages=(),
        peak_memory_bytes=None,
        model=replace(report.model, estimated=True),
    )
    text = printed(empty)
    assert "No linear layer was rewritten" in text and "estimated" in text


def test_the_rest_in_half_precision_is_shown(small: Report, small_page: str) -> None:
    page = Page(small_page).text
    model = small.model
    assert model.bytes_fp16 == model.bytes_before // 2
    factor, word = summary.size_change(model)
    assert (factor, word) == (f"{model.bytes_fp16 / model.bytes_after:.2f}×", "smaller than FP16")
    for text in (" ".join(printed(small, width=200).split()), " ".join(page.split())):
        assert f"{factor} {word}".replace(",", "") in text
        assert f"{summary.bytes_text(model.bytes_fp16)} in FP16" in text
        assert "float16 (the default); 45 of 412 nodes stay in float32" in text
        assert "a sum needs more bits" in text and "it leaves the range" in text
        assert "2 values beyond ±65504" in text
        assert "logits (half precision alone)" in text and "61.7 dB" in text
    older = replace(small, rest=None, model=replace(model, bytes_fp16=None))
    assert summary.size_change(older.model) == summary.change_text(
        model.bytes_before, model.bytes_after
    )
    assert "All else" not in printed(older)
    assert "All else" not in Page(render_html(older)).text
    kept = RestInfo(dtype="float32", reason="kept as it was, as asked for")
    assert summary.rest_text(kept) == "float32 (kept as it was, as asked for)"


NO_BETTER = "no better on samples held back"


def with_feedback(report: Report) -> Report:
    """GPTQ was asked for; it is kept in all weights but the first of each q/k/v group."""

    def rounded(layer: LayerReport) -> LayerReport:
        kept = [len(layer.nodes) == 1 or index > 0 for index in range(len(layer.nodes))]
        rounding = (
            WeightRounding(node=node, gain_db=1.25 if yes else 0.0, reason="" if yes else NO_BETTER)
            for node, yes in zip(layer.nodes, kept, strict=True)
        )
        return replace(layer, rounding=tuple(rounding))

    policy = replace(report.policy, weights="gptq", weights_reason="the default of policy cost")
    return replace(report, policy=policy, layers=tuple(map(rounded, report.layers)))


@pytest.mark.parametrize(
    ("gain", "reason", "text"),
    [
        (1.25, "", "GPTQ, error −1.2 dB on inputs held back"),
        (0.0, NO_BETTER, f"to nearest: {NO_BETTER}"),
        (math.inf, "", "GPTQ, exact on inputs held back"),
        (None, "", "GPTQ"),
    ],
)
def test_how_a_weight_was_rounded(gain: float | None, reason: str, text: str) -> None:
    assert summary.rounding_text(WeightRounding(node="q", gain_db=gain, reason=reason)) == text


def test_the_summary_says_how_weights_were_rounded(small: Report) -> None:
    assert summary.weights_text(small) == ""
    policy = replace(small.policy, weights="nearest", weights_reason="there is no calibration data")
    nearest = replace(small, policy=policy)
    assert summary.weights_text(nearest) == "to nearest (there is no calibration data)"
    assert summary.weights_text(replace(small, policy=replace(policy, weights_reason=""))) == (
        "to nearest"
    )
    planned = replace(small, policy=replace(policy, weights="gptq", weights_reason="asked for"))
    assert summary.weights_text(planned) == "GPTQ (asked for)"  # as in a dry run
    # Of two blocks of q/k/v, o, up/gate and down, each with 7 linears, 2 stay to nearest.
    text = "GPTQ in 10 of 14 layers (the default of policy cost)"
    assert summary.weights_text(with_feedback(small)) == text


def test_rounding_of_each_weight_is_a_cell(small: Report) -> None:
    assert summary.gains_text(small.layers[0]) == "–"
    assert summary.gains_text(with_feedback(small).layers[0]) == "– / −1.2 / −1.2"


def test_the_terminal_shows_how_weights_were_rounded(small: Report) -> None:
    found = with_feedback(small)
    text = printed(found)
    assert re.search(r"Weights rounded +GPTQ in 10 of 14 layers \(the default of policy", text)
    (line,) = (line for line in text.splitlines() if NO_BETTER in line)
    assert small.layers[0].nodes[0] in text
    assert line.split()[-1] == "4"
    assert "and 1 more" in text
    assert "GPTQ\n" not in text
    wide = printed(found, verbose=True)
    assert "– / −1.2 / −1.2" in wide
    assert "and 1 more" not in wide
    assert "Weights rounded" not in printed(small, verbose=True)
    assert "GPTQ" not in printed(small, verbose=True)


def test_the_page_shows_how_weights_were_rounded(small: Report, small_page: str) -> None:
    found = with_feedback(small)
    source = render_html(found)
    page = Page(source)
    assert page.text.count("GPTQ in 10 of 14 layers (the default of policy cost)") == 2
    assert "– / −1.2 / −1.2" in page.text
    assert "GPTQ, error −1.2 dB on inputs held back" in page.text
    first = found.layers[0].nodes[0]
    assert f"{first} to nearest: {NO_BETTER};" in page.text
    titles = [title for title in page.attributes("title") if NO_BETTER in title]
    assert len(titles) == sum(len(layer.nodes) > 1 for layer in small.layers)
    assert "GPTQ" not in Page(small_page).text


def test_reasons_and_nodes_of_rounding_stay_text(hostile: Report) -> None:
    layer = hostile.layers[0]
    broken = WeightRounding(node=HOSTILE, gain_db=None, reason=HOSTILE)
    policy = replace(hostile.policy, weights="gptq", weights_reason=HOSTILE)
    found = replace(hostile, policy=policy, layers=(replace(layer, rounding=(broken,)),))
    source = render_html(found)
    Page(source)
    assert "<script>alert" not in source
    assert "\x1b" not in source
    assert "\x1b" not in printed(found, verbose=True)


def test_rounding_survives_the_json(tmp_path: Path, small: Report) -> None:
    found = with_feedback(small)
    first = found.layers[0]
    exact = replace(first.rounding[1], gain_db=math.inf)
    changed = replace(first, rounding=(first.rounding[0], exact))
    found = replace(found, layers=(changed, *found.layers[1:]))
    write_json(found, tmp_path / "report.json")
    read = load_report(tmp_path / "report.json")
    assert read.layers[0].rounding[1].gain_db == EXACT_DB
    assert read.layers[1:] == found.layers[1:]
    assert read.policy == found.policy
