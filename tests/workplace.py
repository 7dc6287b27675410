"""A folder with a small model and data, and the command line run in it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmcompile.cli import run
from mmcompile.policy.uniform import UNIFORM
from tests.models import model_of, weight

ROOT = Path(__file__).parent.parent
CHANNELS, HIDDEN, OUT = 96, 64, 48
BUNDLE = {"build.json", "reproduce.sh"}
"""Files for building an engine elsewhere; the plugin library, too, where this machine has it."""
LIBRARY = "libmmcompile_plugin.so"
TOKENS = 8


@dataclass(frozen=True)
class Result:
    """What a run of the command line came to."""

    code: int
    out: str
    err: str

    def json(self):
        """Standard output as the one JSON document that it has to be."""
        return json.loads(self.out)

    def line(self):
        """Standard error as the one line that it has to be."""
        lines = [line for line in self.err.splitlines() if line]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mmcompile: error: ")
        assert lines[0].isprintable()
        return lines[0]


def command(*arguments, **variables):
    """The arguments of a process that runs the command line from this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        "args": [sys.executable, "-m", "mmcompile", *map(str, arguments)],
        "env": {**os.environ, "PYTHONPATH": path, **variables},
        "text": True,
    }


def spawn(*arguments, **options):
    """Runs the command line in a process of its own."""
    done = subprocess.run(**command(*arguments), capture_output=True, check=False, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def call(*arguments):
    """Runs the command line in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(map(str, arguments)))
    return Result(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def two_layers(dtype=np.float32, *, seed=0, names=("first", "second"), final="Relu"):
    """x → linear → Relu → linear → Relu → y: two linears that are no heads, the first biased."""
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = {
        "W1": weight(CHANNELS, HIDDEN, seed=seed).astype(dtype),
        "b1": weight(HIDDEN, seed=seed + 1).astype(dtype),
        "W2": weight(HIDDEN, OUT, seed=seed + 2).astype(dtype),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "W1"], ["h"], name=names[0]),
        helper.make_node("Add", ["h", "b1"], ["hb"], name="bias"),
        helper.make_node("Relu", ["hb"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "W2"], ["z"], name=names[1]),
        helper.make_node(final, ["z"], ["y"], name="final"),
    ]
    sizes = ("batch", "sequence")
    return model_of(nodes, values, x=(*sizes, CHANNELS), y=(*sizes, OUT), dtype=elem_type)


def samples(count=10, *, seed=0, dtype=np.float32):
    """Inputs of `two_layers`: float[count, TOKENS, CHANNELS], channels of different size."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(np.linspace(-3, 2, CHANNELS))
    return (generator.standard_normal((count, TOKENS, CHANNELS)) * sizes).astype(dtype)


def save_external(model, path):
    """Saves a model with its weights beside it, in `<name>.data`."""
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
    )
    return path


class Workplace:
    """`model.onnx` and `data.npz` in a folder, and short ways to compile them there."""

    def __init__(self, folder, data=None):
        self.folder = folder
        self.model = folder / "model.onnx"
        self.data = folder / "data.npz"
        self.out = folder / "out"
        onnx.save(two_layers(), self.model)
        np.savez(self.data, x=samples() if data is None else data)

    def arguments(self, *more, model=None, data=None):
        """Arguments of a compilation that is over soon."""
        base = [model or self.model, "--gpu", "sm_120", "--calib", data or self.data]
        policy = more[more.index("--policy") + 1] if "--policy" in more else None
        short_runs = [] if policy in UNIFORM else ["--granularity", "32"]
        return [*base, "-o", self.out, *short_runs, "--no-html", *more]

    def compile(self, *more, **kind):
        """Compiles in this process."""
        return call(*self.arguments(*more, **kind))

    def contents(self, folder=None):
        """All files of the output folder with their bytes; empty where there is none."""
        folder = folder or self.out
        files = folder.rglob("*") if folder.exists() else ()
        return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file()}

    def replace_weight(self, name, change):
        """Applies a function to a weight of the model."""
        model = onnx.load(self.model)
        for tensor in model.graph.initializer:
            if tensor.name == name:
                value = np.array(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(change(value), name))
        onnx.save(model, self.model)
