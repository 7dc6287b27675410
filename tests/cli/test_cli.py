import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import click
import numpy as np
import onnx
import pytest
from onnx import helper

from mmcompile import __version__
from mmcompile.cli import run
from mmcompile.cli.commands import cli
from mmcompile.cli.help import SECTIONS
from mmcompile.formats import THRESHOLDS, WeightScales
from mmcompile.policy.choices import Order, Thresholds
from mmcompile.policy.micromix import GRANULARITIES
from mmcompile.policy.registry import POLICIES
from mmcompile.tables import Name
from mmcompile.targets.table import TARGETS
from tests.models import model_of, weight
from tests.workplace import (
    BUNDLE,
    HIDDEN,
    LIBRARY,
    call,
    command,
    samples,
    spawn,
    two_layers,
)

HEAVY = {"jinja2", "matplotlib", "numpy", "onnx", "onnxruntime", "polygraphy", "rich", "torch"}
COMMANDS = (
    "analyze",
    "bench",
    "build",
    "calibrate",
    "compile",
    "diff",
    "doctor",
    "export",
    "inspect",
    "report",
    "verify",
)


def option(command_name, name):
    return next(p for p in cli.commands[command_name].params if p.name == name)


# Help


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert spawn("--help").code == 0
        seconds.append(time.perf_counter() - start)
    # 0.2 s on an idle machine, against 2 s where onnx and the runtime are imported. The demand
    # is half a second; the bound is wider for machines that are busy.
    assert min(seconds) < 1.2


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from mmcompile.cli import run\n"
        f"codes = [run(['--help'])] + [run([c, '--help']) for c in {COMMANDS}]\n"
        "codes.append(run(['--version']))\n"
        "assert not any(codes), codes\n"
        f"print(sorted({HEAVY} & set(sys.modules)))\n"
    )
    environment = command()["env"]
    python = [sys.executable, "-c", script]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_top_level_help_shows_what_users_need_first():
    result = call("--help")
    assert result.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", result.out, re.MULTILINE)
    for flag in ("--gpu", "--calib", "--policy", "--plan", "--dry-run", "--config", "--json", "-o"):
        assert flag in result.out
    for title in ("Target and output", "Inputs", "Precision", "Layers", "Verification"):
        assert f"{title}:" in result.out
    assert "..." not in result.out.replace("[ARGS]...", "")
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_and_stands_in_a_section(name):
    result = call(name, "--help")
    sectioned = {option for names in SECTIONS.values() for option in names}
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.opts[0] in result.out
            if name in ("compile", "calibrate"):
                assert parameter.name in sectioned
    assert "..." not in result.out


def test_nothing_at_all_shows_the_help():
    assert call().out == call("--help").out
    assert call().code == 0


def test_version():
    assert call("--version").out == f"mmcompile {__version__}\n"


def test_choices_are_those_of_the_pipeline():
    assert sorted(option("compile", "policy").type.choices) == sorted(POLICIES)
    assert list(option("compile", "thresholds").type.choices) == [t.value for t in Thresholds]
    assert list(option("compile", "order").type.choices) == [o.value for o in Order]
    assert list(option("compile", "granularity").type.choices) == [str(g) for g in GRANULARITIES]
    assert list(option("compile", "scale_rule").type.choices) == list(THRESHOLDS)
    assert list(option("compile", "weight_scales").type.choices) == list(get_args(WeightScales))


# Which command is meant


def test_compile_need_not_be_said(work):
    assert call(*work.arguments("--dry-run")).code == 0
    assert call("--dry-run", *work.arguments()).code == 0
    assert call("compile", *work.arguments("--dry-run")).code == 0


def test_a_file_may_be_called_like_a_word(work):
    work.model.rename("model")
    assert work.compile("--dry-run", model="model").code == 0


def test_a_mistyped_command():
    result = call("inspekt", "model.onnx")
    assert result.code == 2
    assert "inspect" in result.line()


# Compiling


def test_compile_writes_its_files_and_says_so(work):
    result = work.compile("--html")
    assert (result.code, result.err) == (0, "")
    files = {"model.onnx", "model.onnx.data", "plan.json", "report.json", "report.html"}
    files |= BUNDLE | ({LIBRARY} & set(work.contents()))
    assert set(work.contents()) == files
    assert {line for line in result.out.splitlines() if line.startswith("wrote")} == {
        f"wrote {work.out / name}" for name in files
    }
    for said in ("model.onnx for sm_120", "mxfp4", "Linear layers rewritten", "Verification"):
        assert said in result.out
    assert (work.out / "report.html").read_text().lower().startswith("<!doctype html>")


