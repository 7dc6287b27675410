"""The engine benchmark on a double that behaves as TensorRT does, failures included."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mmcompile.backends.engines.interface import TensorSpec
from mmcompile.backends.engines.layer_precision import Expected
from mmcompile.bench.engines import INPUT_SETS, Bench, Rig, Variant, bench_engines, make_input
from mmcompile.bench.points import Point
from mmcompile.bench.profiles import join_profile, linear_seconds
from mmcompile.bench.results import EngineBench
from mmcompile.errors import EnvironmentProblem
from tests.bench.machine import STREAM, FakeMachine

POINTS = (Point(1, 1), Point(2, 8))
LAYERS = [
    {
        "Name": "fc1_gemm",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP8 format"}],
        "Outputs": [{"Name": "h", "Format/Datatype": "Half"}],
        "Metadata": "[ONNX Layer: /fc1/MatMul]\x1e[ONNX Layer: /fc1/Add]",
    },
    {"Name": "/act/Relu", "LayerType": "PointWiseV2", "Inputs": [], "Outputs": []},
    {"Name": "/fc2/MatMul", "LayerType": "PluginV3", "PluginType": "MicroMixLinear"},
]
NODES = ("/fc1/MatMul", "/fc1/Add", "/act/Relu", "/fc2/MatMul", "/fc2/Add")
LINEARS = ("/fc1/MatMul", "/fc2/MatMul")


class Engine:
    """Takes time by its variant and rows; refuses batches above its profile."""

    inputs = (TensorSpec("input_ids", "int64", None), TensorSpec("attention_mask", "int64", None))
    outputs = (TensorSpec("logits", "float32", None),)

    def __init__(self, machine, speed=1.0, largest=100, starts=True):
        self.machine, self.speed, self.largest, self.starts = machine, speed, largest, starts
        self.weights = machine.allocate(5000)
        self.bound, self.shapes, self.runs, self.profiled = {}, {}, [], False

    def set_input(self, name, shape, address):
        if shape[0] > self.largest:
            return False
        self.shapes[name], self.bound[name] = shape, address
        return True

    def set_output(self, name, address):
        self.bound[name] = address
        return True

    def shape(self, _name):
        return (*self.shapes["input_ids"], 32)

    def enqueue(self, stream):
        assert stream == STREAM
        count = int(np.prod(self.shapes["input_ids"]))
        values = self.machine.read(self.bound["input_ids"], 8 * count).view(np.int64)
        self.runs.append(tuple(values))
        self.machine.pass_time(1e-3 * count / self.speed * (10 if self.profiled else 1))
        return self.starts

    def inspection(self):
        return json.dumps({"Layers": LAYERS})

    def profile(self, stream):
        self.profiled = True  # TensorRT keeps the profiler attached
        self.enqueue(stream)
        return {"fc1_gemm": 3e-4, "/act/Relu": 1e-4, "/fc2/MatMul": 6e-4}


def variants(*names):
    return [Variant(name, Path(f"{name}.onnx")) for name in names]


def bench(profiled=True):
    return Bench(
        model="model.onnx",
        points=POINTS,
        shapes=lambda p: dict.fromkeys(("input_ids", "attention_mask"), (p.batch, p.sequence)),
        nodes=NODES,
        linears=LINEARS,
        versions={"TensorRT": "11.4"},
        profiled=profiled,
    )


def run(machine=None, build=None, opened=None, names=("FP16", "MicroMix")):
    machine = machine or FakeMachine()
    build = build or (lambda variant: variant.name.encode() * 1000)
    opened = opened or (
        lambda _, variant: Engine(machine, 4.0 if variant.name == "MicroMix" else 1.0)
    )
    return bench_engines(bench(), variants(*names), Rig(build, opened, machine))


def test_all_variants_are_timed_alike_and_compared():
    found = run()
    assert [v.name for v in found.variants] == ["FP16", "MicroMix"]
    for variant, speed in zip(found.variants, (1, 4), strict=True):
        assert variant.error is None
        assert variant.engine_bytes == 1000 * len(variant.name)
        assert variant.device_bytes == 5000
        one, many = variant.points
        assert one.seconds == pytest.approx(1e-3 / speed)
        assert many.seconds == pytest.approx(16e-3 / speed)
        assert (one.phase, many.phase) == ("decode", "prefill")
        assert one.inputs == many.inputs == INPUT_SETS
        assert one.graph and one.replays >= 7 and one.spread == pytest.approx(0, abs=1e-6)
    assert found.speed_over("FP16")["MicroMix", 2, 8] == pytest.approx(4)
    assert found.kind == "measured"
    assert msgspec.json.decode(msgspec.json.encode(found), type=EngineBench) == found


def test_what_the_layers_run_is_held_against_what_the_graph_asks_for():
    kernel = {"TacticName": "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n", "Inputs": []}
    told = [LAYERS[0] | kernel, *LAYERS[1:]]

    class Inspected(Engine):
        def inspection(self):
            return json.dumps({"Layers": told})

    asked = (Expected("/fc1/MatMul", "FP8"), Expected("/fc2/MatMul", "", plugin=True))
    machine = FakeMachine()
    variants = [Variant("FP16", Path("a.onnx")), Variant("FP8", Path("b.onnx"), expected=asked)]
    rig = Rig(lambda _: b"plan", lambda *_: Inspected(machine), machine)
    found = bench_engines(bench(profiled=False), variants, rig)
    fp16, fp8 = found.variants
    assert fp16.is_realized and not fp8.is_realized
    assert fp8.precision.realized.counts == {"FP16": 1, "plugin": 1}
    assert [entry.node for entry in fp8.precision.lost] == ["/fc1/MatMul"]
    assert {name for name, *_ in found.speed_over("FP16")} == {"FP16"}
    assert msgspec.json.decode(msgspec.json.encode(found), type=EngineBench) == found


def test_an_inspector_that_fails_leaves_the_times():
    machine = FakeMachine()

    class Blind(Engine):
        def inspection(self):
            raise RuntimeError("no inspector here")

    (variant,) = run(machine, opened=lambda *_: Blind(machine), names=("FP16",)).variants
    assert variant.points[0].seconds and variant.precision.realized.source == "nothing"


def test_inputs_are_rotated():
    engines = []

    def opened(plan, variant):
        machine = shared
        engines.append(Engine(machine))
        return engines[-1]

    shared = FakeMachine()
    run(shared, opened=opened, names=("FP16",))
    large = [tokens for tokens in engines[0].runs if len(tokens) == 16]
    assert len(set(large)) == INPUT_SETS
    rounds = [large[i : i + INPUT_SETS] for i in range(0, 4 * INPUT_SETS, INPUT_SETS)]
    assert all(len(set(turn)) == INPUT_SETS for turn in rounds)
    assert all(0 < token < 100 for tokens in large for token in tokens)


def test_profiles_come_after_all_times():
    """The double is ten times slower once profiled; no time may show it."""
    (variant,) = run(names=("FP16",)).variants
    assert variant.points[1].seconds == pytest.approx(16e-3)
    layers = variant.points[1].layers
    assert [layer.linears for layer in layers] == [("/fc1/MatMul",), (), ("/fc2/MatMul",)]


def test_memory_is_given_back_between_variants():
    machine = FakeMachine()
    run(machine)
    assert machine.live == 0


def refuse(error):
    def function(*arguments):
        raise error

    return function


PROBLEM = EnvironmentProblem("plugin-not-found", "node fc", "no plugin", "set MMCOMPILE_PLUGIN")


@pytest.mark.parametrize(
    ("build", "opened", "words"),
    [
        (lambda _: b"", None, "returned nothing"),
        (refuse(PROBLEM), None, "no plugin; set MMCOMPILE_PLUGIN [plugin-not-found]"),
        (refuse(RuntimeError("pybind11\nsays no")), None, "pybind11 says no"),
        (refuse(MemoryError("host")), None, "out of memory: host"),
        (None, refuse(EnvironmentProblem("engine-rejected", "e", "bad", "build")), "bad; build"),
        (None, refuse(MemoryError()), "out of memory: MemoryError"),
    ],
)
def test_a_variant_that_fails_is_told_and_the_others_are_timed(build, opened, words):
    machine = FakeMachine()

    def some_build(variant):
        return build(variant) if build and variant.name == "FP8" else b"plan"

    def some_open(plan, variant):
        return opened() if opened and variant.name == "FP8" else Engine(machine)

    found = run(machine, some_build, some_open, ("FP16", "FP8", "MicroMix"))
    first, broken, last = found.variants
    assert words in broken.error
    assert broken.points == ()
    assert all(point.seconds for each in (first, last) for point in each.points)
    assert ("FP8", 1, 1) not in found.speed_over("FP16")


def test_a_bug_is_not_swallowed():
    with pytest.raises(KeyError):
        run(build=refuse(KeyError("ours")))


def test_points_fail_alone():
    machine = FakeMachine()
    found = run(machine, opened=lambda *_: Engine(machine, largest=1), names=("FP16",))
    one, many = found.variants[0].points
    assert one.seconds and one.error is None
    assert many.seconds is None
    assert "does not take input input_ids of shape (2, 8)" in many.error
    assert many.layers == ()


def test_too_little_memory_for_a_point():
    machine = FakeMachine(memory=5000 + INPUT_SETS * 16 + 1024)
    one, many = run(machine, names=("FP16",)).variants[0].points
    assert one.seconds
    assert many.error.startswith("out of memory: ")


def test_calls_that_do_not_start():
    machine = FakeMachine()
    found = run(machine, opened=lambda *_: Engine(machine, starts=False))
    assert "a call did not start" in found.variants[0].points[0].error


def test_without_a_profiler_the_time_stays():
    machine = FakeMachine()

    class Blind(Engine):
        def profile(self, _stream):
            raise RuntimeError("no profiler here")

    point = run(machine, opened=lambda *_: Blind(machine)).variants[0].points[0]
    assert point.seconds and point.note == "no profile: no profiler here"


def test_without_graphs_the_result_says_so():
    point = run(FakeMachine(captures=False)).variants[0].points[0]
    assert not point.graph and "no CUDA graph" in point.note


def test_profiles_are_joined_with_nodes_and_types():
    runs = [{"fc1_gemm": 2.0, "/act/Relu": 1.0, "/fc2/MatMul": 1.0}] * 3 + [{"fc1_gemm": 99.0}]
    first, relu, plugin = join_profile(LAYERS, runs, NODES, LINEARS)
    assert first.nodes == ("/fc1/MatMul", "/fc1/Add")
    assert first.linears == ("/fc1/MatMul",)
    assert (first.seconds, first.share) == (2.0, 0.5)
    assert first.precision == "FP8 → FP16"
    assert relu.nodes == ("/act/Relu",) and relu.linears == ()
    assert plugin.kind == "MicroMixLinear" and plugin.linears == ("/fc2/MatMul",)
    assert linear_seconds((first, relu, plugin)) == 3.0


def test_nothing_profiled_is_nothing_joined():
    assert join_profile([], [], NODES, LINEARS) == ()


@pytest.mark.parametrize(
    ("name", "dtype", "check"),
    [
        ("input_ids", "int64", lambda v: (v > 0).all() and (v < 100).all()),
        ("attention_mask", "int64", lambda v: (v == 1).all()),
        ("mask", "bool", lambda v: v.all()),
        ("token_type_ids", "int32", lambda v: (v == 0).all()),
        ("position_ids", "int64", lambda v: (v == np.arange(6)).all()),
        ("x", "bfloat16", lambda v: v.astype(np.float32).std() > 0.3),
    ],
)
def test_inputs_that_models_can_take(name, dtype, check):
    values = make_input(np.random.default_rng(0), TensorSpec(name, dtype, None), (4, 6))
    assert values.shape == (4, 6)
    assert values.dtype.name == dtype
    assert check(values)
