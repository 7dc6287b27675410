"""Products by cuBLAS, to compare with, where torch with CUDA is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from mmcompile.cuda.machine import Enqueue

Product = Callable[[int, int, int, int], list[Enqueue]]
"""Calls of a product of [rows, K] by [K, N]: K, N, rows, copies of the operands."""


def cublas() -> dict[str, Product]:
    """Products in `fp16`, `bf16` and `fp8`; empty where torch or its CUDA is not there."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    cuda: Any = torch.cuda
    if not cuda.is_available():
        return {}
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    return {name: partial(_calls, kind) for name, kind in types.items()}


def _calls(kind: Any, k: int, n: int, rows: int, copies: int) -> list[Enqueue]:
    import torch

    cuda: Any = torch.cuda
    is_fp8 = kind == torch.float8_e4m3fn
    out = torch.empty((rows, n), device="cuda", dtype=torch.bfloat16 if is_fp8 else kind)
    one = torch.ones((), device="cuda")

    def operand(length: int) -> Any:
        return torch.randn((length, k), device="cuda", dtype=torch.bfloat16).to(kind)

    def call(x: Any, weight: Any) -> Enqueue:
        def enqueue(stream: int | None) -> None:
            with cuda.stream(cuda.ExternalStream(stream or 0)):
                if is_fp8:
                    # Without the quantization of x, which stands in ours: a generous baseline.
                    torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.bfloat16)
                else:
                    torch.mm(x, weight.t(), out=out)

        return enqueue

    return [call(operand(rows), operand(n)) for _ in range(copies)]
