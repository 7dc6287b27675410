"""What a user types in Python: one function for each thing that mmcompile does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompile.analysis.options import AnalyzeOptions
from mmcompile.backends.engines.options import BuildOptions
from mmcompile.data.options import DataOptions, Source
from mmcompile.exporting.options import ExportOptions
from mmcompile.pipeline.options import CompileOptions, CompileResult, VerifyOptions
from mmcompile.progress import Progress, Silent

if TYPE_CHECKING:
    from mmcompile.analysis.run import AnalysisResult
    from mmcompile.backends.engines.meta import EngineMeta
    from mmcompile.report.model import VerificationReport


@dataclass(frozen=True)
class BuildResult:
    """What building an engine gave.

    Attributes:
        engine: what it was built with.
        files: the files written; the folder of a Triton repository, too.
    """

    engine: EngineMeta
    files: tuple[Path, ...]


def compile(  # noqa: A001 (what users of `mmcompile.compile` expect)
    model: str | Path,
    options: CompileOptions | None = None,
    *,
    calibration: Source | None = None,
    gpu: str | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Compiles an ONNX model: calibrates, plans, rewrites, packs, verifies and reports.

    Args:
        model: the ONNX file.
        options: everything; the default policy needs data or a plan.
        calibration: calibration inputs, in place of `options.data.calibration`: a file, a folder,
            a script, `random`, or feeds: dicts from input names to arrays.
        gpu: in place of `options.gpu`, e.g. `sm_120` or `rtx5090`.
        output: in place of `options.output`: the folder of the results.
        progress: told how far the stages are.

    Returns:
        The plan, the report and the files. With `options.dry_run` nothing is written.

    Raises:
        MMCompileError: with the code, the place, the reason and the remedy; a model that misses
            `options.verify.fail_below`, too. Nothing is left half written, and earlier output is
            intact.
    """
    from mmcompile.pipeline.compile import compile_model

    asked = options or CompileOptions()
    changes: dict[str, Any] = {}
    if calibration is not None:
        changes["data"] = dataclasses.replace(asked.data, calibration=calibration)
    if gpu is not None:
        changes["gpu"] = gpu
    if output is not None:
        changes["output"] = Path(output)
    return compile_model(model, dataclasses.replace(asked, **changes), progress)


def analyze(
    model: str | Path,
    options: AnalyzeOptions | None = None,
    *,
    calibration: Source | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> AnalysisResult:
    """Shows how a model's accuracy depends on formats, data and inputs.

    Args:
        model: the ONNX file.
        options: everything; data is needed.
        calibration: in place of `options.data.calibration`.
        output: in place of `options.output`: the folder of the results.
        progress: told how far the sections are.

    Returns:
        All figures, and the files written.

    Raises:
        MMCompileError: the model or the data cannot be used; earlier files are intact.
    """
    from mmcompile.analysis.run import analyze_model

    asked = options or AnalyzeOptions()
    if calibration is not None:
        data = dataclasses.replace(asked.data, calibration=calibration)
        asked = dataclasses.replace(asked, data=data)
    if output is not None:
        asked = dataclasses.replace(asked, output=Path(output))
    return analyze_model(model, asked, progress)


def build(folder: str | Path, options: BuildOptions | None = None) -> BuildResult:
    """Builds the engine of a folder that `compile` wrote.

    Args:
        folder: the folder; it receives the engine.
        options: what is given wins over what the folder says.

    Raises:
        MMCompileError: nothing was written, and an earlier engine is intact.
    """
    from mmcompile.pipeline.delivery import build_bundle

    return BuildResult(*build_bundle(Path(folder), options or BuildOptions()))


def verify(
    original: str | Path,
    compiled: str | Path,
    data: DataOptions | Source,
    options: VerifyOptions | None = None,
    *,
    engine: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[VerificationReport, ...]:
    """Compares a compiled model with its original.

    Args:
        original: the ONNX file that was compiled.
        compiled: what came of it.
        data: the inputs to run: `DataOptions.verification`, or a source of inputs.
        options: what is compared, and how much of it.
        engine: an engine.plan to run besides, on the GPU that it is for.
        progress: told after every sample.

    Returns:
        One report; of an engine two: against the compiled model and against the original.

    Raises:
        MMCompileError: something cannot be read or run, or the models do not belong together.
    """
    from mmcompile.pipeline.against import verify_engine
    from mmcompile.pipeline.verification import verify_files

    inputs = data if isinstance(data, DataOptions) else DataOptions(verification=data)
    asked, told = options or VerifyOptions(), progress or Silent()
    models = Path(original), Path(compiled)
    if engine is None:
        return (verify_files(*models, inputs, asked, told),)
    return verify_engine(*models, Path(engine), inputs, asked, told)


def export(
    source: str | Path,
    output: str | Path = "model.onnx",
    options: ExportOptions | None = None,
) -> Path:
    """Exports a PyTorch model to ONNX.

    Args:
        source: a Hugging Face folder, or `script.py:factory` (see `exporting.export_model`).
        output: the `.onnx` file, or a folder for `model.onnx`.
        options: type, opset and task.

    Returns:
        The `.onnx` file.

    Raises:
        MMCompileError: the source cannot be loaded or exported.
    """
    from mmcompile.exporting import export_model

    return export_model(str(source), Path(output), options)
