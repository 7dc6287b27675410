import dataclasses
import itertools
import json
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest

import mmcompile
from mmcompile.calib.collect import collect
from mmcompile.data.options import DataOptions
from mmcompile.errors import UsageError, VerificationError
from mmcompile.model.selection import Selection
from mmcompile.pipeline.evidence import gather
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.pipeline.run import Settings, start_run
from mmcompile.plan import dump_plan, load_plan
from mmcompile.policy.choices import Order
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.protocol import Needs
from mmcompile.policy.registry import POLICIES, make_policy
from mmcompile.report.model import load_report
from mmcompile.targets.names import parse_target
from tests.models import feeds, linear_model
from tests.running import cosine, run
from tests.workplace import (
    BUNDLE,
    CHANNELS,
    HIDDEN,
    LIBRARY,
    OUT,
    call,
    samples,
    two_layers,
)


@pytest.fixture
def calibrations(monkeypatch):
    """Counts the calibration runs that were no cache hits."""
    runs = []

    def counted(*arguments):
        runs.append(arguments)
        return collect(*arguments)

    monkeypatch.setattr("mmcompile.pipeline.evidence.collect", counted)
    return runs


# The Python API


def test_compile_model_in_python(work):
    options = mmcompile.CompileOptions(
        gpu="rtx5090",
        output=work.out,
        data=DataOptions(calibration=[{"x": sample[None]} for sample in samples()]),
        policy=CostPolicy(granularity=32),
    )
    result = mmcompile.compile(work.model, options)
    assert isinstance(result, mmcompile.CompileResult)
    assert result.report.verification.passed
    assert result.model == work.out / "model.onnx"
    assert {path.name for path in result.files} == set(work.contents())
    assert result.plan == load_plan(work.out / "plan.json")
    assert result.report == load_report(work.out / "report.json")
    assert result.report.target.name == "sm_120"
    feed = {"x": samples(1, seed=9)}
    (before,), (after,) = run(work.model, feed), run(result.model, feed)
    assert (after.shape, after.dtype) == (before.shape, before.dtype)
    assert 0.98 < cosine(before, after) < 1


def test_compile_model_accepts_a_path_as_text(work):
    options = CompileOptions(output=work.out, policy=make_policy("mxfp8"), html=False)
    assert mmcompile.compile(str(work.model), options).model.exists()


def test_what_the_report_says_of_a_run(compiled):
    report = load_report(compiled.out / "report.json")
    assert report.model.bytes_before == compiled.model.stat().st_size
    written = sum((compiled.out / f).stat().st_size for f in ("model.onnx", "model.onnx.data"))
    assert report.model.bytes_after == written
    assert not report.model.estimated
    assert report.model.parameters == CHANNELS * HIDDEN + HIDDEN + HIDDEN * OUT
    assert (report.model.opset, report.model.dtype) == (20, "float32")
    assert report.calibration.samples == 8  # of ten; every fifth is held back
    assert report.calibration.tokens == 64
    assert report.calibration.fit
    assert report.verification.samples == 2
    assert "1 of every 5" in report.verification.inputs
    for layer in report.layers:
        assert layer.output_cosine > 0.98
        assert 15 < layer.output_sqnr_db < 60
        assert 15 < layer.weight_sqnr_db < 60
    assert [stage.name for stage in report.stages] == [
        "load",
        "calibrate",
        "plan",
        "rest",
        "rewrite",
        "pack",
        "verify",
        "build",
    ]


# Plans


def test_a_plan_gives_the_same_bytes(work):
    work.compile("--policy", "micromix", "--lambda", "3")
    result = call(work.model, "--plan", work.out / "plan.json", "-o", "again", "--no-html")
    assert result.code == 0
    first, second = work.contents(), work.contents(work.folder / "again")
    for name in ("model.onnx", "model.onnx.data"):
        assert first[name] == second[name]
    plans = [load_plan(folder / "plan.json") for folder in (work.out, work.folder / "again")]
    assert plans[0] == plans[1]
    report = load_report(work.folder / "again" / "report.json")
    assert report.calibration.description.startswith("plan given; it was made from: ")
    assert report.verification.outputs == ()
    assert "no inputs were given" in report.verification.note


