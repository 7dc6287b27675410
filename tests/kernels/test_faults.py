"""Planted faults in the kernels' source, each of which the emulator's checks must find.

Every fault is a change of one place in a copy of the sources; the copy is compiled and put to the
same probe that the sources as they are pass. A fault that slips through fails the suite.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmcompile.cuda.layers import MXFP4, MXFP8, NVFP4
from mmcompile.kernels import KernelError, KernelLibrary
from tests.kernels import quantize_probe
from tests.kernels.build import FLAGS, PLUGINS
from tests.kernels.emulated import LATE, NATIVE, PORTABLE, RANDOM, compile_library, configure
from tests.kernels.operands import Draw, Problem
from tests.kernels.quantize_probe import Fault
from tests.kernels.test_gemm import EVERYTHING, check

pytestmark = pytest.mark.slow

TILES = (0, 3)
"""Few, so that a faulty library compiles fast: one swapped and split along K by warps, one not."""


GEMM = (
    Fault(
        "missing barrier before a stage is read",
        "kernels/gemm.h",
        "device::wait_async<ahead - 1>();\n    device::sync_threads();",
        "device::wait_async<ahead - 1>();",
    ),
    Fault("wait off by one", "kernels/gemm.h", "wait_async<ahead - 1>()", "wait_async<ahead>()"),
    Fault(
        "loads into the stage that is read",
        "kernels/gemm.h",
        "stage == 0 ? ahead : stage - 1",
        "stage",
    ),
    Fault(
        "activations read before they are there",
        "kernels/gemm.h",
        "device::wait_for_prerequisites();",
        "",
    ),
    Fault(
        "swapped fragment rows",
        "kernels/gemm.h",
        "swizzled(row + lane % 16, lane / 16)",
        "swizzled(row + (lane + 8) % 16, lane / 16)",
    ),
    Fault(
        "second half of a scale word never used",
        "kernels/gemm.h",
        "slice_of_segment % 2 * 16",
        "slice_of_segment % 1 * 16",
    ),
    Fault(
        "tensor scale applied to all segments",
        "kernels/gemm.h",
        "chunk + 1 == (end < params.nvf4_chunks ? end : params.nvf4_chunks)",
        "chunk + 1 == end && params.nvf4_chunks > 0",
    ),
    Fault(
        "wrong scale byte",
        "kernels/atoms.h",
        "device::mma_mxf4<2 * step, m % 2, 2 * step, n % 4>",
        "device::mma_mxf4<2 * step, m % 2, 2 - 2 * step, n % 4>",
    ),
    Fault(
        "wrong scale lane",
        "kernels/atoms.h",
        "device::mma_mxf8<step, m % 2, step, n % 4>",
        "device::mma_mxf8<step, m % 2, step, (n + 1) % 4>",
    ),
    Fault(
        "portable: scale off by a power of two",
        "kernels/atoms.h",
        "kE4M3Offset = 8",
        "kE4M3Offset = 7",
    ),
    Fault(
        "portable: wrong half of a quad's NVFP4 scales",
        "kernels/atoms.h",
        "(device::thread_index() % 4) / 2",
        "(device::thread_index() % 4) % 2",
    ),
    Fault(
        "codes stored without swizzle",
        "kernels/pipeline.h",
        "swizzled(code_row(), piece)",
        "kSliceBytes * code_row() + 16 * piece",
    ),
    Fault(
        "missing predicate: rows behind the last",
        "kernels/pipeline.h",
        "i * kRowStep < rows_left_ && bytes_left_ > 0",
        "bytes_left_ > 0",
    ),
    Fault(
        "missing predicate: wrong segment border",
        "kernels/pipeline.h",
        "i * kRowStep < rows_left_ && bytes_left_ > 0",
        "i * kRowStep < rows_left_",
    ),
    Fault(
        "NVFP4: both steps of a slice take the first word of scales",
        "kernels/pipeline.h",
        "segment.act_word) + j",
        "segment.act_word)",
    ),
    Fault(
        "last chunk of a segment forgotten",
        "library/linear.cpp",
        "(row_bytes + tile.chunk_bytes() - 1) / tile.chunk_bytes()",
        "std::max(1, row_bytes / tile.chunk_bytes())",
    ),
    Fault(
        "segments placed in the wrong order",
        "library/linear.cpp",
        "segment.instruction == Instruction::kNvf4;\n  });",
        "segment.instruction != Instruction::kNvf4;\n  });",
    ),
    Fault(
        "E3M2 widened with E2M3's scale",
        "kernels/widen.h",
        "kScaleStep<WeightCode::kE3M2> = 0x04040404u",
        "kScaleStep<WeightCode::kE3M2> = 0x06060606u",
    ),
    Fault(
        "6-bit sign lost in widening",
        "kernels/widen.h",
        "(codes & 0x20202020u) << 2",
        "(codes & 0x20202020u) << 3",
    ),
    Fault(
        "missing barrier between the warps' sums",
        "kernels/epilogue.h",
        "  device::sync_threads();\n  if (warp_k > 0) return;",
        "  if (warp_k > 0) return;",
    ),
    Fault(
        "double bias",
        "kernels/epilogue.h",
        "float value = sum;",
        "float value = params.bias == nullptr ? sum : sum + device::load_constant(params.bias + "
        "channel);",
    ),
    Fault(
        "splits added in the order of arrival",
        "kernels/epilogue.h",
        "device::load_global(place(s, m, n))",
        "device::load_global(place((s + split) % params.splits, m, n))",
    ),
    Fault(
        "missing fence before a split is counted",
        "kernels/epilogue.h",
        "  device::fence_global();\n  device::sync_threads();",
        "  device::sync_threads();",
    ),
    Fault(
        "y is written behind its last row",
        "kernels/epilogue.h",
        "if (row < params.rows && channel < params.out_channels)\n            store_pair",
        "if (channel < params.out_channels)\n            store_pair",
    ),
    Fault(
        "pairs are stored where y is not aligned for them",
        "library/library.cpp",
        "is_aligned(arguments.y, 2 * type_bytes(",
        "is_aligned(arguments.y, type_bytes(",
    ),
    Fault(
        "no rounding to nearest in the output",
        "kernels/epilogue.h",
        "device::float_to_bfloat16(value)",
        "static_cast<std::uint16_t>(float_bits(value) >> 16)",
    ),
)


def probe_gemm(library: KernelLibrary) -> None:
    """Runs problems that between them touch every line of the GEMM."""
    splits = [(1536, NVFP4, NVFP4), (2048, MXFP4, MXFP4), (512, MXFP8, MXFP8)]
    for device in (NATIVE, PORTABLE):
        for tactic in (1, 4):
            configure(library, seed=tactic, copies=LATE if device == NATIVE else RANDOM)
            gpu = library.open_device(device)
            long = [*EVERYTHING, (1184, MXFP4, MXFP4)]
            draw = Draw(seed=tactic, bias=True, residual=True)
            check(Problem(library, 11, 70, long, draw), gpu, tactic)
            check(Problem(library, 67, 34, EVERYTHING, Draw(seed=tactic, y_type=2)), gpu, tactic)
            exact = Problem(library, 3, 34, splits, Draw(exact=True, y_type=2, bias=True))
            expected = exact.exact().astype(np.float32)
            bits = expected.view(np.uint32) + 0x7FFF + (expected.view(np.uint32) >> 16 & 1)
            rounded = (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)
            found = exact.run(gpu, tactic, y_offset=1)
            np.testing.assert_array_equal(found.astype(np.float32), rounded)
        outputs = []
        for seed in range(4):
            configure(library, seed=seed, multiprocessors=8)
            gpu = library.open_device(device)
            problem = Problem(library, 3, 24, splits, Draw(tensor_scales=(0.25, 8.0)))
            outputs.append(check(problem, gpu, 4))
        assert all(np.array_equal(output, outputs[0]) for output in outputs)


def planted(fault: Fault, folder: Path) -> KernelLibrary:
    """The library compiled from a copy of the sources that has the fault."""
    plugins = folder / "plugins"
    for part in ("include", "kernels", "library", "testing"):
        shutil.copytree(PLUGINS / part, plugins / part)
    source = plugins / fault.file
    text = source.read_text()
    assert text.count(fault.old) == 1, f"{fault.file} has changed: {fault.old!r}"
    source.write_text(text.replace(fault.old, fault.new))
    return KernelLibrary(compile_library(plugins, TILES, FLAGS))


def test_the_sources_pass_the_probes():
    library = KernelLibrary(compile_library(tiles=TILES))
    probe_gemm(library)
    quantize_probe.probe(library)


@pytest.mark.parametrize("fault", GEMM, ids=lambda fault: fault.name)
def test_gemm_fault_is_found(fault, tmp_path):
    library = planted(fault, tmp_path)
    with pytest.raises((AssertionError, KernelError)):
        probe_gemm(library)


@pytest.mark.parametrize("fault", quantize_probe.FAULTS, ids=lambda fault: fault.name)
def test_quantize_fault_is_found(fault, tmp_path):
    library = planted(fault, tmp_path)
    with pytest.raises((AssertionError, KernelError)):
        quantize_probe.probe(library)
