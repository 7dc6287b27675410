"""abi.h against NVIDIA's own code: C++ that knows only abi.h calls a plugin written in Python.

Every call passes through trampolines that NVIDIA compiled. That the test can fail is shown on
planted faults: each is one slot, value or member of abi.h or versions.h changed.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.plugin import building

pytestmark = pytest.mark.slow


def tensor(i: int, dtype: int) -> list[Any]:
    """The driver's tensor number i as Python sees it: dimensions, type, scale."""
    return [[100 * i + 1, 100 * i + 2], dtype, 0.5 * i]


def ranged(i: int, dtype: int) -> list[Any]:
    bounds = [[100 * i + j, 100 * i + j + 1] for j in (3, 5, 7)]
    return [*tensor(i, dtype), *bounds]


FLOAT, HALF, INT8, INT32, BF16 = 0, 1, 2, 3, 7
IN, OUT = [ranged(1, HALF), ranged(2, INT32)], [ranged(3, FLOAT)]
PYTHON = {
    "create": ["some layer", 1, [["integers", 5, 3, 3.0], ["scale", 1, 1, 0.25]]],
    "capabilities": [0, 1, 2],
    "types": [BF16, INT8],
    "shapes": [[True, False], [True, True]],
    "shape_inputs": 0,
    "formats": [[position, 2, IN + OUT] for position in range(3)],
    "configure": [IN, OUT],
    "workspace": [IN, OUT],
    "tactic": 1002,
    "shape": [[tensor(4, HALF), tensor(5, INT8)], [tensor(6, BF16)]],
    "enqueue": [
        [tensor(4, HALF), tensor(5, INT8)],
        [tensor(6, BF16)],
        [0x1100, 0x1200],
        [0x2100],
        0x3100,
        0x4100,
    ],
    "attach": "IPluginResourceContext",
    "clones": 2,
}
CPP = [
    "found 1",
    "creator PLUGIN CREATOR_V3ONE/1.0/1",
    "names PythonPlugin 7 probe",
    "fields 1 integers:int32:0",
    "created 1",
    "plugin PLUGIN/1.0/1",
    "core PLUGIN_V3ONE_CORE/1.0/1",
    "identity PythonPlugin 7 probe",
    "build PLUGIN_V3ONE_BUILD/1.0/1",
    "outputs 1",
    "types 0 half",
    f"operation product 11 {1 << 40}",
    f"shapes 0 2 {11 << 40} 14",
    "formats 1 0 1",
    "configure 0",
    "workspace 5000000019",
    "tactics 3 0 1001 1002 5",
    "timing timing-id",
    "limit 23",
    "metadata meta-data",
    "runtime PLUGIN_V3ONE_RUNTIME/1.0/1",
    "tactic 0",
    "shape 0",
    "enqueue 0",
    "serialize 1 stored:int32:2:9:8",
    "attached 1",
    "cloned 1",
]


def drive(release: building.Release, driver: Path) -> dict[str, Any]:
    """What both sides saw; `crash` instead where the process died."""
    done = building.run_in(release, "python_plugin.py", driver)
    if done.returncode != 0:
        return {"crash": done.returncode, "stderr": done.stderr}
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check(report: dict[str, Any]) -> None:
    assert "crash" not in report, report
    assert report["python"] == PYTHON
    assert report["cpp"] == CPP
    # Before 11.0 a finder cannot say what it is.
    expected = "findLogger returns" if report["major"] == 10 else "ILoggerFinder"
    assert report["finder"] == expected


@pytest.mark.parametrize("release", building.release_parameters())
def test_every_argument_and_result_crosses_intact(release: building.Release, driver: Path) -> None:
    check(drive(release, driver))


@dataclass(frozen=True)
class Swap:
    """Two member functions exchanged, each found by how its declaration starts."""

    first: str
    second: str
    file: str = "abi.h"

    def apply(self, text: str) -> str:
        declaration = r"[^;{]*(?:;|\{[^}]*\})"
        a, b = (re.search(re.escape(s) + declaration, text) for s in (self.first, self.second))
        assert a and b and a.end() <= b.start()
        return text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]


@dataclass(frozen=True)
class Edit:
    """One text in place of another."""

    old: str
    new: str
    file: str = "abi.h"

    def apply(self, text: str) -> str:
        assert self.old in text
        return text.replace(self.old, self.new)


FAULTS: dict[str, Swap | Edit] = {
    "tactics-swapped": Swap("virtual int32_t getValidTactics", "virtual int32_t getNbTactics"),
    "capability-swapped": Swap("virtual IPluginCapability* getCap", "virtual IPluginV3* clone"),
    "creator-swapped": Swap(
        "virtual IPluginV3* createPlugin", "virtual const PluginFieldCollection* getFieldNames"
    ),
    "runtime-swapped": Swap(
        "virtual IPluginV3* attach", "virtual const PluginFieldCollection* getFieldsToSerialize"
    ),
    "dimension-swapped": Swap("virtual bool isConstant", "virtual int64_t getConstantValue"),
    "bounds-swapped": Edit("Dims min;\n  Dims max;", "Dims max;\n  Dims min;"),
    "data-type": Edit("kBF16 = 7", "kBF16 = 9"),
    "field-type": Edit("kINT32 = 5", "kINT32 = 10"),
    "phase": Edit("kBUILD = 0, kRUNTIME = 1 }", "kBUILD = 1, kRUNTIME = 0 }"),
    "capability-type": Edit("kBUILD = 1, kRUNTIME = 2", "kBUILD = 2, kRUNTIME = 1"),
    "operation": Edit("kPROD = 1,\n  kMAX = 2", "kPROD = 2,\n  kMAX = 1"),
    "member-missing": Edit("  TensorFormat format;\n", ""),
    "virtual-missing": Edit("virtual ~IVersionedInterface", "~IVersionedInterface"),
    "narrow-dimensions": Edit("int64_t d[MAX_DIMS]", "int32_t d[MAX_DIMS]"),
    "registry-slot": Edit("virtual bool isParentSearchEnabled() const = 0;", "", "versions.h"),
}


@pytest.fixture(scope="module")
def sound_release(driver: Path) -> building.Release:
    """A release in which the unchanged headers pass: only then does a fault prove anything."""
    found = building.releases()
    if not found:
        pytest.skip(building.NO_TENSORRT)
    check(drive(found[0], driver))
    return found[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(
    fault: str, sound_release: building.Release, tmp_path: Path
) -> None:
    planted = FAULTS[fault]
    headers = tmp_path / "trt"
    shutil.copytree(building.PLUGINS / "trt", headers)
    faulty = headers / planted.file
    faulty.write_text(planted.apply(faulty.read_text()))
    # The assertions would refuse some of the faults; here NVIDIA's code is the judge.
    assertions = (headers / "tensorrt.h").read_text()
    (headers / "tensorrt.h").write_text(re.sub(r"static_assert\([^;]*;", "", assertions))
    source = building.HERE / "drive_trampolines.cpp"
    library = building.compile_cpp(tmp_path / "driver.so", "-shared", source, include=headers)
    report = drive(sound_release, library)
    if "crash" not in report:
        assert report["python"] != PYTHON or report["cpp"] != CPP
