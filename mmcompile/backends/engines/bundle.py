"""The bundle: everything that a machine with TensorRT needs, and the commands to run there."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from mmcompile import __version__
from mmcompile.backends.engines.interface import Interface
from mmcompile.backends.engines.meta import (
    BUILD_FILE,
    ENGINE_FILE,
    FORMAT,
    BuildChoices,
    BundleMeta,
    check_file,
    describe_file,
    read_meta,
    write_meta,
)
from mmcompile.backends.engines.plugin import LIBRARY, find_plugin, plugin_meta
from mmcompile.backends.engines.shapes import polygraphy_shapes, trtexec_shapes
from mmcompile.errors import EnvironmentProblem
from mmcompile.output import DATA_FILE, MODEL_FILE, disk_errors

SCRIPT_FILE = "reproduce.sh"
PLAN_FILE = "plan.json"
COSINE = "--compare cosine_similarity --cosine-similarity-threshold 0.9"
"""The demand of the polygraphy lines: far below what a good plan reaches, far above a wrong one."""


def write_bundle(
    folder: Path, interface: Interface, choices: BuildChoices, *, target: str, original: Path
) -> tuple[BundleMeta, EnvironmentProblem | None]:
    """Adds the plugin library, build.json and reproduce.sh to a folder with model and plan.

    Args:
        folder: holds model.onnx, its data and plan.json.
        interface: the model's.
        choices: what the builder will be told.
        target: e.g. `sm_120`.
        original: the model that was compiled.

    Returns:
        What was written into build.json; and why there is no plugin library, where there is none.

    Raises:
        EnvironmentProblem: the disk is full or fails.
    """
    problem, library = None, None
    try:
        found = find_plugin()
        with disk_errors(folder):
            shutil.copyfile(found, folder / LIBRARY)
            library = describe_file(folder / LIBRARY)
    except EnvironmentProblem as error:
        if error.code != "plugin-not-found":
            raise
        problem = error
    with disk_errors(folder):
        files = [folder / MODEL_FILE, folder / DATA_FILE]
        meta = BundleMeta(
            format=FORMAT,
            mmcompile=__version__,
            target=target,
            original=os.fsencode(original.absolute()).decode("utf-8", "replace"),
            files=tuple(describe_file(path) for path in files if path.exists()),
            plan_sha256=describe_file(folder / PLAN_FILE).sha256,
            plugin=plugin_meta(library),
            interface=interface,
            choices=choices,
        )
    write_meta(folder / BUILD_FILE, meta)
    with disk_errors(folder / SCRIPT_FILE):
        (folder / SCRIPT_FILE).write_text(script(meta), encoding="utf-8")
        (folder / SCRIPT_FILE).chmod(0o755)
    return meta, problem


def read_bundle(folder: Path) -> tuple[BundleMeta, Path]:
    """A bundle's description and plugin library.

    Raises:
        UsageError: the folder holds no bundle.
        EnvironmentProblem: the library is missing, damaged, or not that of the bundle.
    """
    meta = read_meta(folder / BUILD_FILE, BundleMeta)
    library = find_plugin(folder)
    if meta.plugin.library is not None and library == folder / LIBRARY:
        remedy = "copy the whole folder again"
        check_file(library, meta.plugin.library, "plugin library", remedy, "plugin")
    return meta, library


def build_command(folder: Path) -> str:
    """The command that makes an engine of a bundle."""
    return f"mmcompile build {shlex.quote(str(folder))}"


def polygraphy_lines(original: str, compiled: str) -> tuple[str, str]:
    """Commands that compare two models in ONNX Runtime; `polygraphy run` takes one at a time.

    Args:
        original: the original model, quoted for a shell.
        compiled: the compiled model, quoted for a shell.
    """
    return (
        f"polygraphy run {original} --onnxrt --save-inputs inputs.json --save-outputs outputs.json",
        f"polygraphy run {compiled} --onnxrt --load-inputs inputs.json "
        f"--load-outputs outputs.json {COSINE}",
    )


def trtexec_line(meta: BundleMeta) -> str:
    """The command of trtexec for the same engine; it runs in the bundle's folder."""
    choices = meta.choices
    parts = ["trtexec", f"--onnx={MODEL_FILE}", "--stronglyTyped"]
    parts.append(f"--dynamicPlugins=./{LIBRARY}")
    for number, profile in enumerate(choices.profiles):
        parts += [f"--profile={number}"] if len(choices.profiles) > 1 else []
        parts += trtexec_shapes(profile)
    if choices.optimization_level is not None:
        parts.append(f"--builderOptimizationLevel={choices.optimization_level}")
    if choices.workspace_bytes is not None:
        parts.append(f"--memPoolSize=workspace:{choices.workspace_bytes}B")
    if choices.embed_plugin:
        parts += ["--versionCompatible", f"--setPluginsToSerialize=./{LIBRARY}"]
    return " ".join([*parts, "--saveEngine=trtexec.plan"])


def polygraphy_engine_line(meta: BundleMeta) -> str:
    """The command of polygraphy that builds, runs and compares; needs the original's outputs."""
    choices = meta.choices
    parts = ["polygraphy run", MODEL_FILE, "--trt --strongly-typed", f"--plugins ./{LIBRARY}"]
    # polygraphy loads plugins before TensorRT, which a library then cannot register with, unless
    # an option makes it import TensorRT while it reads its command line. This one does.
    parts.append("--profiling-verbosity detailed")
    for profile in choices.profiles:
        parts += polygraphy_shapes(profile)
    if choices.optimization_level is not None:
        parts.append(f"--builder-optimization-level {choices.optimization_level}")
    if choices.workspace_bytes is not None:
        parts.append(f"--pool-limit workspace:{choices.workspace_bytes}")
    parts.append("--save-engine polygraphy.plan")
    return " ".join([*parts, "--load-inputs inputs.json --load-outputs outputs.json", COSINE])


def script(meta: BundleMeta) -> str:
    """reproduce.sh: every command that was printed, ready to run."""
    first, second = polygraphy_lines('"$ORIGINAL"', MODEL_FILE)
    return _SCRIPT.format(
        original=shlex.quote(meta.original),
        target=meta.target,
        version=meta.mmcompile,
        first=first,
        second=second,
        trtexec=trtexec_line(meta),
        polygraphy=polygraphy_engine_line(meta),
        engine=ENGINE_FILE,
    )


_SCRIPT = """\
#!/bin/sh
# Written by mmcompile {version} for {target}. Runs one step: sh reproduce.sh STEP
#   onnxruntime  the compiled model against the original, in ONNX Runtime: needs no GPU
#   build        {engine}, with mmcompile: needs TensorRT and the GPU
#   trtexec      an engine and its timing, with NVIDIA's trtexec
#   polygraphy   an engine, run and held against the original's outputs
# The original model is $ORIGINAL; set it where the file lies elsewhere.
set -eu
cd "$(dirname "$0")"
[ -n "${{ORIGINAL:-}}" ] || ORIGINAL={original}
case "${{1:-}}" in
onnxruntime)
  {first}
  {second}
  ;;
build)
  mmcompile build .
  ;;
trtexec)
  {trtexec}
  ;;
polygraphy)
  {first}
  {polygraphy}
  ;;
*)
  sed -n '2,7p' "$0"
  exit 2
  ;;
esac
"""
