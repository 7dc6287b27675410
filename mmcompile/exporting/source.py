"""`ModelSource`: a loaded PyTorch model with all that the exporter asks for."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmcompile.errors import EnvironmentProblem

if TYPE_CHECKING:
    from types import ModuleType

    import torch


DTYPES: dict[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""PyTorch's names of the dtypes."""


@dataclass(frozen=True)
class ModelSource:
    """What to export.

    Attributes:
        where: the folder, script or class that the model came from, for messages.
        module: the module, in eval mode.
        inputs: an example tensor for each argument of its `forward`, by name.
        dynamic_shapes: what `torch.onnx.export` takes, or None.
        outputs: names of the tensors that it returns.
        scope: attribute of `module` that the user's model hangs under, to be cut from names;
            empty if `module` is the user's.
    """

    where: str
    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic_shapes: Any
    outputs: tuple[str, ...]
    scope: str = ""


def require(package: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        EnvironmentProblem: it is not installed; the remedy says how to get it.
    """
    try:
        with quiet():
            return importlib.import_module(package)
    except ImportError as error:
        reason = f"an export needs the Python package {package}: {one_line(error)}"
        remedy = "pip install 'mmcompile[export]'"
        raise EnvironmentProblem("export-packages", package, reason, remedy) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what PyTorch, onnxscript and transformers print, and any use of the network."""
    offline = os.environ.get("HF_HUB_OFFLINE")
    # huggingface_hub reads it at its import, which may happen in the block.
    os.environ["HF_HUB_OFFLINE"] = "1"
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = offline


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
