"""Runs an engine that mmcompile built, from numpy arrays or torch tensors.

python examples/deploy/run_engine.py out/engine.plan input_ids=1x128 attention_mask=1x128

Every input is filled with ones. Prints the time per call and every output's first values.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from mmcompile.errors import MMCompileError
from mmcompile.runtime import Engine

RUNS = 20


def main() -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("shapes", nargs="*", metavar="INPUT=1x128")
    parser.add_argument("--torch", action="store_true", help="tensors on the GPU, no copies")
    arguments = parser.parse_args()
    shapes = {}
    for text in arguments.shapes:
        name, _, sizes = text.rpartition("=")
        shapes[name] = tuple(int(size) for size in sizes.split("x"))

    try:
        engine = Engine(arguments.engine)  # loads the plugin library that lies beside it
        inputs = {}
        for spec in engine.interface.inputs:
            shape = shapes.get(spec.name) or [n if isinstance(n, int) else 1 for n in spec.shape]
            inputs[spec.name] = np.ones(shape, spec.dtype)
        if arguments.torch:
            import torch

            inputs = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
        engine(inputs)
        start = time.perf_counter()
        for _ in range(RUNS):
            outputs = engine(inputs)
        if arguments.torch:
            torch.cuda.synchronize()  # numpy's outputs are complete when the call returns
        seconds = (time.perf_counter() - start) / RUNS
    except MMCompileError as error:
        print(f"run_engine: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{seconds * 1e3:.3f} ms per call, copies included")
    for name, value in outputs.items():
        print(name, tuple(value.shape), value.reshape(-1)[:4])
    return 0


if __name__ == "__main__":
    sys.exit(main())
