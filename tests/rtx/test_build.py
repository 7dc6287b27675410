"""Compiled models through NVIDIA's own parser and builder, for SM120, without a GPU."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compiling import Compiled
from tests.models import K, N
from tests.rtx.building import Built, build, recorded_workspaces, recording_plugin

ERROR = 1


def check(built: Built, layers: int) -> None:
    """Parsed and built, and every plugin layer chooses its tile when it runs (tactic 0)."""
    assert built.status == 0, built.stderr
    assert built.parsed and not built.errors, built
    assert len(built.plugin_layers) == layers
    assert built.plan, built.log
    names = [name + profile for name in built.plugin_layers for profile in ("", " [profile 1]")]
    assert built.tactics == dict.fromkeys(names, 0)
    assert not [text for severity, text in built.log if severity <= ERROR]


def check_refusal(built: Built) -> None:
    """The parser refused the model of `refused`, and the plugin's sentence is in TensorRT's log."""
    assert built.status == 0, built.stderr
    assert not built.parsed and not built.plan
    assert [
        ERROR,
        "MicroMixLinear layer 'linear': field 'layout_version' is 1, this plugin reads layout 2; "
        "compile the model again with this version of mmcompile",
    ] in built.log


@pytest.mark.parametrize("way", ["load", "dlopen"])
@pytest.mark.parametrize(
    ("variant", "dtype"), [("matmul_add", "FLOAT"), ("fp16", "HALF"), ("bf16", "BF16")]
)
def test_one_linear(
    linear: Callable[[str], Compiled],
    plugin: Path,
    tmp_path: Path,
    variant: str,
    dtype: str,
    way: str,
) -> None:
    built = build(plugin, linear(variant).path, tmp_path, way)
    check(built, 1)
    assert built.inputs == (["x", dtype, [-1, -1, K]],)
    assert built.outputs == (["y", dtype, [-1, -1, N]],)


def test_merged_linears(linear: Callable[[str], Compiled], plugin: Path, tmp_path: Path) -> None:
    """Three linears of one input become one node, and a second profile changes nothing."""
    check(build(plugin, linear("shared_input").path, tmp_path), 1)


def test_an_encoder(encoder: Compiled, plugin: Path, tmp_path: Path) -> None:
    built = build(plugin, encoder.path, tmp_path)
    check(built, len(encoder.plans))
    assert len(encoder.plans) >= 8
    assert [name for name, *_ in built.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


def test_the_workspace_is_that_of_the_largest_gpu(
    linear: Callable[[str], Compiled], tmp_path: Path
) -> None:
    model = linear("matmul")
    built = build(recording_plugin(), model.path, tmp_path)
    check(built, 1)
    (packed,) = model.packed
    for expected in recorded_workspaces(len(packed.order)):
        assert struct.pack("<q", expected) in built.plan


@pytest.mark.parametrize("way", ["load", "dlopen"])
def test_a_refusal_reaches_the_logger(
    refused: Path, plugin: Path, tmp_path: Path, way: str
) -> None:
    check_refusal(build(plugin, refused, tmp_path, way))


def test_polygraphy(encoder: Compiled, plugin: Path, tmp_path: Path) -> None:
    """The command as a user types it: nothing is set but the product."""
    polygraphy = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    assert polygraphy is not None
    plan = tmp_path / "engine.plan"
    command = [polygraphy, "convert", str(encoder.path), "--convert-to", "trt", "-o", str(plan)]
    command += ["--plugins", str(plugin), "--compute-capabilities", "12.0"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tactics = Built(0, "", plan=plan.read_bytes()).tactics
    assert list(tactics.values()) == [0] * len(encoder.plans)
