"""What a user types in Python: names, keyword shortcuts, and errors in Python's words."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

import mmcompile as mm
from mmcompile import errors
from mmcompile.cli.commands import cli
from mmcompile.errors import ARGUMENTS, EnvironmentProblem, UsageError, argument_of
from mmcompile.options import destination_of, flag_of, option_fields
from mmcompile.pipeline.planning import PlanOptions
from mmcompile.policy.registry import POLICIES, options_of
from mmcompile.progress import Silent
from mmcompile.report.model import load_report
from tests.backends.conftest import install, put_library, tensorrt  # noqa: F401
from tests.running import run
from tests.workplace import CHANNELS, ROOT, Workplace, call, command, samples, two_layers

FUNCTIONS = ("analyze", "build", "compile", "export", "verify")
PRODUCT = Path(mm.__file__).parent


@pytest.fixture
def work(home, monkeypatch):
    put_library(home, monkeypatch)
    return Workplace(home)


@pytest.fixture
def feeds():
    """Ten samples as Python has them."""
    return [{"x": sample[None]} for sample in samples()]


# Names


@pytest.mark.parametrize("name", mm.__all__)
def test_every_name_is_there_and_explained(name):
    thing = getattr(mm, name)
    assert thing.__name__ == name
    explained = inspect.getdoc(thing)
    assert explained and not explained.startswith(
        f"{name}("
    )  # what dataclasses write of themselves
    if name in FUNCTIONS:
        parameters = [n for n in inspect.signature(thing).parameters if n != "options"]
        assert all(f"    {each}: " in explained for each in parameters)
        assert "Raises:" in explained


def test_names_are_those_that_type_checkers_see():
    tree = ast.parse((PRODUCT / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.name for node in guarded.body for alias in node.names]
    assert sorted(seen) == sorted(mm.__all__) == mm.__all__ == dir(mm)
    assert sorted(" ".join(mm._HOMES.values()).split()) == sorted(mm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'compile_all'"):
        mm.compile_all  # noqa: B018


def test_importing_the_package_loads_nothing():
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import mmcompile\n"
        "dir(mmcompile), mmcompile.__version__, mmcompile.__all__\n"
        "loaded = set(sys.modules) - before\n"
        "print(sorted(m for m in loaded if m.partition('.')[0] not in sys.stdlib_module_names))\n"
    )
    started = command() | {"args": [sys.executable, "-c", script]}
    done = subprocess.run(**started, capture_output=True, check=True)
    assert done.stdout == "['mmcompile']\n"


def test_options_can_be_made_without_what_compiling_needs():
    script = (
        "import sys\n"
        "import mmcompile as mm\n"
        "policy = mm.make_policy('cost', target_bits=5)\n"
        "data, build = mm.DataOptions(calibration='x.npz'), mm.BuildOptions(backend='none')\n"
        "mm.CompileOptions(policy=policy, data=data, build=build, verify=mm.VerifyOptions())\n"
        "mm.ExportOptions(), mm.Selection(), mm.MicroMixPolicy(), mm.UniformPolicy()\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch', 'click'} & set(sys.modules)))\n"
    )
    started = command() | {"args": [sys.executable, "-c", script]}
    done = subprocess.run(**started, capture_output=True, check=True)
    assert done.stdout == "[]\n"


# Functions


def answer(path, x):
    return run(path, {"x": x})[0]


def test_compile_with_words_alone(work, feeds):
    result = mm.compile(str(work.model), calibration=feeds, gpu="rtx5090", output=str(work.out))
    assert isinstance(result, mm.CompileResult)
    assert result.plan.policy == mm.CostPolicy.NAME
    assert result.report.target.name == "sm_120"
    assert "data given in Python" in result.report.calibration.description
    assert result.model == work.out / "model.onnx" in result.files
    assert result.engine is None  # nothing that builds one is here
    assert mm.load_plan(work.out / "plan.json") == result.plan
    assert isinstance(result.plan, mm.QuantPlan) and isinstance(result.report, mm.Report)
    before, after = (answer(path, samples(1, seed=9)) for path in (work.model, result.model))
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_words_win_over_options_and_leave_the_rest(work, feeds):
    options = mm.CompileOptions(
        gpu="h100",
        output=work.folder / "elsewhere",
        data=mm.DataOptions(calibration="none.npz", hold_back=2),
        policy=mm.MicroMixPolicy(granularity=32),
        html=False,
        dry_run=True,
    )
    dry = mm.compile(work.model, options, calibration=feeds, gpu="sm_121", output=work.out)
    assert (dry.files, dry.model) == ((), None)
    assert (dry.plan.policy, dry.report.target.name) == ("micromix", "sm_121")
    assert dry.report.calibration.samples == 5  # every second one is held back
    assert not work.out.exists()
    real = mm.compile(
        work.model, dataclasses.replace(options, dry_run=False), calibration=feeds, output=work.out
    )
    assert real.report.target.name == "sm_90"
    assert {path.parent for path in real.files} == {work.out}
    assert not (work.folder / "elsewhere").exists()
    with pytest.raises(UsageError, match=r"none\.npz"):
        mm.compile(work.model, options)


def test_a_plan_in_python(work, feeds):
    first = mm.compile(work.model, calibration=feeds, output=work.out)
    options = mm.CompileOptions(plan=work.out / "plan.json", html=False)
    again = mm.compile(work.model, options, output=work.folder / "again")
    assert again.plan == first.plan
    assert again.report.policy.weights_reason == "there is no calibration data"


@pytest.mark.parametrize("of", [str, Path])
def test_analyze_with_words_alone(work, feeds, of):
    options = mm.AnalyzeOptions(sections=("layers",), samples=1, layers=1)
    result = mm.analyze(of(work.model), options, calibration=feeds, output=of(work.out))
    assert isinstance(result, mm.AnalysisResult)
    assert {path.name for path in result.files} == {"analysis.json", "analysis.html"}
    assert {path.parent for path in result.files} == {work.out}
    assert result.analysis.layers.measured == 1
    assert result.analysis.pareto is None
    assert result.analysis.policy == mm.CostPolicy.NAME


def test_analyze_needs_data(work):
    with pytest.raises(UsageError) as caught:
        mm.analyze(work.model)
    assert str(caught.value).startswith("calibration: there is no data")


def test_build_of_a_folder(work, feeds, tensorrt):  # noqa: F811
    options = mm.CompileOptions(build=mm.BuildOptions(backend="none"), html=False)
    made = mm.compile(work.model, options, calibration=feeds, output=work.out)
    assert made.engine is None and not (work.out / "engine.plan").exists()
    built = mm.build(str(work.out), mm.BuildOptions(optimization_level=2))
    assert isinstance(built, mm.BuildResult)
    assert work.out / "engine.plan" in built.files
    assert built.engine.choices.optimization_level == 2
    assert built.engine.device.name == "double of sm_120"
    assert mm.build(work.out).engine.choices.optimization_level is None
    engine = mm.compile(work.model, calibration=feeds, output=work.out).engine
    assert engine == work.out / "engine.plan"


def test_verify_files(work, feeds):
    compiled = mm.compile(work.model, calibration=feeds, output=work.out).model
    (found,) = mm.verify(str(work.model), str(compiled), feeds)
    assert isinstance(found, mm.VerificationReport)
    assert found.samples == 8 and found.passed
    assert 0.9 < found.outputs[0].cosine_mean < 1
    data = mm.DataOptions(verification=work.data)
    strict = mm.VerifyOptions(fail_below=0.99999, samples=2, layers=True)
    (failed,) = mm.verify(work.model, compiled, data, strict)
    assert (failed.samples, failed.passed) == (2, False)
    assert failed.first_bad_layer == "first"


def test_verify_an_engine(work, feeds, tensorrt):  # noqa: F811
    made = mm.compile(work.model, calibration=feeds, output=work.out)
    against = mm.verify(work.model, made.model, feeds, engine=str(made.engine))
    assert [report.passed for report in against] == [True, True]
    kernels, quantization = (report.outputs[0].cosine_mean for report in against)
    assert kernels > 0.99999 > quantization


def test_export_a_script(tmp_path, monkeypatch):
    for package in ("torch", "onnxscript"):
        pytest.importorskip(package, reason="exports need it")
    (tmp_path / "factory.py").write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Linear(4, 3), {'input': torch.ones(2, 4)}, None\n"
    )
    monkeypatch.chdir(tmp_path)
    source = f"{tmp_path / 'factory.py'}:make"
    path = mm.export(source, str(tmp_path / "out"), mm.ExportOptions(opset=18))
    assert path == tmp_path / "out" / "model.onnx"
    assert onnx.load(path, load_external_data=False).opset_import[0].version == 18
    assert mm.export(source) == Path("model.onnx")
    assert onnx.load("model.onnx", load_external_data=False).opset_import[0].version == 20


# Errors


def refusal(function):
    with pytest.raises(mm.MMCompileError) as caught:
        function()
    return caught.value


MISTAKES = {
    "calibration": (
        lambda work: mm.compile(work.model),
        "--calib: no calibration data and no plan was given; give --calib with real inputs, "
        "--plan with an earlier plan, or --calib random",
        "calibration: no calibration data and no plan was given; give calibration with real "
        "inputs, plan with an earlier plan, or calibration random",
    ),
    "factor": (lambda _: mm.MicroMixPolicy(factor=0), "--lambda: 0 is no", "factor: 0 is no"),
    "budget": (
        lambda _: mm.CostPolicy(target_speed=-1),
        "--target-speed: -1 is no budget",
        "target_speed: -1 is no budget",
    ),
    "two budgets": (
        lambda _: mm.CostPolicy(max_error=0.1, target_bits=5),
        "leave out --target-speed and --target-bits, or --max-error",
        "leave out target_speed and target_bits, or max_error",
    ),
    "gpu": (lambda w: mm.compile(w.model, gpu="x"), "--gpu: unknown GPU 'x'", "gpu: unknown GPU"),
    "policy": (lambda _: mm.make_policy("int4"), "--policy: no 'int4'", "policy: no 'int4'"),
    "weights": (
        lambda w: mm.compile(w.model, mm.CompileOptions(weights="gptq")),
        "--weights: error feedback needs inputs of the layers, and there is no calibration data; "
        "give --calib, or --weights nearest",
        "weights: error feedback needs inputs of the layers, and there is no calibration data; "
        "give calibration, or weights nearest",
    ),
    "effort": (
        lambda _: mm.CompileOptions(effort="most"),
        "--effort: no 'most'; use one of fast",
        "effort: no 'most'; use one of fast",
    ),
    "exclude": (
        lambda w: mm.compile(
            w.model,
            mm.CompileOptions(selection=mm.Selection(exclude=("sekond",))),
            calibration=w.data,
        ),
        "--exclude: no linear layer's node or weight matches 'sekond'",
        "exclude: no linear layer's",
    ),
    "fail below": (
        lambda w: mm.compile(
            w.model,
            mm.CompileOptions(verify=mm.VerifyOptions(enabled=False, fail_below=0.5)),
            calibration=w.data,
        ),
        "--fail-below",
        "fail_below",
    ),
    "opset": (
        lambda _: mm.export("none", options=mm.ExportOptions(opset=99)),
        "--opset: opset 99",
        "opset: opset 99",
    ),
    "workspace": (
        lambda _: mm.BuildOptions(workspace="much").workspace_bytes,
        "--workspace: 'much' is no size",
        "workspace: 'much' is no size",
    ),
    "samples": (
        lambda w: mm.compile(
            w.model, mm.CompileOptions(data=mm.DataOptions(samples=0)), calibration=w.data
        ),
        "--samples: 0 is below 1",
        "samples: 0 is below 1",
    ),
    "sections": (
        lambda _: mm.AnalyzeOptions(sections=("all",)),
        "--sections: no 'all'",
        "sections: no 'all'",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_errors_speak_python_and_the_command_line_speaks_options(what, work):
    function, typed, python = MISTAKES[what]
    error = refusal(lambda: function(work))
    assert typed in error.on_command_line()
    assert python in str(error)
    assert "--" not in str(error)
    assert error.where in error.on_command_line()  # options as they are typed
    assert "\n" not in str(error) + error.on_command_line()
    assert str(error).endswith(f"[{error.code}]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--calib: no calibration data and no plan was given; give --calib"),
        (["--policy", "micromix", "--lambda", "0"], "--lambda: 0.0 is no factor"),
        (["--weights", "gptq"], "give --calib, or --weights nearest"),
    ],
)
def test_the_same_errors_on_the_command_line(work, arguments, words):
    assert words in call(work.model, *arguments).line()


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("give --calib, or --weights nearest", "give calibration, or weights nearest"),
        ("add --calib.", "add calibration."),
        ("a--b and x--calib stay", "a--b and x--calib stay"),
        ("-- or --- or --5 stay", "-- or --- or --5 stay"),
        ("(--no-verify)", "(verify.enabled=False)"),
        ("--quantize-heads, --verify-samples", "heads, samples"),
    ],
)
def test_options_inside_a_sentence(text, python):
    error = UsageError("code", "here", text, text)
    assert str(error) == f"here: {python}; {python} [code]"
    assert error.on_command_line() == f"here: {text}; {text} [code]"


def kinds_of_options():
    """All dataclasses of the product that have options."""
    found = {PlanOptions, mm.AnalyzeOptions, *map(options_of, POLICIES.values())}
    for module in pkgutil.walk_packages(mm.__path__, "mmcompile."):
        leaf = module.name.rpartition(".")[2]
        text = (ROOT / Path(*module.name.split("."))).with_suffix(".py")
        if leaf == "__main__" or not text.exists() or "option(" not in text.read_text():
            continue
        for thing in vars(importlib.import_module(module.name)).values():
            if isinstance(thing, type) and dataclasses.is_dataclass(thing) and option_fields(thing):
                found.add(thing)
    return sorted(found, key=lambda kind: kind.__name__)


KINDS = kinds_of_options()


def test_kinds_of_options_are_those_of_the_api():
    public = {getattr(mm, name) for name in mm.__all__ if name.endswith(("Options", "Policy"))}
    assert public | {mm.Selection} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_options_and_arguments_are_told_apart_by_the_table(kind):
    """An error names the option; its argument is the field's name, or what the table says."""
    for field in option_fields(kind):
        assert argument_of(flag_of(field)) == field.name, field.name
        assert field.metadata["flag"] is None or flag_of(field) in ARGUMENTS
        assert destination_of(field) == flag_of(field)[2:].replace("-", "_")