def test_the_command_line_is_in_the_report(work, monkeypatch):
    arguments = [str(a) for a in work.arguments()]
    monkeypatch.setattr(sys, "argv", ["mmcompile", *arguments])
    assert call(*arguments).code == 0
    report = json.loads((work.out / "report.json").read_text())
    assert report["command"].split() == ["mmcompile", *arguments]


def test_unknown_gpus_list_the_known_ones(work):
    result = work.compile("--gpu", "gtx1080")
    assert result.code == 2
    for target in TARGETS:
        assert target.name in result.line()
        assert target.aliases[0] in result.line()
    assert work.compile("--gpu", "RTX 5090", "--dry-run").code == 0


def test_policy_options_arrive_in_the_plan(work):
    options = ["--policy", "micromix", "--thresholds", "paper", "--lambda", "2.5"]
    options += ["--order", "reversed", "--scale-rule", "ocp", "--granularity", "64"]
    assert work.compile(*options).code == 0
    plan = json.loads((work.out / "plan.json").read_text())
    assert plan["parameters"] == {
        "granularity": 64,
        "order": "reversed",
        "scale_rule": "ocp",
        "weight_scales": "rule",
        "thresholds": "paper",
        "lambda": 2.5,
    }
    assert {s["act_threshold"] for g in plan["groups"] for s in g["segments"]} == {2.0}


def test_selection_options_leave_layers_alone(work):
    work.compile("--exclude", "sec*")
    plan = json.loads((work.out / "plan.json").read_text())
    assert [g["name"] for g in plan["groups"]] == ["first"]
    assert [(e["node"], e["code"]) for e in plan["left_alone"]] == [("second", "excluded")]
    work.compile("--include", "W2")
    plan = json.loads((work.out / "plan.json").read_text())
    assert [g["name"] for g in plan["groups"]] == ["second"]


@pytest.mark.parametrize("name", ["--include", "--exclude"])
def test_a_pattern_that_matches_nothing_is_a_mistake(work, name):
    result = work.compile(name, "sekond")
    assert result.code == 2
    assert "'sekond'" in result.line()
    assert "'first'" in result.line()


def test_verification_options_arrive_in_the_report(work):
    options = ["--layers", "--nodes", "--verify-samples", "1", "--logits", "y"]
    assert work.compile(*options, "--fail-below", "0.5").code == 0
    found = json.loads((work.out / "report.json").read_text())["verification"]
    assert [layer["name"] for layer in found["layers"]] == ["first", "second"]
    assert found["samples"] == 1
    assert found["threshold"] == "mean cosine of every output at least 0.5"
    assert "every MicroMixLinear node" in found["note"]
    assert found["outputs"][0]["is_logits"]


# JSON


def test_json_is_one_document_and_nothing_else(compiled):
    work = compiled
    for arguments in (
        work.arguments("--json"),
        work.arguments("--json", "--dry-run"),
        [work.model, "--json", "--dry-run"],
        [work.model, "--json", "--dry-run", "--policy", "mxfp8"],
        ["inspect", work.model, "--json"],
        ["report", work.out, "--json"],
        ["doctor", "--json"],
        ["verify", work.model, work.out / "model.onnx", "--data", work.data, "--json"],
    ):
        result = call(*arguments)
        assert (result.code, result.err) == (0, ""), arguments
        assert result.out.count("\n") == 1
        result.json()


def test_json_is_utf_8_on_any_terminal(work):
    onnx.save(two_layers(names=("größe", "二")), work.model)
    done = subprocess.run(
        **(command("inspect", work.model, "--json", PYTHONIOENCODING="latin-1") | {"text": False}),
        capture_output=True,
        check=True,
    )
    names = [g["name"] for g in json.loads(done.stdout.decode("utf-8"))["groups"]]
    assert names == ["größe", "二"]


def test_errors_go_to_standard_error_with_json_too(work):
    result = call(work.folder / "none.onnx", "--json")
    assert (result.code, result.out) == (2, "")
    assert "no such file" in result.line()


