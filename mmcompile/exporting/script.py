"""Loading of a PyTorch module from a user's script: `path/to/script.py:factory`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from mmcompile.errors import MMCompileError, UsageError
from mmcompile.exporting.options import Dtype
from mmcompile.exporting.source import DTYPES, ModelSource, one_line, quiet, require

_CONTRACT = "the factory returns (torch.nn.Module, dict of tensors, dynamic shapes or None)"


def load_script(script: Path, factory: str, dtype: Dtype) -> ModelSource:
    """Runs a script's factory, checks what it returns, and tries the module on its examples.

    Args:
        script: the `.py` file; modules beside it can be imported.
        factory: name of a function without arguments, see `export_model`.
        dtype: what floating-point parameters and examples are converted to.

    Raises:
        UsageError: the script fails, or its factory returns something else.
        EnvironmentProblem: PyTorch is missing.
    """
    if not script.is_file():
        raise UsageError("export-source", script, "there is no such file", "check the path")
    torch = require("torch")
    where = f"{script}:{factory}"
    try:
        made = _call(script, factory)
    except MMCompileError:
        raise
    except Exception as error:
        raise UsageError("export-script", where, one_line(error), "correct the script") from error
    if not isinstance(made, tuple) or len(made) != 3:
        raise UsageError("export-script", where, "it does not return three values", _CONTRACT)
    module, examples, dynamic_shapes = made
    if not isinstance(module, torch.nn.Module):
        reason = f"the first value is of type {type(module).__name__}, no torch.nn.Module"
        raise UsageError("export-script", where, reason, _CONTRACT)
    if not isinstance(examples, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in examples.values()
    ):
        raise UsageError("export-script", where, "the examples are no dict of tensors", _CONTRACT)
    kind = getattr(torch, DTYPES[dtype])
    module = module.to(kind).eval()
    inputs = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in examples.items()
    }
    try:
        with torch.no_grad(), quiet():
            result = module(**inputs)
    except Exception as error:
        reason = f"the module does not run on its examples: {one_line(error)}"
        raise UsageError("export-script", where, reason, _CONTRACT) from error
    return ModelSource(where, module, inputs, dynamic_shapes, _output_names(result))


def _call(script: Path, factory: str) -> object:
    """Imports the script and calls the factory."""
    name = f"_mmcompile_export_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    folder = str(script.resolve().parent)
    sys.path.insert(0, folder)
    # Dataclasses look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        function = getattr(module, factory, None)
        if not callable(function):
            reason = f"the script has no function '{factory}'"
            remedy = "name the factory after the colon: path/to/script.py:factory"
            raise UsageError("export-script", script, reason, remedy)
        return function()
    finally:
        sys.path.remove(folder)
        del sys.modules[name]


def _output_names(result: object) -> tuple[str, ...]:
    """The keys of a dict that a module returned, else `output`, `output_1` and so on."""
    if isinstance(result, Mapping):
        return tuple(str(key) for key in result)
    count = len(result) if isinstance(result, tuple | list) else 1
    return tuple(f"output_{i}" if i else "output" for i in range(count))
