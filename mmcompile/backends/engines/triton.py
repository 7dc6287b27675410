"""A Triton model repository: config.pbtxt and the engine, or what to do to get it.

Shapes are written in full with `max_batch_size: 0`: the engine's batch dimension is one of its
dynamic dimensions, and models without one need nothing else.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.backends.engines.meta import BundleMeta
from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.errors import UnsupportedModelError, UsageError
from mmcompile.output import disk_errors

FOLDER = "triton"
_TYPES = {
    "bfloat16": "TYPE_BF16",
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def check_model_name(name: str) -> None:
    """Refuses names that are no folder's name.

    Raises:
        UsageError: it is none.
    """
    if not _NAME.fullmatch(name):
        reason = f"'{name}' is no name of a model"
        raise UsageError("triton-name", "--triton", reason, "use letters, digits, _, - and .")


def write_repository(bundle: Path, meta: BundleMeta, name: str, engine: Path | None) -> Path:
    """Writes `triton/NAME/` below a bundle: config.pbtxt, 1/model.plan and README.txt.

    Without an engine, `1/` holds the instruction that makes it instead. The repository appears
    whole, in the place of an earlier one.

    Args:
        bundle: the output folder.
        meta: what it holds.
        name: the model's name in Triton.
        engine: the engine; None where there is none yet.

    Returns:
        The repository: the folder for `tritonserver --model-repository`.

    Raises:
        UsageError: the name cannot be a folder's.
        UnsupportedModelError: Triton has no such type.
        EnvironmentProblem: the disk is full or fails.
    """
    check_model_name(name)
    config = configuration(name, meta.interface)
    root = bundle / FOLDER
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mmcompile-", dir=bundle) as scratch:
            model = Path(scratch) / name
            (model / "1").mkdir(parents=True)
            (model / "config.pbtxt").write_text(config, encoding="utf-8")
            (model / "README.txt").write_text(_note(meta, root), encoding="utf-8")
            if engine is not None:
                shutil.copyfile(engine, model / "1" / "model.plan")
            else:
                text = _PLACEHOLDER.format(name=name)
                (model / "1" / "model.plan.missing.txt").write_text(text, encoding="utf-8")
            earlier = root / name
            if earlier.exists():
                earlier.rename(Path(scratch) / "earlier")
            model.rename(earlier)
    return root


def configuration(name: str, interface: Interface) -> str:
    """The text of config.pbtxt.

    Raises:
        UnsupportedModelError: an input or output has a type that Triton lacks.
    """
    parts = [
        f"name: {_quoted(name)}",
        'platform: "tensorrt_plan"',
        "max_batch_size: 0",
        *(_tensor("input", spec) for spec in interface.inputs),
        *(_tensor("output", spec) for spec in interface.outputs),
        "instance_group [ { count: 1 kind: KIND_GPU } ]",
    ]
    return "\n".join(parts) + "\n"


def _tensor(kind: str, spec: TensorSpec) -> str:
    if spec.dtype not in _TYPES or spec.shape is None:
        reason = f"Triton cannot describe {spec}"
        remedy = "leave --triton out, or export the model with other types"
        raise UnsupportedModelError("triton-type", f"{kind} {spec.name}", reason, remedy)
    # Triton has no scalars; a TensorRT scalar is an array of one element to it.
    sizes = ", ".join(str(n) if isinstance(n, int) else "-1" for n in spec.shape) or "1"
    return (
        f"{kind} [\n  {{\n    name: {_quoted(spec.name)}\n    data_type: {_TYPES[spec.dtype]}\n"
        f"    dims: [ {sizes} ]\n  }}\n]"
    )


def _quoted(text: str) -> str:
    """A string in protobuf's text format."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _note(meta: BundleMeta, root: Path) -> str:
    library = (root.parent / LIBRARY).absolute()
    if meta.choices.embed_plugin:
        return _EMBEDDED.format(repository=root.absolute())
    return _PRELOAD.format(repository=root.absolute(), library=library)


_PRELOAD = """\
The engine needs the plugin library, which Triton's TensorRT backend loads when it is told so:

  tritonserver --model-repository={repository} \\
    --backend-config=tensorrt,plugins={library}

LD_PRELOAD is no substitute: the library would come before TensorRT and could not register with it.
"""
_EMBEDDED = """\
The engine holds its plugin. Triton's TensorRT backend has to allow code in engines:

  tritonserver --model-repository={repository} \\
    --backend-config=tensorrt,version-compatible=true
"""
_PLACEHOLDER = """\
Here belongs model.plan, the engine. On the machine that has TensorRT and the GPU, in the folder
that mmcompile wrote (three folders up):

  mmcompile build . --triton {name}
"""
