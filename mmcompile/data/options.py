"""Where inputs come from: what a user asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcompile.options import option

Feed = Mapping[str, Any]
Source = str | Path | Feed | Iterable[Feed] | Callable[[], Iterable[Feed]]


@dataclass(frozen=True)
class DataOptions:
    """Where inputs come from (`dataset.open_data`).

    Attributes:
        calibration: file, folder, script, `random`, or Python feeds; None where a plan is given.
        verification: the same for verification; None holds back part of the calibration data.
        tokenizer: tokenizer.json for text.
        samples: number of samples to read at most; None reads all.
        max_length: tokens per text sample at most.
        chunk: cut running text into samples of `max_length` tokens.
        hold_back: every how-manieth sample is kept from calibration, for verification.
        seed: of random inputs and of sampled rows.
    """

    calibration: Source | None = option(
        None,
        "Calibration inputs: .npz, .npy, polygraphy .json, a folder of these, "
        "script.py[:function], a text file with --tokenizer, or 'random' (unfit for use).",
        flag="--calib",
        metavar="DATA",
    )
    verification: Source | None = option(
        None,
        "Inputs for verification, like --calib; by default every fifth sample of --calib.",
        flag="--verify-data",
        metavar="DATA",
    )
    samples: int | None = option(128, "Samples to read at most.", metavar="N", span=(1, None))
    tokenizer: Path | None = option(None, "tokenizer.json, for text.", metavar="FILE")
    max_length: int = option(512, "Tokens per text sample at most.", metavar="N", span=(1, None))
    chunk: bool = option(False, "Cut running text into samples of --max-length.")
    seed: int = option(0, "Of random choices.", metavar="N", span=(0, None))
    hold_back: int = 5