def test_a_plan_may_be_replaced_where_it_lies(compiled):
    before = compiled.contents()
    assert call(compiled.model, "--plan", "out/plan.json", "--no-html", "-o", "out").code == 0
    after = compiled.contents()
    assert after["plan.json"] == before["plan.json"]
    assert after["model.onnx.data"] == before["model.onnx.data"]


def test_a_plan_can_be_verified_with_data(compiled):
    options = ["--plan", "out/plan.json", "--no-html", "--verify-data", compiled.data]
    assert call(compiled.model, *options, "-o", "again", "--fail-below", "0.9").code == 0
    assert load_report(Path("again/report.json")).verification.samples == 8


def edit(path, change):
    plan = load_plan(path)
    path.write_text(dump_plan(change(plan)))
    return path


def test_an_edited_plan_is_honoured(work):
    work.compile("--policy", "mxfp4")

    def change(plan):
        first, second = plan.groups
        low, segment = first.segments[0], first.segments[0]
        high = msgspec.structs.replace(segment, act_format="mxfp8", weight_format="mxfp8")
        parts = [
            msgspec.structs.replace(low, channels=32),
            msgspec.structs.replace(high, channels=64),
        ]
        mixed = msgspec.structs.replace(first, segments=tuple(parts))
        return msgspec.structs.replace(plan, policy="by hand", groups=(mixed, second))

    edited = edit(work.out / "plan.json", change)
    assert call(work.model, "--plan", edited, "-o", "again", "--no-html").code == 0
    model = onnx.load("again/model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.name == "first")
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert found["segment_channels"] == [32, 64]
    weight = next(t for t in model.graph.initializer if t.name == node.input[2])
    assert list(weight.dims) == [HIDDEN, 32 // 2 + 64]
    report = load_report(Path("again/report.json"))
    assert report.policy.name == "by hand"
    assert report.layers[0].segments[1].weight_format == "mxfp8"


def test_parameters_of_an_edited_plan_are_for_people(compiled):
    edited = edit(
        compiled.out / "plan.json",
        lambda plan: msgspec.structs.replace(plan, parameters={"granularity": "odd"}),
    )
    assert call(compiled.model, "--plan", edited, "-o", "again", "--no-html").code == 0


def test_groups_that_a_plan_leaves_out_are_left_alone(compiled):
    edited = edit(
        compiled.out / "plan.json",
        lambda plan: msgspec.structs.replace(plan, groups=plan.groups[1:]),
    )
    assert call(compiled.model, "--plan", edited, "-o", "again", "--no-html").code == 0
    report = load_report(Path("again/report.json"))
    assert [layer.name for layer in report.layers] == ["second"]
    assert [(e.node, e.code) for e in report.left_alone] == [("first", "not-planned")]


@pytest.mark.parametrize("names", [("other", "second"), ("first", "second")])
def test_the_plan_of_another_model_is_refused(compiled, names):
    other = two_layers(names=names)
    if names == ("first", "second"):
        dims = other.graph.initializer[2].dims
        dims[1] -= 16
        size = HIDDEN * (OUT - 16) * 4
        other.graph.initializer[2].raw_data = other.graph.initializer[2].raw_data[:size]
        other.graph.output[0].type.tensor_type.shape.dim[2].dim_value -= 16
    onnx.save(other, "other.onnx")
    result = call("other.onnx", "--plan", "out/plan.json", "-o", "again", "--no-html")
    assert result.code == 2
    assert "plan-mismatch" in result.line()
    assert not Path("again").exists()


def test_a_plan_of_random_numbers_stays_unfit(work):
    work.compile(data="random")
    assert not load_report(work.out / "report.json").calibration.fit
    call(work.model, "--plan", "out/plan.json", "-o", "again", "--no-html")
    assert not load_report(Path("again/report.json")).calibration.fit
    np.savez("unfit.npz", x=samples())
    work.compile(data="unfit.npz")
    call(work.model, "--plan", "out/plan.json", "-o", "again", "--no-html")
    assert load_report(Path("again/report.json")).calibration.fit


# Statistics in parts


def test_shards_merge_to_the_plan_of_all_data_in_any_order(work):
    options = ["--policy", "micromix", "--granularity", "32", "--lambda", "2"]
    data = samples(12)
    for name, part in (("all", data), ("a", data[:3]), ("b", data[3:4]), ("c", data[4:])):
        np.savez(f"{name}.npz", x=part)
        stats = ["--calib", f"{name}.npz", "--save-stats", f"{name}.stats"]
        assert call("calibrate", work.model, *options, *stats, "-o", f"{name}.json").code == 0
    plans = []
    for order in itertools.permutations("abc"):
        stats = [argument for name in order for argument in ("--stats", f"{name}.stats")]
        assert call("calibrate", work.model, *options, *stats, "-o", "merged.json").code == 0
        plans.append(load_plan(Path("merged.json")))
    whole = load_plan(Path("all.json"))
    assert plans[0].groups == whole.groups
    assert all(plan == plans[0] for plan in plans)
    assert call("diff", "all.json", "merged.json").code == 0
    assert call("diff", "a.json", "merged.json").code == 1


MICROMIX_PLAN = ("calibrate", "--policy", "micromix")
"""The policy that needs most from statistics; a later `--policy` wins."""


def test_merged_statistics_can_be_saved(work):
    for name, part in (("a", samples(3)), ("b", samples(3, seed=1))):
        np.savez(f"{name}.npz", x=part)
        data = ["--calib", f"{name}.npz", "--save-stats", f"{name}.stats"]
        assert call(*MICROMIX_PLAN, work.model, *data).code == 0
    both = ["--stats", "a.stats", "--stats", "b.stats"]
    assert call(*MICROMIX_PLAN, work.model, *both, "--save-stats", "ab.stats").code == 0
    first = load_plan(Path("plan.json"))
    assert call(*MICROMIX_PLAN, work.model, "--stats", "ab.stats").code == 0
    assert load_plan(Path("plan.json")) == first


@pytest.mark.parametrize(
    ("prepared", "code"),
    [
        (["--exclude", "first"], "stats-mismatch"),
        (["--policy", "mxfp8"], "threshold-not-counted"),
        (["--lambda", "2"], "threshold-not-counted"),
    ],
)
def test_statistics_that_do_not_suit(work, prepared, code):
    save = ["--calib", work.data, "--save-stats", "s.npz", "-o", "other.json"]
    assert call(*MICROMIX_PLAN, work.model, *prepared, *save).code == 0
    result = call(*MICROMIX_PLAN, work.model, "--stats", "s.npz")
    assert result.code == 2
    assert code in result.line()
    assert not Path("plan.json").exists()


def test_damaged_statistics(work):
    Path("s.npz").write_bytes(b"nothing")
    result = call(*MICROMIX_PLAN, work.model, "--stats", "s.npz")
    assert result.code == 2
    assert "stats-unreadable" in result.line()


# The cache


def cached(work):
    return load_report(work.out / "report.json").calibration.cached


def test_a_second_run_uses_the_cache(work, calibrations):
    work.compile()
    assert not cached(work)
    first = work.contents()
    work.compile()
    assert cached(work)
    assert len(calibrations) == 1
    second = work.contents()
    for name in ("model.onnx", "model.onnx.data", "plan.json"):
        assert first[name] == second[name]
    figures = [load_report(work.out / "report.json").layers]
    work.compile()
    assert load_report(work.out / "report.json").layers == figures[0]


def test_the_same_content_in_other_files_hits(work, calibrations):
    work.compile()
    copy = work.folder / "copy.onnx"
    copy.write_bytes(work.model.read_bytes())
    np.savez("copy.npz", x=samples())
    work.compile(model=copy, data="copy.npz")
    assert len(calibrations) == 1
    report = load_report(work.out / "report.json")
    assert report.calibration.cached
    assert "copy.npz" in report.calibration.description
    assert "copy.npz" in load_plan(work.out / "plan.json").calibration


def test_what_is_random_stays_random_in_the_cache(work, calibrations):
    from mmcompile.data.dataset import open_data
    from mmcompile.pipeline.prepare import input_specs

    specs = input_specs(onnx.load(work.model))
    random = open_data("random", specs, DataOptions(samples=10, max_length=16))
    np.savez(work.data, x=np.concatenate([sample["x"] for sample in random]))
    options = ["--samples", "10", "--max-length", "16"]
    work.compile(*options)
    assert load_report(work.out / "report.json").calibration.fit
    work.compile(*options, data="random")
    assert cached(work)
    assert not load_report(work.out / "report.json").calibration.fit


@pytest.mark.parametrize("what", ["data", "model", "lambda", "thresholds", "seed", "selection"])
def test_anything_else_misses_the_cache(work, calibrations, what):
    policy = ("--policy", "micromix") if what in ("lambda", "thresholds") else ()
    work.compile(*policy)
    options = {
        "lambda": ["--lambda", "1.5"],
        "thresholds": ["--thresholds", "paper"],
        "seed": ["--seed", "1"],
        "selection": ["--exclude", "first"],
    }
    if what == "data":
        values = samples()
        values[0, 0, 0] += 1
        np.savez(work.data, x=values)
    elif what == "model":
        work.replace_weight("b1", lambda bias: bias + np.float32(0.01))
    work.compile(*policy, *options.get(what, []))
    assert len(calibrations) == 2
    assert not cached(work)


def test_policies_that_only_plan_otherwise_share_the_cache(work, calibrations):
    work.compile()
    work.compile("--scale-rule", "ocp")
    work.compile("--granularity", "128")
    work.compile("--order", "random")
    assert len(calibrations) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zip", "flip", "folder", "other"])
def test_a_damaged_cache_entry_is_made_anew(work, calibrations, damage):
    work.compile()
    first = work.contents()["plan.json"]
    (entry,) = (work.folder / "cache" / "calibration").iterdir()
    data = entry.read_bytes()
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    elif damage == "zip":
        with entry.open("wb") as file:
            np.savez(file, header=np.array(["1"]))
    elif damage == "other":
        work.compile("--exclude", "first")
        (other,) = set((work.folder / "cache" / "calibration").iterdir()) - {entry}
        other.replace(entry)
        calibrations.clear()
        calibrations.append(None)
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        texts = {"cut": data[:middle], "empty": b"", "text": b"no statistics", "flip": flipped}
        entry.write_bytes(texts[damage])
    result = work.compile()
    assert (result.code, result.err) == (0, "")
    assert len(calibrations) == 2
    assert work.contents()["plan.json"] == first
    if damage != "folder":
        work.compile()
        assert cached(work)


@pytest.mark.slow
def test_no_byte_of_a_cache_entry_can_do_harm(work, calibrations):
    work.compile()
    first = json.loads(work.contents()["plan.json"])
    (entry,) = (work.folder / "cache" / "calibration").iterdir()
    data = entry.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 4)):
            damaged[place] = generator.integers(0, 256)
        # The names and sizes of the archive's members stand at its end.
        damaged[-int(generator.integers(1, 400))] ^= 1 << int(generator.integers(8))
        entry.write_bytes(bytes(damaged))
        result = call(*work.arguments("--dry-run", "--json"))
        assert (result.code, result.err) == (0, "")
        entry.write_bytes(data)
    work.compile()
    assert json.loads(work.contents()["plan.json"]) == first


