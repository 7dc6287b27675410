"""Checks of the kernel library on a GPU, through its C ABI: those of the self-test, and many more.

    python -m pytest tests/gpu          one test per check
    python -m tests.gpu [NAME ...]      the same without pytest, those whose names contain a NAME

Operands, calls and comparisons are those of `mmcompile doctor --selftest` (`mmcompile.cuda.calls`,
`mmcompile.doctor`). The checks need a GPU, its driver (libcuda.so.1), numpy, and the library that
`make plugin` builds, or the one that MMCOMPILE_KERNELS names; neither torch nor CuPy, and of
mmcompile only modules that need no other package either. With the emulated library of the CPU they
run on small shapes, which is how the checks themselves are checked. MMCOMPILE_DEVICE (0) is the
ordinal of the GPU, or of the emulated device.
"""
