"""Exports BabyLlama, a character-level language model of under a million parameters, to ONNX.

    python examples/babyllama/export.py model5000.bin tinystories.txt build/babyllama

The first file is a llama2.c checkpoint of version 0, with its vocabulary `tok105.vocab` beside it
(github.com/EN10/BabyLlama, tok105/); the second is any English text, here of TinyStories. The
folder then holds what the compiler asks for:

    model.onnx, model.onnx.data   input_ids int64[batch, sequence] → logits
    calibration.npz               input_ids int64[n, 256], the first quarter of the text
    heldout.npz                   the rest, to measure with

Its feed-forward width of 352 is no multiple of 128, which makes it a good test of padding.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn
from torch.nn import functional

from mmcompile.errors import MMCompileError, UsageError
from mmcompile.exporting import export_module

BOS = 1
UNKNOWN = 0
SPACE = "▁"
"""Sentencepiece's sign for a space; it also stands at the start of each line."""


@dataclass(frozen=True)
class Shape:
    """The header of a version-0 file: seven int32, in this order."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int


class Attention(nn.Module):
    """Causal attention with grouped key/value heads and rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        head = shape.width // shape.heads
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.wq = nn.Linear(shape.width, shape.heads * head, bias=False)
        self.wk = nn.Linear(shape.width, shape.kv_heads * head, bias=False)
        self.wv = nn.Linear(shape.width, shape.kv_heads * head, bias=False)
        self.wo = nn.Linear(shape.heads * head, shape.width, bias=False)

    def forward(
        self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Mixes x [batch, sequence, width] over its positions.

        Args:
            x: the layer's normalized input.
            cosine: [sequence, head/2], like sine.
            sine: of the angle of each position and pair.
            mask: [sequence, sequence], 0 or minus infinity, added to the scores.
        """
        query = rotate(self.wq(x).unflatten(-1, (self.heads, -1)), cosine, sine)
        key = rotate(self.wk(x).unflatten(-1, (self.kv_heads, -1)), cosine, sine)
        value = self.wv(x).unflatten(-1, (self.kv_heads, -1))
        repeats = self.heads // self.kv_heads
        key, value = (t.repeat_interleave(repeats, dim=2).transpose(1, 2) for t in (key, value))
        scores = query.transpose(1, 2) @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        mixed = torch.softmax(scores + mask, dim=-1) @ value
        return self.wo(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One transformer layer: attention and a gated feed-forward, each after an RMSNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.attention = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.w1 = nn.Linear(shape.width, shape.hidden, bias=False)
        self.w2 = nn.Linear(shape.hidden, shape.width, bias=False)
        self.w3 = nn.Linear(shape.width, shape.hidden, bias=False)

    def forward(
        self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Maps x as `Attention.forward` does, with the same arguments."""
        x = x + self.attention(self.attention_norm(x), cosine, sine, mask)
        y = self.ffn_norm(x)
        return x + self.w2(functional.silu(self.w1(y)) * self.w3(y))


class Llama(nn.Module):
    """The model; its output head shares the embedding's weight."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        table = torch.empty(shape.positions, shape.width // shape.heads // 2)
        self.register_buffer("cosine", table)
        self.register_buffer("sine", table.clone())

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64[batch, sequence] → logits [batch, sequence, vocabulary]."""
        length = input_ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x, self.cosine[:length], self.sine[:length], mask)
        return self.head(self.norm(x))


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions on interleaved pairs, as llama2.c has them: (x0, x1), (x2, x3) and so on.

    Args:
        x: [batch, sequence, heads, head].
        cosine: [sequence, head/2], like sine.
        sine: of the angle of each position and pair.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = cosine[:, None], sine[:, None]
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2)