@pytest.mark.parametrize("kind", ["file", "below a file", "proc", "long name"])
def test_a_cache_that_cannot_be_used_is_no_error(work, monkeypatch, calibrations, kind):
    blocker = work.folder / "blocker"
    blocker.write_text("")
    places = {
        "file": blocker,
        "below a file": blocker / "x",
        "proc": "/proc/none",
        "long name": work.folder / ("x" * 300),
    }
    monkeypatch.setenv("MMCOMPILE_CACHE_DIR", str(places[kind]))
    for _ in range(2):
        result = work.compile()
        assert (result.code, result.err) == (0, "")
        assert not cached(work)
    assert len(calibrations) == 2


# Dry runs and sizes

SLACK = 200
"""Bytes that sizes are known to: alignment, and how the graph writes down where a weight lies."""


def sizes(work):
    names = ("model.onnx", "model.onnx.data")
    return sum((work.out / name).stat().st_size for name in names)


def test_a_dry_run_writes_nothing_and_knows_the_size(work):
    result = call(*work.arguments("--dry-run"))
    assert (result.code, result.err) == (0, "")
    assert "dry run: nothing was written" in result.out
    assert "estimated" in result.out
    assert not work.out.exists()
    report = call(*work.arguments("--dry-run", "--json")).json()
    assert report["model"]["estimated"]
    assert report["verification"] is None
    assert not work.out.exists()
    assert {p.name for p in work.folder.iterdir()} == {"model.onnx", "data.npz", "cache"}
    work.compile()
    assert abs(sizes(work) - report["model"]["bytes_after"]) < SLACK
    written = load_report(work.out / "report.json")
    assert (
        json.loads(msgspec.json.encode(written.layers[0].segments))
        == (report["layers"][0]["segments"])
    )


