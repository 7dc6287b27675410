"""Loading kernels on a GPU: all of them, before the first call, in the caller's context.

What nvcc compiles is linked against a CUDA runtime of the tests (fake_cuda_runtime.cpp), which
refuses a kernel that was not loaded before, as CUDA does while a graph is captured.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.kernel_build import nvcc
from mmcompile.errors import EnvironmentProblem
from mmcompile.kernels import Arguments, Device, KernelError, KernelLibrary, LinearSegment
from tests.kernels.build import BUILD, PLUGINS, ROOT

RUNTIME = ROOT / "tests" / "fake_cuda_runtime.cpp"
TYPES = (0, 1, 2)
ADDRESS = 1 << 20
"""Of every tensor; nothing is read."""
FEW, MANY = (1, 3, 8), (16, 64, 200, 4096)
"""Rows whose activations are quantized directly, and staged in shared memory."""


def compile_library(plugins: Path = PLUGINS) -> Path:
    """The kernel library over the runtime of the tests, from a folder that may be a changed copy.

    Its device code is PTX for sm_80, not optimized: nobody runs it.
    """
    try:
        compiler = nvcc()
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))
    sources = [plugins / "library" / name for name in ("cuda.cu", "library.cpp", "linear.cpp")]
    sources += [plugins / "library" / "choice.cpp", RUNTIME]
    folders = [plugins / name for name in ("include", "kernels", "library")]
    read = [*sources, *(path for folder in folders for path in sorted(folder.rglob("*.h")))]
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in read)).hexdigest()[:16]
    target = BUILD / f"libloading-{key}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        command = [compiler, "-std=c++20", "--shared", "--cudart", "none", "-Xcompiler", "-fPIC"]
        command += ["--expt-relaxed-constexpr", "-Xcicc", "-O0"]
        command += ["-gencode", "arch=compute_80,code=compute_80"]
        command += [f"-I{folder}" for folder in folders]
        done = subprocess.run(
            [*command, *map(str, sources), "-o", str(part)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        part.replace(target)
    return target


@dataclass(frozen=True)
class Loading:
    """The library, and the functions of the test's runtime."""

    library: KernelLibrary

    def __post_init__(self) -> None:
        functions = self.library.functions
        functions.fake_kernels.restype = ctypes.c_char_p
        for name in ("fake_create_context", "fake_current_context"):
            getattr(functions, name).restype = ctypes.c_size_t
        functions.fake_loaded_kernels.argtypes = (ctypes.c_size_t,)

    def forget(self) -> None:
        self.library.functions.fake_forget()
        self.library.functions.fake_leave_contexts()

    def own_context(self, device: int) -> int:
        """A context that the program makes itself; it is current."""
        return int(self.library.functions.fake_create_context(device))

    @property
    def context(self) -> int:
        return int(self.library.functions.fake_current_context())

    def count(self, context: int) -> int:
        """Kernels that are loaded in the context."""
        return int(self.library.functions.fake_loaded_kernels(context))

    def kernels(self, *, launched: bool) -> set[str]:
        text: bytes = self.library.functions.fake_kernels(int(launched))
        return set(text.decode().split())


def loading_of(library: Path) -> Loading:
    return Loading(KernelLibrary(library))


@pytest.fixture
def loading() -> Iterator[Loading]:
    made = loading_of(compile_library())
    made.forget()
    yield made
    made.forget()


def run_everything(loading: Loading, device: Device) -> None:
    """All tiles, and all variants of the quantization that are ever chosen."""
    library = loading.library
    for channels, rows, kind in itertools.product((256, 2048, 16384), FEW + MANY, TYPES):
        linear = library.linear(channels, 512, [LinearSegment(channels, 0, 0)])
        for tactic in range(len(library.tactics(device)) + 1):
            places = dict.fromkeys(("x", "order", "weight", "scales", "y", "workspace"), ADDRESS)
            sizes = {"rows": rows, "workspace_bytes": 1 << 40}
            linear.run(
                device, Arguments(**places, **sizes, x_type=kind, y_type=kind, tactic=tactic)
            )


def check_preloading(loading: Loading) -> None:
    device = loading.library.open_device(0)
    loaded = loading.kernels(launched=False)
    run_everything(loading, device)
    assert loading.kernels(launched=False) == loaded
    # No kernel is loaded in vain, so that this test has tried them all.
    assert loading.kernels(launched=True) == loaded
    # Three types of x, direct and staged by 1, 2 and (16-bit types) 4 rows; and the tiles.
    assert len(loaded) == 3 * 4 - 1 + len(loading.library.tactics(device))


def check_contexts(loading: Loading) -> None:
    library = loading.library
    own = loading.own_context(0)
    library.open_device(0)
    assert loading.context == own
    kernels = loading.count(own)
    assert kernels > 0
    assert loading.count(1) == 0  # the primary context of GPU 0

    own = loading.own_context(1)
    library.open_device(0)
    assert loading.context == own
    assert (loading.count(own), loading.count(1)) == (0, kernels)


@pytest.mark.parametrize("architecture", [120, 80])
def test_every_kernel_is_loaded_with_the_device(
    loading: Loading, monkeypatch: pytest.MonkeyPatch, architecture: int
) -> None:
    monkeypatch.setenv("FAKE_CUDA_ARCHITECTURE", str(architecture))
    check_preloading(loading)


def test_a_program_keeps_its_own_context(loading: Loading) -> None:
    check_contexts(loading)


def test_without_a_context_the_device_stays_as_it_was(loading: Loading) -> None:
    loading.library.open_device(1)
    assert loading.context == 1  # that of GPU 0
    assert (loading.count(1), loading.count(2) > 0) == (0, True)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FAKE_CUDA_DRIVER", "12080", "driver version is insufficient"),
        ("FAKE_CUDA_ARCHITECTURE", "75", "GPU 0 is an sm_75"),
    ],
)
def test_what_cannot_be_opened_is_said(
    loading: Loading, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(KernelError, match=said):
        loading.library.open_device(0)
    assert loading.count(1) == 0


@dataclass(frozen=True)
class Fault:
    """One text in place of another in a file of plugins/library; which check sees what of it."""

    file: str
    old: str
    new: str
    check: Callable[[Loading], None]
    seen: str


FAULTS = {
    "variants are left out": Fault(
        "cuda.cu", "{0, 1, 2, 4}", "{1, 2, 4}", check_preloading, "when stream is capturing"
    ),
    "shared memory is not allowed": Fault(
        "cuda.cu",
        "  return cudaFuncSetAttribute(",
        "  return shared_bytes > 1 << 16 ? cudaSuccess : cudaFuncSetAttribute(",
        check_preloading,
        "more shared memory than allowed",
    ),
    "the program's context is left": Fault(
        "context.h",
        "if (own != nullptr && before == ordinal)",
        "if (ordinal < 0)",
        check_contexts,
        "kernels > 0|assert 0 > 0",
    ),
    "the program's context is not given back": Fault(
        "context.h",
        "if (own == nullptr)",
        "if (ordinal >= 0)",
        check_contexts,
        "assert 2 == 100",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    plugins = tmp_path / "plugins"
    shutil.copytree(PLUGINS, plugins)
    source = plugins / "library" / fault.file
    assert source.read_text().count(fault.old) == 1
    source.write_text(source.read_text().replace(fault.old, fault.new))
    faulty = loading_of(compile_library(plugins))
    faulty.forget()
    with pytest.raises((AssertionError, KernelError), match=fault.seen):
        fault.check(faulty)
    faulty.forget()