TYPED = {
    name
    for each in cli.commands.values()
    for parameter in each.params
    if isinstance(parameter, click.Option)
    for name in (*parameter.opts, *parameter.secondary_opts)
    if name.startswith("--")
}
"""All options of all commands."""

COMMANDS_ALONE = {"--point": "bench", "--modelled": "bench", "--selftest": "doctor"}
"""Options that errors name, of commands that have no function in Python."""

STRAYS = {"--against", "--other-calib"}
"""Options whose arguments have another name that the table does not know; to get smaller."""


def test_the_table_has_options_that_there_are():
    assert ARGUMENTS.keys() <= TYPED
    for option in COMMANDS_ALONE:
        assert option in TYPED


def test_every_option_that_the_product_names_is_an_argument_in_python():
    arguments = {field.name for kind in KINDS for field in dataclasses.fields(kind)}
    for name in FUNCTIONS:
        arguments |= inspect.signature(getattr(mm, name)).parameters.keys()
    named = {
        node.value
        for path in PRODUCT.rglob("*.py")
        if path.relative_to(PRODUCT).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in TYPED
    }
    assert {"--calib", "--gpu", "--exclude", "--max-error", "--stats"} <= named
    unknown = {
        option
        for option in named - COMMANDS_ALONE.keys()
        if argument_of(option).split("=")[0].split(".")[0] not in arguments
    }
    assert unknown == STRAYS


