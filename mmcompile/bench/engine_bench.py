"""Builds engines of all variants of a model on the GPU that is here, and times them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mmcompile.backends.protocol import Timeable, TimedEngine
from mmcompile.backends.registry import Wanted, choose
from mmcompile.bench.engines import Rig, Variant, bench_engines, timeable
from mmcompile.bench.kernel_bench import check_gpu
from mmcompile.bench.results import EngineBench
from mmcompile.bench.variants import EngineBenchOptions, Workshop, line_up
from mmcompile.cuda.machine import GpuMachine
from mmcompile.errors import EnvironmentProblem
from mmcompile.progress import Progress

WITHOUT_GPU = "use --modelled for limits, or --prepare to build engines, without a GPU"


def engine_bench(model: Path, options: EngineBenchOptions, progress: Progress) -> EngineBench:
    """Builds and times stock baselines of a model, MicroMix, and the models that are named.

    Args:
        model: the original.
        options: what to build and time.
        progress: told how far it is.

    Raises:
        EnvironmentProblem: no back end can build here, or there is no GPU; the remedy names
            `--modelled` and `--prepare`.
        UsageError: the back end's engines cannot be timed.
        MMCompileError: the model or the data cannot be used.
    """
    builder, machine = _open(options)
    with tempfile.TemporaryDirectory(prefix="mmcompile-bench-") as name:
        folder = Path(name)
        work = Workshop(builder, f"sm_{machine.facts.architecture}", folder)
        found = line_up(model, options, work, progress)

        def build(variant: Variant) -> bytes:
            file = found.work.build(variant, folder)
            plan = file.read_bytes()
            file.unlink()
            return plan

        def opened(plan: bytes, variant: Variant) -> TimedEngine:
            return builder.timed(plan, found.work.plugin(variant), machine)

        rig = Rig(build, opened, machine, machine.facts)
        return bench_engines(found.bench, found.variants, rig, progress)


def _open(options: EngineBenchOptions) -> tuple[Timeable, GpuMachine]:
    """The back end and the GPU.

    Raises:
        EnvironmentProblem: one of them is missing.
        UsageError: it is another GPU than asked for, or the engines cannot be timed.
    """
    try:
        machine = GpuMachine()
        target = f"sm_{machine.facts.architecture}"
        backend = timeable(choose(Wanted(options.backend, target)).demand())
    except EnvironmentProblem as problem:
        remedy = f"{problem.remedy}; or {WITHOUT_GPU}"
        raise EnvironmentProblem(problem.code, problem.where, problem.reason, remedy) from None
    if options.gpu is not None:
        check_gpu(options.gpu, machine.facts)
    return backend, machine
