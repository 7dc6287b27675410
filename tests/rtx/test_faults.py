"""Planted faults in the plugin that building for a GPU which is not here must find."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.compiling import Compiled
from tests.plugin.building import PLUGINS
from tests.rtx.building import build, recording_plugin
from tests.rtx.test_build import check, check_refusal

MEASURES = ("current_device.cpp", "!tensorrt_rtx_file().empty() || ", "")
OPENS_NO_GPU = (
    "current_device.cpp",
    "int current_ordinal() {\n  return 0;",
    'int current_ordinal() {\n  throw PluginError("no current GPU");',
)


@dataclass(frozen=True)
class Fault:
    """Changes of the plugin's sources (file, old, new), and what is seen of them."""

    edits: tuple[tuple[str, str, str], ...]
    seen: str


FAULTS = {
    "offers tactics": Fault((MEASURES,), "1001"),
    "demands a GPU": Fault((MEASURES, OPENS_NO_GPU), "no current GPU"),
    "is not registered by dlopen": Fault(
        (("loaded.cpp", " || is_file(info->dlpi_name, kTensorRtRtx)", ""),), "parsed=False"
    ),
    "leaves the parser without libtensorrt_rtx.so": Fault(
        (("rtx_name.cpp", "if (rtx.empty() ||", "if (true ||"),), "terminate called"
    ),
    "takes it for TensorRT 10": Fault(
        (("loaded.cpp", "? Shape::k11 :", "? Shape::k10 :"),), "-11|layout_version"
    ),
    "takes it for another release": Fault(
        (("loaded.cpp", "release >= 107", "release >= 108"),), "layout_version"
    ),
}


def examine(plugin: Path, good: Path, refused: Path, folder: Path) -> None:
    for way in ("load", "dlopen"):
        check(build(plugin, good, folder, way), 1)
        check_refusal(build(plugin, refused, folder, way))


def test_the_sound_plugin_passes(
    linear: Callable[[str], Compiled], refused: Path, tmp_path: Path
) -> None:
    """Only then does a fault prove anything."""
    examine(recording_plugin(), linear("matmul").path, refused, tmp_path)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(
    name: str, linear: Callable[[str], Compiled], refused: Path, tmp_path: Path
) -> None:
    sources = tmp_path / "trt"
    shutil.copytree(PLUGINS / "trt", sources)
    for file, old, new in FAULTS[name].edits:
        text = (sources / file).read_text()
        assert text.count(old) == 1
        (sources / file).write_text(text.replace(old, new))
    plugin = recording_plugin(sources)
    with pytest.raises(AssertionError, match=FAULTS[name].seen):
        examine(plugin, linear("matmul").path, refused, tmp_path)
