"""The bundle: everything that another machine needs to build the engine, and the commands there."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from mmcompile import __version__
from mmcompile.backends.engines.interface import Interface
from mmcompile.backends.engines.meta import (
    BUILD_FILE,
    FORMAT,
    BuildChoices,
    BundleMeta,
    check_file,
    describe_file,
    read_meta,
    write_meta,
)
from mmcompile.backends.engines.plugin import LIBRARY, find_plugin, plugin_meta
from mmcompile.backends.protocol import Step
from mmcompile.errors import EnvironmentProblem
from mmcompile.output import DATA_FILE, MODEL_FILE, disk_errors

SCRIPT_FILE = "reproduce.sh"
PLAN_FILE = "plan.json"
COSINE = "--compare cosine_similarity --cosine-similarity-threshold 0.9"
"""The demand of the polygraphy lines: far below what a good plan reaches, far above a wrong one."""


def write_bundle(
    folder: Path, interface: Interface, choices: BuildChoices, *, target: str, original: Path
) -> tuple[BundleMeta, EnvironmentProblem | None]:
    """Adds the plugin library and build.json to a folder with model and plan.

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
    return meta, problem


def read_bundle(folder: Path) -> tuple[BundleMeta, Path | EnvironmentProblem]:
    """A bundle's description, and its plugin library or why there is none.

    Raises:
        UsageError: the folder holds no bundle.
        EnvironmentProblem: the library is damaged, or not that of the bundle.
    """
    meta = read_meta(folder / BUILD_FILE, BundleMeta)
    try:
        library = find_plugin(folder)
    except EnvironmentProblem as problem:
        return meta, problem
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


def write_script(folder: Path, meta: BundleMeta, steps: Sequence[Step]) -> None:
    """Writes reproduce.sh: every command that was printed, and what other tools can do.

    Args:
        folder: of the bundle.
        meta: what it holds.
        steps: what back ends can do with other tools.

    Raises:
        EnvironmentProblem: the disk is full or fails.
    """
    both = polygraphy_lines(ORIGINAL, MODEL_FILE)
    all_steps = (
        Step(
            "onnxruntime", "the compiled model against the original, in ONNX Runtime: no GPU", both
        ),
        Step("build", "the engine, with mmcompile", ("mmcompile build .",)),
        *steps,
    )
    width = max(len(step.name) for step in all_steps)
    text = _SCRIPT.format(
        original=shlex.quote(meta.original),
        target=meta.target,
        version=meta.mmcompile,
        steps="\n".join(f"#   {step.name:{width}}  {step.about}" for step in all_steps),
        last=len(all_steps) + 3,
        cases="\n".join(map(_case, all_steps)),
    )
    with disk_errors(folder / SCRIPT_FILE):
        (folder / SCRIPT_FILE).write_text(text, encoding="utf-8")
        (folder / SCRIPT_FILE).chmod(0o755)


def _case(step: Step) -> str:
    return "\n".join([f"{step.name})", *(f"  {line}" for line in step.commands), "  ;;"])


ORIGINAL = '"$ORIGINAL"'
"""The original model, in commands of reproduce.sh."""
_SCRIPT = """\
#!/bin/sh
# Written by mmcompile {version} for {target}. Runs one step: sh reproduce.sh STEP
{steps}
# The original model is $ORIGINAL; set it where the file lies elsewhere.
set -eu
cd "$(dirname "$0")"
[ -n "${{ORIGINAL:-}}" ] || ORIGINAL={original}
case "${{1:-}}" in
{cases}
*)
  sed -n '2,{last}p' "$0"
  exit 2
  ;;
esac
"""