def test_a_dry_run_keeps_earlier_output(compiled):
    before = compiled.contents()
    assert call(*compiled.arguments("--dry-run", "--policy", "mxfp8")).code == 0
    assert compiled.contents() == before


def test_a_dry_run_without_data_gives_bounds(work):
    blind = [work.model, "--dry-run", "--policy", "micromix"]
    expected = call(*blind, "--json", "--granularity", "32").json()
    by_name = {row["format"]: row for row in expected["formats"]}
    assert list(by_name) == ["mxfp4", "mxfp6_e3m2", "mxfp8"]
    assert expected["linears"] == expected["groups"] == 2
    assert expected["weights"] == CHANNELS * HIDDEN + HIDDEN * OUT
    # One word of scales for each row: both layers have at most 4 blocks of 32 channels.
    word_bits = 32 * (HIDDEN + OUT) / expected["weights"]
    assert by_name["mxfp4"]["weight_bits"] == pytest.approx(4 + word_bits)
    assert by_name["mxfp8"]["weight_bits"] == pytest.approx(8 + word_bits)
    assert by_name["mxfp4"]["compute_limit"] == 8
    # MicroMix pads K to its granularity: four blocks for each row of either layer.
    wide = call(*blind, "--json", "--granularity", "128").json()["formats"]
    padded_bits = (128 * 4 + 32) * (HIDDEN + OUT) / expected["weights"]
    assert wide[0]["weight_bits"] == pytest.approx(padded_bits)
    work.compile("--policy", "micromix")
    bounds = [by_name[name]["model_bytes"] for name in ("mxfp4", "mxfp8")]
    assert bounds[0] <= sizes(work) <= bounds[1] + SLACK
    for name in by_name:
        work.compile("--policy", name)
        assert abs(sizes(work) - by_name[name]["model_bytes"]) < SLACK
    text = call(*blind).out
    assert "split is not known without data" in text
    assert "dry run: nothing was written" in text


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ((), "The budget is at most a mean tensor-core cost of 1.25 (the fastest formats 1)."),
        (("--objective", "memory"), "The budget is at most 5 bits per weight."),
        (
            ("--target-speed", "1.5", "--target-bits", "5.5"),
            "a mean tensor-core cost of 1.5 (the fastest formats 1) and 5.5 bits per weight.",
        ),
        (
            ("--max-error", "0.01"),
            "The budget is the least with which no output errs more than 0.01.",
        ),
    ],
)
def test_a_dry_run_of_cost_without_data_gives_bounds_and_the_budget(work, options, budget):
    blind = [work.model, "--dry-run", *options]
    expected = call(*blind, "--json").json()
    assert budget in expected["note"]
    assert expected["policy"] == "cost"
    bounds = [row["model_bytes"] for row in expected["formats"]]
    if "--target-speed" not in options and "--max-error" not in options:
        work.compile(*options)
        assert min(bounds) <= sizes(work) + SLACK
        assert sizes(work) <= max(bounds) + SLACK
    assert budget in " ".join(call(*blind).out.split())


