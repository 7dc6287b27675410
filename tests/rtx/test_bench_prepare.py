"""`mmcompile bench --prepare` with NVIDIA's own builder, for SM120, without a GPU."""

from __future__ import annotations

import sys

import pytest

from mmcompile.backends.engines.plugin import LIBRARY
from mmcompile.backends.engines.product import version_of
from mmcompile.backends.tensorrt_rtx import PRODUCT
from mmcompile.bench.prepared import MANIFEST, read_prepared
from tests.doctor.cuda import install
from tests.plugin.building import prebuilt_plugin
from tests.workplace import Result, call

pytestmark = pytest.mark.slow
VARIANTS = {"FP16": "FP16", "FP8": "FP8", "MXFP8": "MXFP8", "NVFP4": "NVFP4", "MicroMix": "plugin"}


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory):
    """A small BERT's prepared folder, and what the command printed."""
    if version_of(PRODUCT.distributions) is None:
        pytest.skip("no TensorRT-RTX; pip install 'mmcompile[rtx]'")
    target = tmp_path_factory.mktemp("prepared") / "bench"
    data = ("--calib", "random", "--samples", "4")
    points = ("--point", "1x1", "--point", "2x16")
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, PRODUCT.module, raising=False)  # which others do not see
        patch.setenv("MMCOMPILE_CACHE_DIR", str(target.parent / "cache"))
        patch.setenv("MMCOMPILE_PLUGIN", str(prebuilt_plugin()))
        shown = call("bench", exported("bert"), "--prepare", target, *data, *points)
    assert shown.code == 0, shown.err
    return target, shown


def run(folder, monkeypatch) -> Result:
    """`--run` on a machine with the builder, but without a GPU."""
    install(monkeypatch)
    monkeypatch.delitem(sys.modules, PRODUCT.module)
    return call("bench", "--run", folder)


def test_every_variant_has_an_engine(folder):
    target, shown = folder
    found = read_prepared(target)
    assert (found.target, found.builder) == ("sm_120", "TensorRT-RTX")
    assert [variant.name for variant in found.variants] == list(VARIANTS)
    for variant in found.variants:
        assert variant.error is None
        content = (target / variant.engine.name).read_bytes()
        assert content[1:4] == b"trt" and len(content) == variant.engine.bytes
    assert (target / LIBRARY).read_bytes() == prebuilt_plugin().read_bytes()
    assert {path.name for path in target.iterdir()} == {f.name for f in found.files} | {MANIFEST}
    assert "not timed" in shown.out and "nothing was timed" in shown.out


def test_what_the_layers_run_is_told(folder):
    target, shown = folder
    variants = {variant.name: variant for variant in read_prepared(target).variants}
    for name, precision in VARIANTS.items():
        check = variants[name].precision
        assert check.asked >= 8
        if name == "MXFP8":  # which TensorRT-RTX 1.7 multiplies in 16 bits
            assert check.lost
        else:
            assert not check.lost and check.realized.counts[precision] >= 8
    assert "MXFP8, not realized" in " ".join(shown.out.split())
    assert "MXFP8 is not realized" in " ".join(shown.out.split())


def test_without_a_gpu_running_is_one_line(folder, monkeypatch):
    shown = run(folder[0], monkeypatch)
    assert shown.code == 4
    assert "no driver" in shown.line() and shown.line().endswith("[no-gpu]")


def test_a_changed_byte_is_found_before_the_gpu(folder, monkeypatch):
    target, _ = folder
    engine = target / read_prepared(target).variants[3].engine.name
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    whole = engine.read_bytes()
    engine.write_bytes(content)
    try:
        shown = run(target, monkeypatch)
    finally:
        engine.write_bytes(whole)
    assert shown.code == 4
    assert engine.name in shown.line() and shown.line().endswith("[bench-changed]")
