"""How a PyTorch model is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmcompile.options import option

Dtype = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class ExportOptions:
    """How a PyTorch model is exported.

    Attributes:
        dtype: floating-point type of weights and activations.
        opset: ONNX opset, 18 to 20.
        task: one of `hugging_face.TASKS`; by default what `config.json` says.
        sequence_length: tokens of the example that a Hugging Face model is traced with.
    """

    dtype: Dtype = option(
        "fp32", "Type of weights and activations.", choices=("fp32", "fp16", "bf16")
    )
    opset: int = option(20, "ONNX opset, 18 to 20.", metavar="N")
    task: str | None = option(
        None, "Task of a Hugging Face model; by default what its config says.", metavar="TASK"
    )
    sequence_length: int = 32