@pytest.mark.parametrize(
    "options", [["--policy", "nvfp4"], ["--policy", "mxfp8", "--order", "sorted"]]
)
def test_a_dry_run_without_data_of_policies_that_need_some(work, options):
    expected = call(work.model, "--dry-run", "--json", *options).json()
    (row,) = expected["formats"]
    assert row["format"] == options[1]
    assert work.compile(*options).code == 0
    assert abs(sizes(work) - row["model_bytes"]) < SLACK


def test_a_dry_run_checks_what_a_run_would_check(work):
    assert call(work.model, "--dry-run", "--gpu", "gtx1080").code == 2
    assert call(work.model, "--dry-run", "--exclude", "none").code == 2
    assert call("none.onnx", "--dry-run").code == 2


@pytest.mark.parametrize("shape", [[CHANNELS, HIDDEN], [250]])
def test_the_size_counts_weights_that_stay(work, shape):
    """A weight that something else reads, too, and one that is small enough for the graph."""
    model = two_layers()
    name = "W1" if len(shape) == 2 else "small"
    if name == "small":
        small = onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        model.graph.initializer.append(small)
    model.graph.node.append(onnx.helper.make_node("Identity", [name], ["copy"], name="copy"))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("copy", onnx.TensorProto.FLOAT, shape)
    )
    onnx.save(model, work.model)
    report = call(*work.arguments("--dry-run", "--json")).json()
    assert work.compile().code == 0
    assert abs(sizes(work) - report["model"]["bytes_after"]) < SLACK


