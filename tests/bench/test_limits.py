"""The modelled limits against arithmetic by hand, and what every figure comes from."""

import pytest

from mmcompile.bench.limits import (
    VARIANTS,
    Layer,
    example_segments,
    layer_limit,
    parts_of,
)
from mmcompile.bench.modelled import model_limits
from mmcompile.bench.points import DEFAULT_POINTS, Point, input_shapes, parse_point
from mmcompile.errors import UsageError
from mmcompile.plan import Segment
from mmcompile.targets.names import identify_gpu, parse_gpu, parse_target
from mmcompile.targets.table import GPUS
from mmcompile.targets.target import Figure, Gpu, Kernels, Kind

RTX5090 = parse_gpu("rtx5090")
LAYER = Layer("l", ("n",), 4096, 6144, example_segments(4096))


def seconds(variant, rows, layer=LAYER, gpu=RTX5090):
    return layer_limit(gpu, layer, parts_of(layer, variant), rows)


@pytest.mark.parametrize(
    ("variant", "tflops"),
    [("FP16", 209.5), ("FP8", 419), ("MXFP8", 838), ("MXFP6", 838), ("NVFP4", 1676)],
)
def test_large_batches_take_the_published_rates(variant, tflops):
    limit = seconds(variant, 8192)
    assert limit.bound == "compute"
    assert limit.seconds == pytest.approx(2 * 8192 * 4096 * 6144 / (tflops * 1e12), rel=1e-3)


@pytest.mark.parametrize(
    ("variant", "bits"),
    [("FP16", 16), ("FP8", 8), ("MXFP8", 8.25), ("MXFP6", 6.25), ("NVFP4", 4.5), ("MXFP4", 4.25)],
)
def test_one_row_reads_the_weights(variant, bits):
    limit = seconds(variant, 1)
    moved = 4096 * 6144 * bits / 8 + 2 * (4096 + 6144)
    assert limit.bound == "memory"
    assert limit.seconds == pytest.approx(moved / 1.792e12)


def test_the_mix_is_the_mean_of_its_parts():
    # 3/4 at 4096 FLOP per clock, 1/4 at 2048: 1 / (0.75 / 8 + 0.25 / 4) = 6.4 times FP16.
    assert seconds("FP16", 8192).seconds / seconds("MicroMix", 8192).seconds == pytest.approx(6.4)
    bits = 0.75 * 4.25 + 0.125 * 6.25 + 0.125 * 8.25
    moved = 4096 * 6144 * bits / 8 + 2 * (4096 + 6144)
    assert seconds("MicroMix", 1).seconds == pytest.approx(moved / 1.792e12)


def test_the_wider_of_two_formats_decides_the_instruction():
    mixed = Layer("l", ("n",), 4096, 6144, (Segment(4096, "mxfp8", "mxfp4", 2.0, 2.0),))
    assert seconds("MicroMix", 8192, mixed).seconds == seconds("MXFP8", 8192).seconds
    assert seconds("MicroMix", 1, mixed).seconds == seconds("MXFP4", 1).seconds


def test_padding_takes_time_as_the_kernels_pad():
    assert sum(s.channels for s in example_segments(350)) == 352
    assert all(s.channels % 32 == 0 for s in example_segments(350))
    assert [s.channels for s in example_segments(20)] == [32]


def test_kept_layers_are_fp16_in_every_variant():
    kept = Layer("head", ("n",), 4096, 6144, ())
    assert len({seconds(variant, 16, kept).seconds for variant in VARIANTS}) == 1


def test_rtx_pro_gains_half_of_what_geforce_does_and_hopper_nothing():
    pro, hopper = parse_gpu("rtxpro6000"), parse_gpu("h200")
    ratio = seconds("FP16", 8192, gpu=pro).seconds / seconds("MXFP4", 8192, gpu=pro).seconds
    assert ratio == pytest.approx(4)
    assert seconds("MXFP4", 8192, gpu=hopper).seconds == pytest.approx(
        seconds("FP16", 8192, gpu=hopper).seconds
    )
    assert seconds("MXFP4", 1, gpu=hopper).seconds < seconds("FP8", 1, gpu=hopper).seconds


def test_the_target_and_the_gpus_agree():
    for gpu in GPUS:
        target = parse_target(gpu.name)
        assert target.has_block_scales == (Kind.BLOCK8 in gpu.rates)
        assert target.has_block_scales == (target.kernels is Kernels.NATIVE)
        if target.has_block_scales:
            assert target.rates == gpu.rates


def test_every_figure_has_a_source_and_published_products_come_out():
    for gpu in GPUS:
        figures = (gpu.multiprocessors, gpu.clock, gpu.bandwidth, gpu.memory, gpu.l2)
        for figure in (*figures, *gpu.rates.values()):
            assert figure is None or (figure.value > 0 and len(figure.source) > 10)
    published = {"rtx5090": 209.5e12, "rtxpro6000": 503.8e12, "h100": 989.4e12, "h200": 989.5e12}
    for name, flops in published.items():
        assert parse_gpu(name).flops(Kind.FP16) == pytest.approx(flops, rel=1e-3)
    assert parse_gpu("rtx5090").flops(Kind.BLOCK4) == pytest.approx(1676e12, rel=1e-3)


def test_unknown_figures_are_absent_and_nothing_is_modelled_without_them():
    assert parse_gpu("rtx5070tilaptop").l2 is None
    unknown = Gpu("x", "X", 120, Figure(1, "nowhere at all"), None, None, None, None, {})
    assert unknown.flops(Kind.FP16) is None
    with pytest.raises(UsageError, match="not known"):
        model_limits("m", [LAYER], unknown, [Point(1, 1)], "")


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA GeForce RTX 5070 Ti Laptop GPU", "rtx5070tilaptop"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtxpro6000"),
        ("NVIDIA GB10", "dgxspark"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5090 D", None),
        ("NVIDIA H100 PCIe", None),
        ("Tesla T4", None),
    ],
)
def test_gpus_by_what_drivers_report(reported, name):
    found = identify_gpu(reported)
    assert (found.name if found else None) == name


@pytest.mark.parametrize("name", ["sm_120", "rtx6090", ""])
def test_families_and_unknown_gpus_are_refused_with_the_list(name):
    with pytest.raises(UsageError) as caught:
        parse_gpu(name)
    assert "rtx5090" in str(caught.value) and "dgxspark" in str(caught.value)


def test_points():
    assert parse_point("8x512") == Point(8, 512)
    assert (Point(8, 1).phase, Point(8, 2).phase) == ("decode", "prefill")
    assert {point.phase for point in DEFAULT_POINTS} == {"decode", "prefill"}
    for wrong in ("8", "0x1", "x", "8x", "1x2x3", "-1x5"):
        with pytest.raises(UsageError, match="point-malformed"):
            parse_point(wrong)


def test_input_shapes_follow_names_then_places():
    inputs = [
        ("input_ids", ("batch_size", "sequence_length")),
        ("positions", ("seq",)),
        ("x", (None, "anything", 64)),
        ("y", (1, 77)),
    ]
    assert input_shapes(inputs, Point(3, 5)) == {
        "input_ids": (3, 5),
        "positions": (5,),
        "x": (3, 5, 64),
        "y": (1, 77),
    }
    with pytest.raises(UsageError, match="earlier keys and values"):
        input_shapes([("past_key_values.0", ("batch", 8, "past", 64))], Point(1, 1))
