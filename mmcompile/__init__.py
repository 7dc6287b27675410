"""mmcompile: mixed-precision NVFP4/MXFP4/6/8 linear layers for ONNX models and TensorRT.

    import mmcompile as mm

    result = mm.compile("model.onnx", calibration="inputs.npz", gpu="sm_120")

All that a user types stands in `__all__`; `mmcompile.runtime` runs engines. Nothing is loaded
before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmcompile.analysis.options import AnalyzeOptions
    from mmcompile.analysis.run import AnalysisResult
    from mmcompile.api import (
        BuildResult,
        analyze,
        build,
        compile,  # noqa: A004 (what users of `mmcompile.compile` expect)
        export,
        verify,
    )
    from mmcompile.backends.engines.options import BuildOptions
    from mmcompile.data.options import DataOptions
    from mmcompile.effort import Effort, Weights
    from mmcompile.errors import MMCompileError
    from mmcompile.exporting.options import ExportOptions
    from mmcompile.model.selection import Selection
    from mmcompile.pipeline.options import CompileOptions, CompileResult, VerifyOptions
    from mmcompile.plan import QuantPlan, load_plan
    from mmcompile.policy.choices import Order, Thresholds
    from mmcompile.policy.cost import CostPolicy
    from mmcompile.policy.micromix import MicroMixPolicy
    from mmcompile.policy.registry import make_policy
    from mmcompile.policy.uniform import UniformPolicy
    from mmcompile.report.model import Report, VerificationReport
    from mmcompile.targets.target import Objective

__all__ = [
    "AnalysisResult",
    "AnalyzeOptions",
    "BuildOptions",
    "BuildResult",
    "CompileOptions",
    "CompileResult",
    "CostPolicy",
    "DataOptions",
    "Effort",
    "ExportOptions",
    "MMCompileError",
    "MicroMixPolicy",
    "Objective",
    "Order",
    "QuantPlan",
    "Report",
    "Selection",
    "Thresholds",
    "UniformPolicy",
    "VerificationReport",
    "VerifyOptions",
    "Weights",
    "analyze",
    "build",
    "compile",
    "export",
    "load_plan",
    "make_policy",
    "verify",
]

_HOMES = {
    "analysis.options": "AnalyzeOptions",
    "analysis.run": "AnalysisResult",
    "api": "BuildResult analyze build compile export verify",
    "backends.engines.options": "BuildOptions",
    "data.options": "DataOptions",
    "effort": "Effort Weights",
    "errors": "MMCompileError",
    "exporting.options": "ExportOptions",
    "model.selection": "Selection",
    "pipeline.options": "CompileOptions CompileResult VerifyOptions",
    "plan": "QuantPlan load_plan",
    "policy.choices": "Order Thresholds",
    "policy.cost": "CostPolicy",
    "policy.micromix": "MicroMixPolicy",
    "policy.registry": "make_policy",
    "policy.uniform": "UniformPolicy",
    "report.model": "Report VerificationReport",
    "targets.target": "Objective",
}


def __getattr__(name: str) -> object:
    """Loads a name of the API on first use, so that importing the package costs nothing."""
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"mmcompile.{home}"), name)
    raise AttributeError(f"module 'mmcompile' has no attribute '{name}'")


def __dir__() -> list[str]:
    """What a user types."""
    return __all__