# Mistakes of usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "int4"], ["--policy", "cost"]),
        (["--samples", "0"], ["--samples"]),
        (["--seed", "-1"], ["--seed"]),
        (["--policy", "micromix", "--lambda", "0"], ["--lambda", "positive"]),
        (["--policy", "micromix", "--lambda", "nan"], ["--lambda", "positive"]),
        (["--lambda", "2"], ["--lambda", "no effect", "use --policy micromix"]),
        (["--granularity", "48"], ["--granularity"]),
        (["--fail-below", "2"], ["--fail-below"]),
        (["--fail-below", "0.5", "--no-verify"], ["--fail-below", "switched off"]),
        (["--logits", "nothing"], ["--logits", "'nothing'", "use one of y"]),
        (["--plan", "plan.json", "--policy", "mxfp8"], ["--policy", "--plan"]),
        (["--plan", "plan.json", "--target-speed", "1.5"], ["--target-speed", "--plan"]),
        (["--bogus"], ["--bogus", "compile --help"]),
        (["another.onnx"], ["another.onnx"]),
        (["--max-length", "long"], ["--max-length"]),
    ],
)
def test_mistakes_of_usage(work, arguments, words):
    result = work.compile(*arguments)
    assert (result.code, result.out) == (2, "")
    for word in words:
        assert word in result.line()
    assert not work.out.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compile"], "MODEL"),
        (["model.onnx"], "--calib"),
        (["verify", "model.onnx"], "COMPILED"),
        (["verify", "model.onnx", "model.onnx"], "--data"),
        (["diff", "a.json", "b.json"], "a.json"),
        (["report", "none"], "none"),
        (["model.onnx", "--plan", "none.json"], "none.json"),
        (["inspect", "none.onnx"], "none.onnx"),
        (["calibrate", "model.onnx"], "--calib"),
        (["calibrate", "model.onnx", "--policy", "mxfp8", "--save-stats", "s"], "--save-stats"),
        (["calibrate", "model.onnx", "--stats", "a", "--calib", "data.npz"], "--stats"),
        (["calibrate", "model.onnx", "--stats", "a"], "--stats"),
        (["calibrate", "model.onnx", "--stats", "a", "--policy", "micromix"], "a"),
        (["calibrate", "model.onnx", "--calib", "data.npz", "--thresholds", "paper"], "--thres"),
        (["model.onnx", "--plan", "plan.json", "--effort", "best"], "--effort"),
        (["calibrate", "model.onnx", "--calib", "data.npz", "-o", "model.onnx"], "model.onnx"),
        (["calibrate", "model.onnx", "--calib", "data.npz", "-o", "."], "."),
        (["export", "none"], "none"),
    ],
)
def test_mistakes_in_other_commands(work, arguments, word):
    before = work.model.read_bytes()
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert word in result.line()
    assert work.model.read_bytes() == before


def test_a_folder_that_is_not_there(work):
    result = call("calibrate", work.model, "--calib", work.data, "-o", "none/plan.json")
    assert result.code == 4
    assert "none" in result.line()


# Configuration files


def test_config_gives_defaults_of_every_kind(work):
    Path("mm.toml").write_text(
        f'calib = "{work.data}"\noutput = "elsewhere"\npolicy = "mxfp6"\nhtml = false\n'
        'exclude = ["first"]\nverify_samples = 1\nfail-below = -1.0\nlambda = 2\nchunk = false\n'
    )
    result = call(work.model, "--config", "mm.toml")
    assert (result.code, result.err) == (0, "")
    report = json.loads(Path("elsewhere/report.json").read_text())
    assert not Path("elsewhere/report.html").exists()
    assert report["policy"]["name"] == "mxfp6"
    assert report["verification"]["samples"] == 1
    assert report["verification"]["threshold"].endswith("-1")
    assert [layer["name"] for layer in report["layers"]] == ["second"]


def test_the_command_line_wins_over_the_config(work):
    Path("mm.toml").write_text('policy = "mxfp8"\nhtml = true\nexclude = ["first"]\nseed = 1\n')
    result = work.compile("--config", "mm.toml", "--policy", "mxfp4", "--exclude", "second")
    assert result.code == 0
    report = json.loads((work.out / "report.json").read_text())
    assert report["policy"]["name"] == "mxfp4"
    assert [layer["name"] for layer in report["layers"]] == ["first"]
    assert not (work.out / "report.html").exists()


