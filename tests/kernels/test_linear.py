"""From packing to y: layers of real models, as compiled, run by the emulated kernels.

Held against ONNX Runtime's result for the same node. Operands are bit-exact on both sides; the two
sums differ by at most twice the bound of docs/spec.md, section 7, plus one rounding of y each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from mmcompile.cuda.calls import Constants, DeviceLayer, Inputs
from mmcompile.cuda.layers import LayerShape, open_place
from mmcompile.cuda.machine import HostMachine
from mmcompile.cuda.number_types import NUMBER_TYPES
from mmcompile.data.options import DataOptions
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import LinearSegment
from mmcompile.model.source import load_model
from mmcompile.packed import PackedLinear, dequantize_activations, dequantize_weight
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.options import CompileOptions, VerifyOptions
from mmcompile.plan import GroupPlan
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.registry import make_policy
from mmcompile.verification.compiled import read_nodes
from tests.kernels.emulated import NATIVE, PORTABLE, configure, emulated_library
from tests.kernels.operands import TYPES
from tests.node_models import node_model

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ELEMENTS = (TensorProto.FLOAT, TensorProto.FLOAT16)
Layer = tuple[GroupPlan, PackedLinear]


def compiled_layers(model: Path, folder: Path, calibration, policy, **data) -> dict[str, Layer]:
    """The plan and the constants of every node of the compiled model, by name."""
    options = CompileOptions(
        output=folder,
        data=DataOptions(calibration=calibration, samples=16, **data),
        policy=policy,
        verify=VerifyOptions(enabled=False),
        html=False,
    )
    result = compile_model(model, options)
    return {
        node.name: (plan, packed) for node, plan, packed in read_nodes(load_model(result.model))
    }


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    from examples.minilm import prepare

    try:
        prepare.model_folder()
    except EnvironmentProblem as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("minilm")
    prepare.prepare(folder)
    return compiled_layers(
        folder / "model.onnx",
        folder / "out",
        folder / "calibration.txt",
        MicroMixPolicy(granularity=32),
        tokenizer=folder / "tokenizer.json",
    )


@pytest.fixture(scope="module", params=[("micromix", 384), ("cost", 352)], ids=["micromix", "cost"])
def babyllama(request, tmp_path_factory):
    """The layers under a policy, and K_pad of those that have 352 channels."""
    policy, padded = request.param
    checkpoint = SHARED / "babyllama105" / "model5000.bin"
    text = SHARED / "text" / "tinystories_valid_sample.txt"
    if not (checkpoint.exists() and text.exists()):
        pytest.skip("the BabyLlama checkpoint and the TinyStories excerpt are not on this machine")
    from examples.babyllama.export import prepare

    folder = tmp_path_factory.mktemp("babyllama")
    prepare(checkpoint, text, folder)
    data = folder / "calibration.npz"
    return compiled_layers(folder / "model.onnx", folder / "out", data, make_policy(policy)), padded


def run_onnxruntime(layer: Layer, x: np.ndarray, kind: int) -> np.ndarray:
    """y of ONNX Runtime for the node alone."""
    plan, packed = layer
    codes, scales = packed.weight.view(np.uint8), packed.scales.view(np.uint8)
    model = node_model(plan, codes, scales, packed.bias, elem_type=ELEMENTS[kind])
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


def run_kernels(layer: Layer, x: np.ndarray, kind: int, device: int) -> np.ndarray:
    """y of both emulated kernels, one after the other."""
    plan, packed = layer
    segments = tuple(
        LinearSegment(s.channels, s.activation.id, s.weight.id, s.act_threshold)
        for s in plan.segments
    )
    scales = plan.act_tensor_scale, plan.weight_tensor_scale
    shape = LayerShape(plan.in_channels, packed.bias.size, segments, *scales)
    place = open_place(HostMachine(), emulated_library(), device)
    inputs = Inputs(x.view(NUMBER_TYPES[kind].bits), (kind, kind))
    made = DeviceLayer(place, shape, Constants(*packed.constants()), inputs)
    assert made.linear.info.padded_channels == packed.order.size
    return made.run().view(TYPES[kind])


def check(layer: Layer, rows: int, kind: int, device: int) -> None:
    plan, packed = layer
    rng = np.random.default_rng(plan.in_channels + rows)
    x = rng.normal(size=(rows, plan.in_channels)) * np.exp2(2 * rng.normal(size=plan.in_channels))
    x = x.astype(TYPES[kind])
    expected = run_onnxruntime(layer, x, kind).astype(np.float64)
    y = run_kernels(layer, x, kind, device).astype(np.float64)

    x_hat = dequantize_activations(x.astype(np.float32), plan).astype(np.float64)
    w_hat = dequantize_weight(packed, plan).astype(np.float64)
    magnitude = np.abs(x_hat) @ np.abs(w_hat).T + np.abs(packed.bias)
    terms = packed.order.size + 2
    sums = terms * 2.0**-24 / (1 - terms * 2.0**-24) * magnitude
    rounding = 2.0**-11 * (np.abs(expected) + sums) if kind == 1 else 0
    error, bound = np.abs(y - expected), 2 * (sums + rounding)
    assert (error <= bound).all(), f"off by {(error / bound).max():.3g} bounds"


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
def test_layers_of_minilm(minilm, device):
    configure(emulated_library(), multiprocessors=4)
    block = [layer for name, layer in minilm.items() if "layer.0" in name]
    assert {plan.in_channels for plan, _ in block} == {384, 1536}
    assert any(len(plan.segments) == 3 for plan, _ in block)
    for layer in block:
        check(layer, 5, 0, device)
    check(block[0], 37, 1, device)


@pytest.mark.parametrize("device", [NATIVE, PORTABLE])
def test_all_layers_of_babyllama_with_352_channels(babyllama, device):
    configure(emulated_library(), multiprocessors=4)
    layers, padded = babyllama
    layers = [layer for layer in layers.values() if layer[0].in_channels == 352]
    assert len(layers) == 5
    for rows, layer in enumerate(layers, 1):
        assert layer[1].order.size == padded
        check(layer, 7 * rows, rows % 2, device)
