"""What all but the compiled linears of a model may be asked to compute in."""

from __future__ import annotations

import enum


class Rest(enum.StrEnum):
    """A half-precision type by its name, or the type that there is."""

    FP16 = "fp16"
    BF16 = "bf16"
    KEEP = "keep"