def test_every_error_is_of_one_family():
    family = {
        thing
        for thing in vars(errors).values()
        if isinstance(thing, type) and issubclass(thing, mm.MMCompileError)
    }
    assert EnvironmentProblem in family
    codes = [kind.exit_code for kind in family if kind is not mm.MMCompileError]
    assert len(set(codes)) == len(codes)


def test_a_model_that_misses_the_demand_is_an_error_and_its_report_is_kept(work, feeds):
    options = mm.CompileOptions(verify=mm.VerifyOptions(fail_below=0.99999), html=False)
    error = refusal(lambda: mm.compile(work.model, options, calibration=feeds, output=work.out))
    assert error.code == "verification-failed"
    assert [path.name for path in work.out.iterdir()] == ["failed-report.json"]
    assert not load_report(work.out / "failed-report.json").verification.passed


def test_progress_is_told(work, feeds):
    told = []

    class Listening(Silent):
        def track(self, items, *about):
            told.append(about[0])
            return super().track(items, *about)

    mm.compile(work.model, calibration=feeds, output=work.out, progress=Listening())
    assert {"calibrating", "packing", "measuring sensitivity"} <= set(told)


def test_another_model_does_not_fit_the_data(work, feeds):
    onnx.save(two_layers(), work.model)
    wrong = [{"x": feed["x"][..., : CHANNELS - 1]} for feed in feeds]
    error = refusal(lambda: mm.compile(work.model, calibration=wrong, output=work.out))
    assert isinstance(error, UsageError)
    assert not work.out.exists()
