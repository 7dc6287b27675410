"""A name of a policy, a format, a GPU or a back end is spelt in one file; others ask for it."""

import ast
from pathlib import Path

import pytest

from mmcompile.backends import tensorrt, tensorrt_rtx
from mmcompile.backends.engines.options import AUTO
from mmcompile.formats import BLOCK_FORMATS
from mmcompile.policy.cost import CostPolicy
from mmcompile.policy.micromix import MicroMixPolicy
from mmcompile.policy.uniform import UNIFORM, UniformPolicy
from mmcompile.targets.table import GPUS, TARGETS

PRODUCT = Path(__file__).parent.parent / "mmcompile"

HOMES = {
    **dict.fromkeys(BLOCK_FORMATS, "formats.py"),
    CostPolicy.NAME: "policy/cost.py",
    MicroMixPolicy.NAME: "policy/micromix.py",
    UniformPolicy.FAMILY: "policy/uniform.py",
    **{name: "policy/uniform.py" for name in UNIFORM if name not in BLOCK_FORMATS},
    **dict.fromkeys([target.name for target in TARGETS], "targets/table.py"),
    **{alias: "targets/table.py" for target in TARGETS for alias in target.aliases},
    **{gpu.name: "targets/table.py" for gpu in GPUS},
    # The back end `none` is a word, too; see tests/backends/test_registry.py.
    tensorrt.BACKEND.name: "backends/tensorrt.py",
    tensorrt_rtx.BACKEND.name: "backends/tensorrt_rtx.py",
    AUTO: "backends/engines/options.py",
}
"""The file of every name, in the package."""

ALLOWED = {
    "model/passes/baselines/kinds.py": "names kinds of stock graphs, two of which are formats",
    "cuda/layers.py": "names mixes of formats, below the policies; one is the paper's",
}
"""Files that may spell names of others, and why."""


def spelt(folder):
    """The names that string constants of a package's files are, with the file."""
    return {
        (path.relative_to(folder).as_posix(), node.value)
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in HOMES
    }


def astray(found):
    return {(file, name) for file, name in found if HOMES[name] != file and file not in ALLOWED}


def test_names_stand_in_their_file_alone():
    assert astray(spelt(PRODUCT)) == set()


def test_every_name_stands_in_its_file():
    found = spelt(PRODUCT)
    assert {(HOMES[name], name) for name in HOMES} <= found
    assert {file for file, _ in found} >= ALLOWED.keys()


@pytest.mark.parametrize(
    "text", ['x = "h100"', 'f(a="h100")', "match a:\n    case 'h100':\n        f()"]
)
def test_a_stray_is_seen(tmp_path, text):
    for file in ("targets/table.py", "cli/command.py"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    assert astray(spelt(tmp_path)) == {("cli/command.py", "h100")}
