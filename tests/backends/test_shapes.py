"""Shape profiles: the notation, the defaults, and what is refused."""

from __future__ import annotations

import pytest

from mmcompile.backends.engines.interface import Interface, TensorSpec
from mmcompile.backends.engines.options import parse_bytes
from mmcompile.backends.engines.shapes import (
    BATCH,
    LENGTH,
    Span,
    make_profiles,
    polygraphy_shapes,
    trtexec_shapes,
)
from mmcompile.errors import UsageError

TEXT = Interface(
    (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "sequence")),
        TensorSpec("scale", "float32", (1,)),
    ),
    (),
)
SCALE = Span((1,), (1,), (1,))


def profiles(*asked, interface=TEXT, **observed):
    return make_profiles(asked, interface, observed)


@pytest.mark.parametrize(
    "text",
    [
        "input_ids:[1x1,1x512,8x2048]",
        "input_ids:[[1,1],[1,512],[8,2048]]",
        " input_ids:[1x1, 1x512, 8x2048] ",
        "input_ids:[1x1,1x512,8x2048] attention_mask:[1x1,1x512,8x2048]",
    ],
)
def test_inputs_that_share_dimensions_follow(text):
    span = Span((1, 1), (1, 512), (8, 2048))
    assert profiles(text) == ({"input_ids": span, "attention_mask": span, "scale": SCALE},)


def test_one_shape_is_all_three():
    (profile,) = profiles("input_ids:[4x64]")
    assert profile["attention_mask"] == Span((4, 64), (4, 64), (4, 64))


def test_an_input_named_again_starts_the_next_profile():
    first, second = profiles("input_ids:[1x1]", "input_ids:[8x32,8x64,8x128]")
    assert first["input_ids"].max == (1, 1)
    assert second["attention_mask"] == Span((8, 32), (8, 64), (8, 128))
    both = profiles("input_ids:[1x1] input_ids:[8x32,8x64,8x128]")
    assert both == (first, second)


def test_defaults_without_data():
    (profile,) = profiles()
    expected = Span(*zip(BATCH, LENGTH, strict=True))
    assert profile == {"input_ids": expected, "attention_mask": expected, "scale": SCALE}


def test_defaults_from_data():
    (profile,) = profiles(input_ids=[(1, 10), (1, 70), (1, 40)])
    assert profile["attention_mask"] == Span((1, 1), (1, 40), (8, 70))


def test_dimensions_without_a_name_stand_for_themselves():
    interface = Interface(
        (TensorSpec("a", "float32", (None, 4)), TensorSpec("b", "float32", (4, None))), ()
    )
    (profile,) = profiles("a:[2x4]", interface=interface)
    assert profile["b"] == Span((4, 1), (4, 128), (4, 512))


def test_static_models_need_no_profile():
    interface = Interface((TensorSpec("x", "float32", (1, 4)),), ())
    assert profiles(interface=interface) == ()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("input_ids", "shapes-syntax", "it is not clear"),
        ("input_ids:[a]", "shapes-syntax", "it is not clear"),
        ("input_ids:[1x1,2x2]", "shapes-syntax", "there are 2 shapes"),
        ("ids:[1x1]", "shapes-mismatch", "no such input"),
        ("input_ids:[1]", "shapes-mismatch", "1 sizes are given"),
        ("input_ids:[1x9,1x8,1x7]", "shapes-mismatch", "do not ascend"),
        ("input_ids:[0x1]", "shapes-mismatch", "do not ascend"),
        ("scale:[2]", "shapes-mismatch", "fixed in the model"),
        ("input_ids:[1x4] attention_mask:[1x5]", "shapes-mismatch", "'sequence' is"),
    ],
)
def test_what_is_wrong(text, code, words):
    with pytest.raises(UsageError) as caught:
        profiles(text)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_spans_know_what_they_hold():
    span = Span((1, 1), (1, 5), (2, 9))
    assert span.holds((2, 9)) and span.holds((1, 1))
    assert not span.holds((3, 1)) and not span.holds((1,))
    assert str(span) == "[1x1,1x5,2x9]"


def test_arguments_for_other_tools():
    profile = {"a b": Span((1, 1), (1, 5), (2, 9)), "c": SCALE}
    assert trtexec_shapes(profile)[2] == "'--maxShapes=a b:2x9,c:1'"
    assert polygraphy_shapes(profile)[:3] == ["--trt-min-shapes", "'a b:[1,1]'", "'c:[1]'"]


@pytest.mark.parametrize(
    ("text", "size"), [("1024", 1024), ("2K", 2048), ("1.5g", 3 << 29), ("512MiB", 512 << 20)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4T", "G"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="is no size"):
        parse_bytes(text)
