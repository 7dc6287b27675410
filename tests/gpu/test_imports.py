"""The checks run on a machine that has a GPU, Python and numpy, and nothing else."""

import subprocess
import sys

from tests.gpu.place import ROOT

SCRIPT = """
import sys
before = set(sys.modules)
import tests.gpu.__main__
# Modules without a file are made by extension modules, such as numpy's.
new = {name for name, module in sys.modules.items() if getattr(module, "__file__", None)} - before
allowed = sys.stdlib_module_names | {"mmcompile", "numpy", "tests"}
print(*sorted({name.partition(".")[0] for name in new} - allowed))
"""


def test_the_checks_import_numpy_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stdout.split()
