"""`Engine`: an engine that mmcompile built, run by the back end that built it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcompile.backends.engines.interface import Interface
from mmcompile.backends.engines.meta import META_FILE, EngineMeta, read_meta
from mmcompile.backends.registry import find_backend


class Engine:
    """An engine with one execution context; use one per thread.

    Args:
        path: the engine; `engine.meta.json` and, unless the engine holds it, the plugin library
            lie beside it.
        device: ordinal of the GPU, as CUDA_VISIBLE_DEVICES numbers them.
        weight_bytes: weights to keep on the GPU at most, the others stay in host memory and are
            slower; only for engines built with `--weight-streaming`. None keeps all there.

    Raises:
        UsageError: the description is missing or damaged, or its back end is not known.
        EnvironmentProblem: TensorRT, the GPU or the plugin is missing or not what the engine was
            built with, the engine is damaged, or the GPU has too little memory.
    """

    def __init__(
        self, path: str | Path, device: int = 0, *, weight_bytes: int | None = None
    ) -> None:
        file = Path(path)
        self.meta = read_meta(file.with_name(META_FILE), EngineMeta)
        backend = find_backend(self.meta.backend, file)
        self._runner = backend.open(file, self.meta, device, weight_bytes)

    @property
    def interface(self) -> Interface:
        """Inputs and outputs, in the original model's order."""
        return self.meta.interface

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the engine.

        Args:
            inputs: an array or tensor for every input, of the declared type. Where any is a torch
                tensor, all work is put on torch's current stream and the outputs are torch tensors
                on the GPU that are ready there; tensors on the GPU are read where they lie.
                Otherwise outputs are numpy arrays, and the call returns when they are complete.

        Returns:
            The outputs by name, in the model's order.

        Raises:
            UsageError: a missing or unknown input, a wrong type, or a shape outside the profiles.
            EnvironmentProblem: the GPU has too little memory, or the run fails.
        """
        return self._runner(inputs)
