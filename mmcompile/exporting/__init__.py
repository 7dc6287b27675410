"""Export of a PyTorch model to ONNX: a local Hugging Face folder, or a factory in a script.

This is a convenience in front of the compiler, which itself reads nothing but ONNX. PyTorch and
transformers are optional dependencies (`mmcompile[export]`), imported where they are used. The
network is never asked: a Hugging Face source is a folder with `config.json` and safetensors.

The exported graph has dynamic batch and sequence, weights as external data beside the model, and
nodes named after the module that they came from: `encoder.layer.0.attention.self.query/MatMul`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompile.errors import UsageError
from mmcompile.exporting.options import ExportOptions
from mmcompile.exporting.source import DTYPES, ModelSource
from mmcompile.output import MODEL_FILE, StagedOutput, disk_errors

if TYPE_CHECKING:
    import torch

Report = Callable[[str], object]

OPSETS = range(18, 21)
"""Opsets that an export may use: PyTorch translates to 18 and converts up to 20."""


def export_model(
    source: str,
    output: Path,
    options: ExportOptions | None = None,
    progress: Report | None = None,
) -> Path:
    """Exports a PyTorch model to ONNX.

    Encoders get the inputs `input_ids`, `attention_mask` and, where the model knows segments,
    `token_type_ids`, all int64[batch, sequence]; decoders get the first two. The output is
    `last_hidden_state`, `logits`, or `start_logits` and `end_logits`, by the task. No key/value
    cache is exported.

    Args:
        source: a local Hugging Face folder, or `path/to/script.py:factory`, where `factory()`
            returns `(module, example_inputs, dynamic_shapes)`: a `torch.nn.Module`, a dict from
            the names of its `forward` arguments to tensors, and what `torch.onnx.export` takes
            as `dynamic_shapes`, or None for the shapes of the examples.
        output: the `.onnx` file to write, or a folder, which gets `model.onnx`. Weights go to a
            file of the same name with `.data` appended.
        options: type, opset and task.
        progress: called with a short line at the start of each step.

    Returns:
        The path of the `.onnx` file.

    Raises:
        UsageError: the source, the task or the script is not usable.
        UnsupportedModelError: transformers cannot load the model or PyTorch cannot export it.
        EnvironmentProblem: PyTorch or transformers is missing, or the output cannot be written.
    """
    from mmcompile.exporting.hugging_face import load_hugging_face
    from mmcompile.exporting.script import load_script

    options = options or ExportOptions()
    dtype, task = options.dtype, options.task
    _check_opset(options.opset)
    if dtype not in DTYPES:
        remedy = f"choose one of {', '.join(DTYPES)}"
        raise UsageError("export-dtype", "--dtype", f"unknown dtype '{dtype}'", remedy)
    report = progress or _say_nothing
    script, _, factory = source.rpartition(":")
    if script.endswith(".py"):
        if task is not None:
            reason = "a task belongs to a Hugging Face folder, not to a script"
            raise UsageError("export-task", "--task", reason, "leave the task out")
        report(f"run {factory}() of {script}")
        loaded = load_script(Path(script), factory, dtype)
    else:
        report(f"load {source}")
        loaded = load_hugging_face(Path(source), dtype, task, options.sequence_length)
    return _export(loaded, output, options.opset, report)


def export_module(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    output: Path,
    *,
    dynamic_shapes: Any = None,
    outputs: Sequence[str] = ("output",),
    opset: int = 20,
) -> Path:
    """Exports a PyTorch module that is at hand, as it is.

    Args:
        module: the module, in the mode and the dtype to export.
        inputs: an example tensor for each argument of its `forward`, by name.
        output: as for `export_model`.
        dynamic_shapes: what `torch.onnx.export` takes, or None for the shapes of the examples.
        outputs: names for the tensors that it returns.
        opset: ONNX opset, 18 to 20.

    Returns:
        The path of the `.onnx` file.

    Raises:
        UsageError: the opset is out of range.
        UnsupportedModelError: PyTorch cannot export the module.
        EnvironmentProblem: onnxscript is missing, or the output cannot be written.
    """
    _check_opset(opset)
    where = type(module).__name__
    source = ModelSource(where, module, dict(inputs), dynamic_shapes, tuple(outputs))
    return _export(source, output, opset, _say_nothing)


def _check_opset(opset: int) -> None:
    if opset not in OPSETS:
        reason = f"opset {opset} is outside {OPSETS[0]}..{OPSETS[-1]}"
        raise UsageError("export-opset", "--opset", reason, "leave the opset at its default, 20")


def _say_nothing(line: str) -> None:
    """The progress of callers that want none."""
    del line


def _export(source: ModelSource, output: Path, opset: int, report: Report) -> Path:
    """Translates a loaded model and writes it with its weights beside it, all or nothing."""
    from mmcompile.exporting.translate import translate

    report(f"export to ONNX opset {opset}")
    program = translate(source, opset)
    target = output if output.suffix == ".onnx" else output / MODEL_FILE
    report(f"write {target}")
    with StagedOutput(target.parent) as staged:
        with disk_errors(target.parent):
            program.save(staged.folder / target.name, external_data=True)
        staged.commit()
    return target