def read_checkpoint(path: Path) -> Llama:
    """Reads a llama2.c version-0 file: the header, then fp32 tensors, stacked over the layers.

    Raises:
        UsageError: the file is no such checkpoint with a shared output head.
    """
    header = np.fromfile(path, "<i4", count=7)
    values = np.fromfile(path, "<f4", offset=header.nbytes)
    remedy = "give a llama2.c version-0 file"
    if header.size < 7 or min(header) <= 0:
        raise UsageError("checkpoint-header", path, "no header of seven positive sizes", remedy)
    shape = Shape(*header.tolist())
    model = Llama(shape).eval()
    layers = list(model.layers)
    order = [
        model.embedding.weight,
        *(layer.attention_norm.weight for layer in layers),
        *(layer.attention.wq.weight for layer in layers),
        *(layer.attention.wk.weight for layer in layers),
        *(layer.attention.wv.weight for layer in layers),
        *(layer.attention.wo.weight for layer in layers),
        *(layer.ffn_norm.weight for layer in layers),
        *(layer.w1.weight for layer in layers),
        *(layer.w2.weight for layer in layers),
        *(layer.w3.weight for layer in layers),
        model.norm.weight,
        model.cosine,
        model.sine,
    ]
    if values.size != sum(tensor.numel() for tensor in order):
        raise UsageError("checkpoint-size", path, f"{values.size} values do not fit", remedy)
    with torch.no_grad():
        start = 0
        for tensor in order:
            part = values[start : start + tensor.numel()].reshape(tensor.shape)
            tensor.copy_(torch.from_numpy(part.copy()))
            start += tensor.numel()
    return model


def tokenize(text: str, vocabulary: Path) -> list[int]:
    """Characters to ids, as sentencepiece does it with this vocabulary, line by line.

    A line gets a leading space, spaces become `▁`, a character outside the vocabulary becomes
    id 0; ends of lines have no id of their own.
    """
    lines = vocabulary.read_text(encoding="utf-8").splitlines()
    ids = {line.split("\t")[0]: i for i, line in enumerate(lines)}
    characters = "".join(
        SPACE + line.strip().replace(" ", SPACE) for line in text.split("\n") if line.strip()
    )
    return [ids.get(character, UNKNOWN) for character in characters]


def chunk(ids: list[int], length: int) -> npt.NDArray[np.int64]:
    """Rows of `length` ids, each BOS and the next `length - 1` of the text; an odd end is left."""
    count = len(ids) // (length - 1)
    rows = np.array(ids[: count * (length - 1)], np.int64).reshape(count, length - 1)
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=BOS)


def surprise(model: Path, input_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Negative log likelihood of each id after a row's first, as ONNX Runtime computes it.

    Args:
        model: the exported model.
        input_ids: int64[rows, length].

    Returns:
        float64[rows, length - 1], in nats.
    """
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = []
    for rows in np.array_split(input_ids, -(-len(input_ids) // 16)):
        logits = session.run(None, {"input_ids": rows[:, :-1]})[0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        picked = np.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
        found.append(np.log(np.exp(logits).sum(axis=-1)) - picked)
    return np.concatenate(found)


def prepare(checkpoint: Path, text: Path, folder: Path) -> None:
    """Writes model and tokens into `folder` and prints the model's perplexity on the text."""
    model = read_checkpoint(checkpoint)
    vocabulary = checkpoint.with_name("tok105.vocab")
    rows = chunk(tokenize(text.read_text(encoding="utf-8"), vocabulary), len(model.cosine))
    calibration, heldout = np.split(rows, [len(rows) // 4])
    written = export_module(
        model,
        {"input_ids": torch.zeros(2, 32, dtype=torch.int64)},
        folder / "model.onnx",
        dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}},
        outputs=["logits"],
    )
    print(f"babyllama: wrote {written}")
    for name, part in (("calibration.npz", calibration), ("heldout.npz", heldout)):
        np.savez(folder / name, input_ids=part)
        print(f"babyllama: wrote {folder / name}: {len(part)} rows of {part.shape[1]} tokens")
    nats = surprise(written, rows)
    for place, part in (("the whole text", nats), ("heldout.npz", nats[len(calibration) :])):
        print(f"babyllama: character perplexity {np.exp(part.mean()):.3f} on {place}")


def main() -> int:
    """Command line of the example; returns the exit code."""
    parser = argparse.ArgumentParser(description="Export BabyLlama to ONNX.")
    parser.add_argument("checkpoint", type=Path, help="llama2.c file, tok105.vocab beside it")
    parser.add_argument("text", type=Path, help="English text to make tokens of")
    parser.add_argument("folder", type=Path, help="folder to write, for example build/babyllama")
    arguments = parser.parse_args()
    try:
        prepare(arguments.checkpoint, arguments.text, arguments.folder)
    except MMCompileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