# Without data


def test_which_policies_decide_without_data():
    def needs_nothing(policy):
        return policy.needs is Needs.NOTHING

    alone = {name for name in POLICIES if needs_nothing(make_policy(name))}
    assert alone == {"mxfp4", "mxfp6", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8"}
    assert not needs_nothing(make_policy("mxfp8", order=Order.SORTED))
    assert not needs_nothing(make_policy("mxfp8", order=Order.REVERSED))
    assert needs_nothing(make_policy("mxfp8", order=Order.RANDOM))
    assert not needs_nothing(MicroMixPolicy(order=Order.NATURAL))


@pytest.mark.parametrize("order", ["natural", "random"])
def test_the_plan_without_data_is_that_with_data(work, order):
    options = ["--policy", "mxfp6", "--order", order, "--no-html"]
    assert call(work.model, *options, "-o", "blind").code == 0
    assert call(work.model, *options, "-o", "seen", "--calib", work.data).code == 0
    blind, seen = (work.contents(work.folder / name) for name in ("blind", "seen"))
    assert blind["model.onnx.data"] == seen["model.onnx.data"]
    assert blind["model.onnx"] == seen["model.onnx"]
    report = load_report(Path("blind/report.json"))
    assert report.calibration.description == "none was given; mxfp6 decides without data"
    assert report.calibration.samples is None
    assert report.calibration.fit
    assert {layer.output_sqnr_db for layer in report.layers} == {None}
    assert all(layer.weight_sqnr_db > 15 for layer in report.layers)
    assert "no inputs were given" in report.verification.note
    assert load_plan(Path("blind/plan.json")).groups[0].figures == {}


@pytest.mark.parametrize(
    "options", [[], ["--policy", "nvfp4"], ["--policy", "mxfp8", "--order", "sorted"]]
)
def test_other_policies_ask_for_data(work, options):
    result = call(work.model, *options)
    assert result.code == 2
    assert "no-calibration-data" in result.line()


def test_a_policy_without_data_can_be_verified(work):
    options = ["--policy", "mxfp8", "--verify-data", work.data, "--fail-below", "0.99"]
    assert call(work.model, *options, "--no-html", "-o", work.out).code == 0
    assert load_report(work.out / "report.json").verification.outputs[0].cosine_mean > 0.99


def test_calibrate_needs_no_data_for_such_policies(work):
    assert call("calibrate", work.model, "--policy", "mxfp8").code == 0
    policy = make_policy("mxfp8")
    found = gather(start_run(work.model, DataOptions(), Settings(parse_target("sm_120"))), policy)
    assert found.stats is None and not found.cached
    assert load_plan(Path("plan.json")) == policy.plan(found.evidence)


# Verification


def test_a_model_that_misses_the_demand_is_not_written(work):
    work.compile("--html")
    before = work.contents()
    result = work.compile("--fail-below", "0.99999", "--policy", "mxfp4", "--html")
    assert result.code == 5
    assert "output y: mean cosine similarity 0.9" in result.line()
    assert "failed-report.html" in result.line()
    assert "first bad layer: first" in result.line()
    after = work.contents()
    failed = {name: after.pop(name) for name in ("failed-report.json", "failed-report.html")}
    assert after == before
    report = load_report(work.out / "failed-report.json")
    assert report.verification.first_bad_layer == "first"
    assert not report.verification.passed
    assert call("report", work.out / "failed-report.json").code == 0
    assert failed["failed-report.html"].lower().startswith(b"<!doctype html>")
    # A run that succeeds removes what speaks of the one that failed.
    assert work.compile().code == 0
    files = {"model.onnx", "model.onnx.data", "plan.json", "report.json"}
    assert set(work.contents()) - {LIBRARY} == files | BUNDLE


def test_a_failed_first_run_leaves_its_report_only(work):
    assert work.compile("--fail-below", "0.99999").code == 5
    assert set(work.contents()) == {"failed-report.json"}


def test_verification_errors_in_python(work):
    options = CompileOptions(
        output=work.out,
        data=DataOptions(calibration=work.data),
        verify=VerifyOptions(fail_below=0.99999),
    )
    with pytest.raises(VerificationError) as caught:
        mmcompile.compile(work.model, options)
    assert caught.value.code == "verification-failed"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--policy", "mxfp8"], "no inputs"),
        (["--policy", "mxfp8", "--no-verify"], "switched off"),
    ],
)
def test_a_demand_that_cannot_be_checked_is_refused(work, options, reason):
    result = call(work.model, *options, "--fail-below", "0.9", "-o", work.out)
    assert result.code == 2
    assert reason in result.line()
    assert not work.out.exists()


