"""The models that the benchmarks run on, each made once below build/bench.

minilm      all-MiniLM-L6-v2 as examples/minilm/prepare.py exports it
babyllama   BabyLlama as examples/babyllama/export.py does, where ../shared/data is at hand
llama       444 MB of fp32: 8 layers of a hidden-1024 Llama with random weights
small       tests' two-layer language models with random weights, by name and seed
large       about 3 GB of fp32: a chain of MatMuls with random weights
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "bench"
DATA = ROOT.parent / "shared" / "data"
"""Text and models that are not in the repository."""
WIKITEXT = DATA / "text" / "wikitext2_valid_tokenized.txt"

MODEL_FILE = "model.onnx"
LLAMA_SAMPLES, LLAMA_TOKENS, LLAMA_VOCABULARY = 8, 64, 8000
_LARGE_WIDTH, _LARGE_HIDDEN = 4096, 11008


def use_work_folder() -> None:
    """Keeps statistics that a compilation caches below build/bench, too."""
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ["MMCOMPILE_CACHE_DIR"] = str(WORK / "cache")


def minilm(folder: Path | None = None) -> Path:
    """The folder with MiniLM's model.onnx, tokenizer.json and texts."""
    folder = folder or WORK / "minilm"
    if not (folder / MODEL_FILE).is_file():
        _run_example("minilm/prepare.py", folder)
    return folder


def babyllama(folder: Path | None = None) -> Path | None:
    """The folder with BabyLlama's model and its two .npz files; None where its data is absent."""
    folder = folder or WORK / "babyllama"
    if not (folder / MODEL_FILE).is_file():
        checkpoint = DATA / "babyllama105" / "model5000.bin"
        text = DATA / "text" / "tinystories_valid_sample.txt"
        if not (checkpoint.is_file() and text.is_file()):
            return None
        _run_example("babyllama/export.py", checkpoint, text, folder)
    return folder


def llama() -> tuple[Path, Path]:
    """The 444 MB Llama, and calibration.npz of 8 × 64 random tokens for it."""
    folder = WORK / "llama444"
    model, data = folder / MODEL_FILE, folder / "calibration.npz"
    if not model.is_file():
        # In a process of its own: PyTorch's memory is not to be part of any measurement.
        code = "import sys; from pathlib import Path; from benchmarks import models;"
        code += "models.export_llama(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    if not data.is_file():
        shape = (LLAMA_SAMPLES, LLAMA_TOKENS)
        ids = np.random.default_rng(0).integers(0, LLAMA_VOCABULARY, shape, np.int64)
        np.savez(data, input_ids=ids, attention_mask=np.ones_like(ids))
    return model, data


def export_llama(folder: Path) -> None:
    """Makes and exports the Llama; norm weights are log-normal, as channels of trained models."""
    import torch
    import transformers

    from mmcompile.exporting import export_model

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=LLAMA_VOCABULARY,
        max_position_embeddings=512,
    )
    network = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.mul_(torch.exp(torch.randn_like(parameter) * 0.7))
    network.save_pretrained(folder / "hugging_face")
    export_model(str(folder / "hugging_face"), folder / MODEL_FILE)


def small(name: str, seed: int) -> Path:
    """A model of `tests.models.SMALL_MODELS` with the random weights of a seed."""
    from tests.models import export_small_model

    folder = WORK / "small" / f"{name}-{seed}"
    if not (folder / MODEL_FILE).is_file():
        export_small_model(name, folder, seed)
    return folder / MODEL_FILE


def large(gigabytes: float = 3.0) -> Path:
    """A chain of MatMul, Tanh of alternating 4096 → 11008 → 4096 channels, written as a stream.

    Every layer has other random weights, so that nothing can be shared; each is 180 MB.
    """
    folder = WORK / f"large{gigabytes:g}"
    model = folder / MODEL_FILE
    if model.is_file():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    size = _LARGE_WIDTH * _LARGE_HIDDEN
    layers = max(2, 2 * round(gigabytes * 1e9 / (8 * size)))
    generator = np.random.Generator(np.random.SFC64(0))
    nodes, weights, value = [], [], "x"
    with (folder / "model.onnx.data").open("wb") as file:
        for layer in range(layers):
            shape = (_LARGE_WIDTH, _LARGE_HIDDEN)[:: -1 if layer % 2 else 1]
            weight = TensorProto(name=f"weight{layer}", data_type=TensorProto.FLOAT, dims=shape)
            weight.data_location = TensorProto.EXTERNAL
            for key, entry in (
                ("location", "model.onnx.data"),
                ("offset", str(file.tell())),
                ("length", str(4 * size)),
            ):
                weight.external_data.add(key=key, value=entry)
            weights.append(weight)
            for _ in range(shape[0]):
                row = generator.standard_normal(shape[1], np.float32)
                file.write((row * np.float32(shape[0] ** -0.5)).data)
            product, output = f"product{layer}", f"activation{layer}"
            nodes.append(helper.make_node("MatMul", [value, weight.name], [product], product))
            nodes.append(helper.make_node("Tanh", [product], [output], output))
            value = output
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", _LARGE_WIDTH])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["rows", _LARGE_WIDTH])],
        weights,
    )
    opset = [helper.make_opsetid("", 20)]
    model.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()
    )
    return model


def weight_bytes(model: Path) -> int:
    """Bytes of a model's file and its external data."""
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))


def _run_example(script: str, *arguments: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True)
