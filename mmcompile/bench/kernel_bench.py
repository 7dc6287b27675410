"""What `mmcompile bench --kernels` does: finds the GPU, the kernel library and the shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcompile.bench.kernels import LLAMA, ROWS, KernelBench, bench_kernels
from mmcompile.bench.model import linear_layers
from mmcompile.cuda.cublas import cublas
from mmcompile.cuda.driver import GpuFacts
from mmcompile.cuda.layers import open_place
from mmcompile.cuda.machine import GpuMachine
from mmcompile.errors import EnvironmentProblem, UsageError
from mmcompile.kernels import KernelError, KernelLibrary
from mmcompile.libraries import KERNELS, MISSING, remedy
from mmcompile.model.selection import Selection
from mmcompile.progress import Progress
from mmcompile.targets.names import identify_gpu, parse_gpu, parse_target, plain_name

BASELINES = ("bf16", "fp8")
WITHOUT_GPU = "use --modelled for limits without a GPU, or run this where the GPU is"


def kernel_bench(
    model: Path | None,
    rows: Sequence[int],
    gpu: str | None,
    selection: Selection,
    progress: Progress,
) -> KernelBench:
    """Times the kernels on a model's layer shapes, or on Llama-3.1-8B's.

    Raises:
        EnvironmentProblem: there is no GPU, no kernel library, or no kernel for the GPU.
        UsageError: the GPU is not the one asked for.
    """
    machine = open_gpu(gpu)
    path = KERNELS.find()
    if path is None:
        reason = f"the kernel library is {MISSING}"
        raise EnvironmentProblem("no-kernel-library", "kernels", reason, remedy(KERNELS))
    try:
        place = open_place(machine, KernelLibrary(path))
    except (OSError, AttributeError, KernelError) as error:
        raise EnvironmentProblem(
            "kernel-library-unusable", path, str(error), remedy(KERNELS)
        ) from None
    shapes: Sequence[tuple[int, int]] = LLAMA
    if model is not None:
        layers = linear_layers(model, None, selection)
        shapes = [(each.in_channels, each.out_channels) for each in layers if not each.kept]
    cases = [(k, n, m) for k, n in dict.fromkeys(shapes) for m in rows or ROWS]
    products = cublas()
    baselines = {f"cuBLAS {name.upper()}": products[name] for name in BASELINES if products}
    return bench_kernels(place, cases, baselines, machine.facts, progress=progress)


def open_gpu(asked: str | None) -> GpuMachine:
    """The GPU of this machine.

    Raises:
        EnvironmentProblem: there is none.
        UsageError: it is not the one asked for.
    """
    try:
        machine = GpuMachine()
    except EnvironmentProblem as problem:
        raise EnvironmentProblem(problem.code, "GPU", problem.reason, WITHOUT_GPU) from None
    if asked is not None:
        check_gpu(asked, machine.facts)
    return machine


def check_gpu(asked: str, facts: GpuFacts) -> None:
    """Refuses to measure on another GPU than the one asked for.

    Raises:
        UsageError: it is another, or there is no GPU of that name.
    """
    target = parse_target(asked)
    is_family = plain_name(asked) == target.name.replace("_", "")
    if is_family:
        right = target.name == f"sm_{facts.architecture}"
    else:
        found = identify_gpu(facts.name)
        right = found is parse_gpu(asked) if found is not None else False
    if not right:
        reason = f"the GPU here is {facts.name}, sm_{facts.architecture}, not {asked}"
        raise UsageError("other-gpu", "--gpu", reason, f"leave --gpu out, or {WITHOUT_GPU}")