def test_samples_are_held_back_from_calibration(compiled):
    values = samples()
    seen = np.delete(values, [4, 9], axis=0)
    np.savez("seen.npz", x=seen)
    call("calibrate", compiled.model, "--calib", "seen.npz", "--granularity", "32")
    assert load_plan(Path("plan.json")).groups == load_plan(compiled.out / "plan.json").groups


def test_too_few_samples_are_used_twice_and_the_report_says_so(work):
    np.savez(work.data, x=samples(3))
    work.compile()
    report = load_report(work.out / "report.json")
    assert report.calibration.samples == report.verification.samples == 3
    assert "those of calibration" in report.verification.note


def test_without_verification(work):
    work.compile("--no-verify")
    assert load_report(work.out / "report.json").verification is None


def test_numbers_that_become_nan_always_fail(work):
    onnx.save(two_layers(final="Sqrt"), work.model)  # of numbers some of which change their sign
    result = work.compile()
    assert result.code == 5
    assert "verification: y: NaN or infinity where the original has a number" in result.line()
    report = load_report(work.out / "failed-report.json")
    assert report.verification.outputs[0].cosine_mean is None
    assert work.compile("--no-verify").code == 0


# Models of other types


def test_float16_end_to_end(work):
    onnx.save(two_layers(np.float16), work.model)
    np.savez(work.data, x=samples(dtype=np.float16))
    result = work.compile("--nodes", "--layers", "--fail-below", "0.98")
    assert (result.code, result.err) == (0, "")
    report = load_report(work.out / "report.json")
    assert report.model.dtype == "float16"
    assert report.verification.outputs[0].dtype == "float16"
    model = onnx.load(work.out / "model.onnx", load_external_data=False)
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert run(work.out / "model.onnx", {"x": samples(1, dtype=np.float16)})[0].dtype == np.float16


