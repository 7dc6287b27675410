"""A model through TensorRT-RTX, and what came of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.kernels.build import Recipe, compile_shared_library
from tests.plugin.building import HERE as PLUGIN_TESTS
from tests.plugin.building import PLUGINS, ROOT, WARNINGS

BUILDER = Path(__file__).with_name("builder.py")
LARGEST_ROWS = (8 * 8, 16 * 16)
"""Batch times sequence, of builder.py's profiles."""
_TACTIC = re.compile(
    rb'custom_layer=\{ name="([^"]*)"[^}]*\}[^}]*\} [^{]*tactic_id="[^"]*_(-?\d+)"'
)


@dataclass(frozen=True)
class Built:
    """What the builder's process said.

    Attributes:
        status: its exit status; negative where it died of a signal.
        stderr: of the process.
        parsed: whether the parser took the model.
        errors: what it objected to.
        inputs: of the network: name, type and shape of each.
        outputs: likewise.
        plugin_layers: names of the network's plugin layers.
        log: severity and text of all warnings and errors.
        plan: the engine; empty where there is none.
    """

    status: int
    stderr: str
    parsed: bool = False
    errors: tuple[str, ...] = ()
    inputs: tuple[list[object], ...] = ()
    outputs: tuple[list[object], ...] = ()
    plugin_layers: tuple[str, ...] = ()
    log: tuple[list[object], ...] = ()
    plan: bytes = b""

    @property
    def tactics(self) -> dict[str, int]:
        """The tactic of every plugin layer of the plan, which has its layers as text.

        They have the network's names, those of the second profile with ` [profile 1]` behind.
        """
        return {name.decode(): int(tactic) for name, tactic in _TACTIC.findall(self.plan)}


def build(plugin: Path, model: Path, folder: Path, way: str = "load") -> Built:
    """Builds the model with the plugin library; see builder.py. `folder` takes the plan."""
    plan = folder / "engine.plan"
    plan.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, str(BUILDER), str(plugin), way, str(model), str(plan)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode != 0:
        return Built(done.returncode, done.stderr)
    report = {
        name: value if name == "parsed" else tuple(value)
        for name, value in json.loads(done.stdout).items()
    }
    content = plan.read_bytes() if plan.exists() else b""
    return Built(0, done.stderr, plan=content, **report)


def recording_plugin(plugins: Path = PLUGINS / "trt") -> Path:
    """The plugin over a kernel library that has a GPU, from sources that may be a changed copy.

    It tells a build that measures from one that does not, also on a machine without a GPU.
    """
    return compile_shared_library(
        "mmcompile_recording",
        [*sorted(plugins.glob("*.cpp")), PLUGIN_TESTS / "recording_kernels.cpp"],
        Recipe(
            defines={"MMCOMPILE_EMULATED": "1"},
            includes=(plugins, PLUGINS / "include"),
            flags=("-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", *WARNINGS),
        ),
    )


def recorded_workspaces(padded_channels: int) -> list[int]:
    """What the recording kernel library wants on the largest GPU, for every profile."""
    return [128 * 192 + rows * padded_channels for rows in LARGEST_ROWS]