def test_a_policy_in_the_config_does_not_disturb_a_plan(compiled):
    Path("mm.toml").write_text('policy = "mxfp8"\n')
    result = call(compiled.model, "--plan", "out/plan.json", "--config", "mm.toml", "-o", "again")
    assert result.code == 0


def test_a_single_pattern_needs_no_list(work):
    Path("mm.toml").write_text('exclude = "first"\n')
    assert work.compile("--config", "mm.toml").code == 0
    plan = json.loads((work.out / "plan.json").read_text())
    assert [g["name"] for g in plan["groups"]] == ["second"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("polcy = 1", ["no option 'polcy'", "policy"]),
        ('config = "other.toml"', ["no option 'config'"]),
        ("policy = ", ["mm.toml"]),
        ('policy = "int4"', ["policy", "int4"]),
        ('policy = ["mxfp8"]', ["policy", "mxfp8"]),
        ("[compile]\npolicy = 1", ["compile"]),
        ("samples = true", ["samples", "True"]),
        ("samples = 0", ["samples", "0"]),
        ("samples = 1.5", ["samples", "1.5"]),
        ('html = "no"', ["html", "no"]),
        ("html = 1", ["html"]),
        ("exclude = [1979-05-27]", ["exclude"]),
        ("seed = 1979-05-27", ["seed"]),
        (b"\xff", ["mm.toml"]),
    ],
)
def test_bad_config_files(work, text, words):
    Path("mm.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = work.compile("--config", "mm.toml")
    assert (result.code, result.out) == (2, "")
    for word in (*words, "mm.toml"):
        assert word in result.line()


def test_a_config_file_that_is_missing(work):
    assert "none.toml" in work.compile("--config", "none.toml").line()
    assert "mm" in work.compile("--config", ".").line()


# The other commands


def many_layers(count, name="encoder.layer.{}.attention.output.dense/MatMul"):
    nodes, values = [], {}
    tensor = "x"
    for index in range(count):
        values[f"W{index}"] = weight(HIDDEN, HIDDEN, seed=index)
        product = helper.make_node("MatMul", [tensor, f"W{index}"], [f"h{index}"])
        product.name = name.format(index)
        tensor = f"r{index}"
        nodes += [product, helper.make_node("Relu", [f"h{index}"], [tensor], name=tensor)]
        for other in ("scores", "mix"):
            score = helper.make_node("MatMul", [tensor, f"t{index}"], [f"{other}{index}"])
            score.name = f"encoder.layer.{index}.attention/{other}"
            nodes.append(score)
        flip = helper.make_node("Transpose", [tensor], [f"t{index}"], perm=[0, 2, 1])
        nodes.insert(len(nodes) - 2, flip)
    values["W"] = weight(HIDDEN, HIDDEN)
    nodes.append(helper.make_node("MatMul", [tensor, "W"], ["y"], name="head"))
    sizes = ("batch", "sequence", HIDDEN)
    return model_of(nodes, values, x=sizes, y=sizes)


def test_inspect_is_compact_unless_asked(work):
    onnx.save(many_layers(5), work.model)
    short = call("inspect", work.model)
    assert short.code == 0
    assert "5 linear layers in 5 groups" in short.out
    assert re.search(r"encoder\.layer\.\*\.attention\.output\.dense/MatMul +5 +64 +64 ", short.out)
    assert re.search(r"two-activations +10 ", short.out)
    assert re.search(r"output-head +1 ", short.out)
    assert short.out.count("attention/mix") == 0
    long = call("inspect", work.model, "-v")
    for index in range(5):
        assert f"encoder.layer.{index}.attention.output.dense/MatMul" in long.out
    assert long.out.count("attention/mix") == 5
    heads = call("inspect", work.model, "--quantize-heads")
    assert "6 linear layers" in heads.out


def test_inspect_lists_everything_for_programs(work):
    onnx.save(many_layers(1), work.model)
    found = call("inspect", work.model, "--json").json()
    (group,) = found["groups"]
    assert group["in_channels"] == HIDDEN
    assert group["linears"][0] == {
        "node": "encoder.layer.0.attention.output.dense/MatMul",
        "weight": "W0",
        "out_channels": HIDDEN,
        "bias": False,
        "output": "h0",
    }
    codes = [entry["code"] for entry in found["left_alone"]]
    assert sorted(codes) == ["output-head", *["two-activations"] * 2]


def test_inspect_of_a_model_without_linears(work):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    onnx.save(model_of(nodes, {}, y=("batch", "sequence", 96)), work.model)
    result = call("inspect", work.model)
    assert result.code == 0
    assert "no linear layer" in result.out


def test_names_are_whole_where_no_terminal_is(work):
    name = "model.decoder.layers.{}." + "very_long_module_name." * 8 + "dense/MatMul"
    onnx.save(many_layers(1, name), work.model)
    for arguments in (["inspect", work.model], ["inspect", "-v", work.model]):
        assert name.format("0") in call(*arguments).out
    np.savez(work.data, x=samples()[..., :HIDDEN])
    assert name.format("0").removesuffix("/MatMul") in work.compile("-v").out.replace("/MatMul", "")


def test_names_fold_after_separators_in_narrow_terminals(work, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    onnx.save(many_layers(3), work.model)
    out = call("inspect", work.model, "-v").out.partition("\n")[2]
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 60
    first = [line.split("  ")[0].strip() for line in out.splitlines()]
    pieces = [p for p in first if re.fullmatch(r"[a-zA-Z0-9./*]+", p)]
    whole = "encoder.layer.0.attention.output.dense/MatMul"
    assert any(whole.startswith(p) and p[-1] in "./" for p in pieces), out


@pytest.mark.parametrize("name", ["", "a", "a.b/c", "..//a", "x" * 200, "a b.c d", "ж.二/ü"])
def test_folded_names_lose_nothing(name):
    from rich.console import Console

    for width in (2, 5, 80):
        console = Console(width=width)
        with console.capture() as captured:
            console.print(Name(name))
        assert "".join(captured.get().split()) == "".join(name.split())


def test_names_cannot_steer_the_terminal(work):
    onnx.save(two_layers(names=("\x1b[31mred\a", "[bold]not markup[/]")), work.model)
    for arguments in (["inspect", work.model], ["inspect", "-v", work.model], work.arguments()):
        result = call(*arguments)
        assert result.code == 0
        assert "\x1b" not in result.out + result.err
        assert "\\x1b[31mred" in result.out
        assert "[bold]not markup[/]" in result.out


def test_calibrate_writes_a_plan(work):
    policy = ["--policy", "micromix", "--granularity", "32"]
    options = ["--calib", work.data, *policy]
    result = call("calibrate", work.model, *options, "-o", "a.json", "--save-stats", "s.npz")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("wrote a.json: 2 groups, ")
    assert call(work.model, "--plan", "a.json", "--no-html").code == 0
    again = call("calibrate", work.model, "--stats", "s.npz", *policy, "-o", "b.json")
    assert again.code == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert not list(work.folder.glob("*.partial"))


def test_diff(work):
    for name, policy in (("a", "mxfp8"), ("b", "mxfp4"), ("c", "mxfp8")):
        assert call("calibrate", work.model, "--policy", policy, "-o", name).code == 0
    same = call("diff", "a", "c")
    assert (same.code, same.out) == (0, "the plans decide alike\n")
    other = call("diff", "a", "b")
    assert other.code == 1
    assert other.out.splitlines() == [
        "policy: mxfp8 → mxfp4",
        "first: 96×mxfp8 → 96×mxfp4",
        "second: 64×mxfp8 → 64×mxfp4",
    ]
    Path("b").write_text("{}")
    broken = call("diff", "a", "b")
    assert (broken.code, broken.out) == (2, "")
    assert "b" in broken.line()


def test_verify(compiled):
    model = compiled.out / "model.onnx"
    arguments = ["verify", compiled.model, model, "--data", compiled.data]
    result = call(*arguments)
    assert (result.code, result.err) == (0, "")
    for said in ("Mean cosine", "Verification: compared, no threshold set"):
        assert said in result.out
    assert call(*arguments, "--fail-below", "0.5").code == 0
    failed = call(*arguments, "--fail-below", "0.999999", "--layers")
    assert failed.code == 5
    assert "failed" in failed.out
    assert "first bad" in failed.out
    report = call(*arguments, "--fail-below", "0.999999", "--json")
    assert report.code == 5
    assert report.json()["passed"] is False
    assert report.json()["first_bad_layer"] == "first"


def test_verify_refuses_another_model(compiled):
    another = two_layers()
    another.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "length"
    onnx.save(another, "another.onnx")
    result = call("verify", "another.onnx", compiled.out / "model.onnx", "--data", compiled.data)
    assert result.code == 2
    assert "its outputs are y float32[batch, sequence, 48]" in result.line()
    assert "y float32[batch, length, 48]" in result.line()
    result = call("verify", compiled.out / "model.onnx", compiled.model, "--data", compiled.data)
    assert result.code == 3
    assert "compiled it before" in result.line()


def test_report_shows_an_earlier_run(compiled):
    shown = call("report", compiled.out)
    assert (shown.code, shown.err) == (0, "")
    assert "Linear layers rewritten" in shown.out
    assert call("report", compiled.out / "report.json").out == shown.out
    page = call("report", compiled.out, "--html", "page.html", "--json")
    assert page.code == 0
    assert page.json()["version"] == 1
    assert page.err == "wrote page.html\n"
    assert Path("page.html").read_text().lower().startswith("<!doctype html>")
    replaced = call("report", compiled.out, "--html", compiled.out / "report.json")
    assert replaced.code == 2
    assert "would be replaced" in replaced.line()


# Standard output and signals


@pytest.mark.parametrize("option", ["-v", "--json"])
def test_a_reader_that_leaves_early(work, option):
    onnx.save(many_layers(400), work.model)
    done = subprocess.Popen(
        **command("inspect", work.model, option), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with done:
        done.stdout.close()
        error = done.stderr.read()
    assert (done.returncode, error) == (141, "")


@pytest.mark.parametrize("option", ["-v", "--json", "--help"])
def test_a_full_disk_behind_standard_output(work, option):
    arguments = command("inspect", work.model, option)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(**arguments, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert "standard output: No space left" in done.stderr


def test_terminals_without_unicode(work):
    done = subprocess.run(
        **command(*work.arguments(), PYTHONIOENCODING="ascii"), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.onnx for sm_120" in done.stdout


@pytest.mark.slow
def test_names_that_are_no_text(work):
    strange = work.folder / os.fsdecode(b"n\xff")
    strange.mkdir()
    data = strange / "d\udcff.npz"
    work.data.rename(data)
    options = ["--calib", data, "--no-html", "-o"]
    result = spawn(work.model, *options, work.out, errors="surrogateescape")
    assert (result.code, result.err) == (0, "")
    report = json.loads((work.out / "report.json").read_text())
    assert "n\ufffd/d\ufffd.npz" in report["command"]
    refused = spawn(work.model, *options, strange / "out")
    assert refused.code == 2
    assert "n\\xff/out: its path is not valid UTF-8" in refused.line()
    work.model.rename(strange / "model.onnx")
    refused = spawn(strange / "model.onnx", *options, work.out)
    assert refused.code == 2
    assert "n\\xff/model.onnx: its path is not valid UTF-8" in refused.line()


def test_a_bug_shows_its_traceback_and_asks_for_a_report(work, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("mmcompile.pipeline.prepare.prepare", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        call("inspect", work.model)
    assert "this is a bug" in caught.value.__notes__[0]


def test_a_package_that_is_missing(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcompile.pipeline.prepare", None)
    result = call("inspect", work.model)
    assert result.code == 4
    assert "doctor" in result.line()


@pytest.mark.parametrize("error", [ImportError("initialization failed"), KeyboardInterrupt])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_answers(work, monkeypatch, error, number):
    def broken(*_):
        raise error

    monkeypatch.setattr("mmcompile.pipeline.prepare.prepare", broken)
    arrived = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with contextlib.redirect_stderr(arrived):
        assert run(["inspect", str(work.model)], [number]) == 128 + number
    assert f"interrupted by {number.name}" in arrived.buffer.getvalue().decode()


def test_an_interrupt_before_the_command(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert call("doctor").code == 130


def test_memory_that_is_too_small(work, monkeypatch):
    def hungry(*_):
        raise MemoryError

    monkeypatch.setattr("mmcompile.pipeline.prepare.prepare", hungry)
    result = call("inspect", work.model)
    assert result.code == 4
    assert "memory" in result.line()


def test_the_package_can_be_run_and_costs_nothing_to_import():
    script = f"import sys, mmcompile; print(sorted({HEAVY} & set(sys.modules)))"
    environment = command()["env"]
    python = [sys.executable, "-c", script]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