def test_bfloat16_end_to_end(work):
    onnx.save(two_layers(ml_dtypes.bfloat16), work.model)
    np.savez(work.data, x=samples())  # numpy's files know no bfloat16
    result = work.compile()
    assert (result.code, result.err) == (0, "")
    report = load_report(work.out / "report.json")
    assert report.model.dtype == "bfloat16"
    assert report.verification.passed
    (output,) = report.verification.outputs
    assert 0.98 < output.cosine_mean < 1
    assert "bfloat16 was computed in float32: the CPU has no bfloat16" in report.verification.note
    assert "every MicroMixLinear node was compared" in report.verification.note
    assert all(layer.output_cosine > 0.98 for layer in report.layers)
    model = onnx.load(work.out / "model.onnx", load_external_data=False)
    kinds = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert kinds == {onnx.TensorProto.BFLOAT16}
    assert report.rest.reason == "the model computes in bfloat16, and was left as it is"
    assert work.compile("--fail-below", "0.5").code == 0
    demanded = work.compile("--fail-below", "0.99999")
    assert demanded.code == 5
    assert "mean cosine similarity" in demanded.line()


def test_a_node_that_is_wrong_fails_a_bfloat16_model(work, monkeypatch):
    onnx.save(two_layers(ml_dtypes.bfloat16), work.model)
    np.savez(work.data, x=samples())
    monkeypatch.setattr("mmcompile.pipeline.verification.node_excess", lambda *_: 1.5)
    result = work.compile()
    assert result.code == 5
    assert "the worst is at 1.50 of the derived error bound" in result.line()


@pytest.mark.parametrize("name", ["matmul_add", "gemm_trans_ab", "shared_input", "tied_weight"])
def test_hand_made_models(work, name):
    model = linear_model(name)
    onnx.save(model, work.model)
    feed = feeds(model)
    options = CompileOptions(
        output=work.out,
        data=DataOptions(calibration=[feed] * 2),
        policy=make_policy("mxfp8"),
        selection=Selection(heads=True),
        verify=VerifyOptions(fail_below=0.99),
        html=False,
    )
    result = mmcompile.compile(work.model, options)
    assert len(result.plan.groups) == 1
    for before, after in zip(run(work.model, feed), run(result.model, feed), strict=True):
        assert cosine(before, after) > 0.99


def test_a_model_without_linears_is_copied_and_said_so(work):
    onnx.save(linear_model("two_activations"), work.model)
    result = call(work.model, "--calib", "random", "-o", work.out, "--no-html")
    assert (result.code, result.err) == (0, "")
    assert "No linear layer was rewritten" in result.out
    assert "two-activations" in result.out


# What is left behind


def test_files_of_an_earlier_run_do_not_stay_beside_a_new_model(work):
    work.compile("--html")
    assert "report.html" in work.contents()
    (work.out / "notes.txt").write_text("mine")
    work.compile()
    files = {"model.onnx", "model.onnx.data", "plan.json", "report.json", "notes.txt"}
    assert set(work.contents()) - {LIBRARY} == files | BUNDLE


def test_options_do_not_change(work):
    options = CompileOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.gpu = "sm_90"
    with pytest.raises(UsageError, match="unknown GPU"):
        mmcompile.compile(work.model, dataclasses.replace(options, gpu="x"))
