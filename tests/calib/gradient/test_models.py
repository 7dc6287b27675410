"""Whole models: gradients at the outputs of all linear layers against torch's autograd."""

import numpy as np
import pytest

from mmcompile.calib.gradient import differentiate
from mmcompile.model.session import open_session
from tests.compiling import prepare
from tests.models import SMALL_MODELS, SMALL_VOCABULARY, small_model

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch", reason="the oracle is torch's autograd")

# Two float32 evaluations that sum in different orders: sums of up to 1536 products, each rounded
# to 2^-24 relative, of the size of the largest gradient: 1536 · 2^-24 = 9.2e-5.
TOLERANCE = 1e-4


def inputs_of(model, shape, vocabulary, seed=0):
    """Random ids; the last row is padded at its end."""
    generator = np.random.default_rng(seed)
    mask = np.ones(shape, np.int64)
    if shape[0] > 1:
        mask[-1, shape[1] // 2 :] = 0
    known = {
        "input_ids": generator.integers(0, vocabulary, shape),
        "attention_mask": mask,
        "token_type_ids": np.zeros(shape, np.int64),
    }
    return {value.name: known[value.name] for value in model.graph.input}


def torch_gradients(model, inputs, weights):
    """Gradients at the outputs of all modules by path, flattened to rows, and the output."""
    found, hooks = {}, []

    def keep(path):
        def note(gradient):
            found[path] = gradient.flatten(0, -2).numpy()

        def hook(_module, _inputs, output):
            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(note)

        return hook

    for path, module in model.named_modules():
        hooks.append(module.register_forward_hook(keep(path)))
    result = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    output = result if isinstance(result, torch.Tensor) else result.to_tuple()[0]
    (output * torch.from_numpy(weights)).sum().backward()
    for hook in hooks:
        hook.remove()
    return found


def check(prepared, model, inputs, weights, tolerance=TOLERANCE):
    """Compares the gradients at all layers; returns the largest relative error."""
    outputs = {site.node.rpartition("/")[0]: site.output for site in prepared.sites}
    graph = differentiate(prepared.source.proto, list(outputs.values()))
    assert not graph.missing
    expected = torch_gradients(model, inputs, weights)
    session = open_session(graph.model, prepared.source.folder)
    (seed,) = graph.seeds.values()
    names = list(graph.gradients.values())
    values = session.run(names, inputs | {seed: weights})
    actual = dict(zip(graph.gradients, values, strict=True))
    worst = 0.0
    for path, tensor in outputs.items():
        oracle = expected[path]
        assert np.abs(oracle).max() > 0
        value = actual[tensor].reshape(oracle.shape)
        error = np.abs(value - oracle).max() / np.abs(oracle).max()
        assert error <= tolerance, (path, error)
        worst = max(worst, error)
    return worst


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_small_models(exported, name, tmp_path):
    prepared = prepare(exported(name), tmp_path)
    inputs = inputs_of(prepared.source.proto, (3, 12), SMALL_VOCABULARY)
    width = SMALL_VOCABULARY if name != "bert" else 64
    weights = np.random.default_rng(1).standard_normal((3, 12, width)).astype(np.float32)
    assert len(prepared.sites) >= 9
    check(prepared, small_model(name), inputs, weights)


def test_minilm(exported, tmp_path):
    prepared = prepare(exported("minilm"), tmp_path)
    from transformers import AutoModel

    from examples.minilm.prepare import model_folder

    model = AutoModel.from_pretrained(
        model_folder(), local_files_only=True, attn_implementation="eager"
    ).eval()
    inputs = inputs_of(prepared.source.proto, (2, 24), 30000)
    weights = np.random.default_rng(1).standard_normal((2, 24, 384)).astype(np.float32)
    assert len(prepared.sites) == 36
    check(prepared, model, inputs, weights)


def test_babyllama(tmp_path):
    """Rotary positions on interleaved pairs, and PyTorch's own RMSNorm; two layers at random."""
    from examples.babyllama.export import Llama, Shape
    from mmcompile.exporting import export_module

    torch.manual_seed(0)
    shape = Shape(64, 176, layers=2, heads=4, kv_heads=2, vocabulary=105, positions=64)
    model = Llama(shape).eval()
    angles = torch.outer(torch.arange(64), 10000.0 ** (-torch.arange(8) / 8))
    model.cosine.copy_(angles.cos())
    model.sine.copy_(angles.sin())
    path = export_module(
        model,
        {"input_ids": torch.zeros(2, 32, dtype=torch.int64)},
        tmp_path / "model.onnx",
        dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}},
    )
    prepared = prepare(path, tmp_path)
    ids = np.random.default_rng(0).integers(3, 105, (2, 20))
    weights = np.random.default_rng(1).standard_normal((2, 20, 105)).astype(np.float32)
    assert len(prepared.sites) == 15
    check(prepared, model, {"input_ids": ids}, weights)


def test_vision_transformer(tmp_path):
    """Patches by a convolution, which lies before all layers; scaled-dot-product attention."""
    from transformers import ViTConfig, ViTModel

    from mmcompile.exporting import export_module

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()

    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = model

        def forward(self, pixels):
            return self.vit(pixels).last_hidden_state

    module = Hidden()
    path = export_module(module, {"pixels": torch.zeros(2, 3, 32, 32)}, tmp_path / "model.onnx")
    prepared = prepare(path, tmp_path)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((2, 17, 64)).astype(np.float32)
    assert len(prepared.sites) == 12
    check(prepared, module, {"pixels": pixels}, weights)
