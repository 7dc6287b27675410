import pytest

from mmcompile.errors import ExitCode, UsageError
from mmcompile.targets.names import parse_target
from mmcompile.targets.table import TARGETS
from mmcompile.targets.target import FormatPair
from tests import node_models as nm


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("sm_120", "sm_120"),
        ("sm120", "sm_120"),
        ("SM-120", "sm_120"),
        (" sm_121 ", "sm_121"),
        ("rtx5090", "sm_120"),
        ("RTX 5070 Ti", "sm_120"),
        ("NVIDIA GeForce RTX 5090", "sm_120"),
        ("NVIDIA RTX PRO 6000", "sm_120"),
        ("DGX Spark", "sm_121"),
        ("H200", "sm_90"),
        ("GeForce RTX 4090", "sm_89"),
        ("A100", "sm_80"),
    ],
)
def test_names_and_aliases(typed, name):
    assert parse_target(typed).name == name


def test_every_alias_finds_its_target_and_no_other():
    names = [alias for target in TARGETS for alias in target.aliases]
    assert len(set(names)) == len(names)
    for target in TARGETS:
        for alias in target.aliases:
            assert parse_target(alias) is target
        # RTX PRO shares its architecture with GeForce, whose entry comes first.
        assert parse_target(target.name).name == target.name
    assert parse_target("sm_120").description == "GeForce RTX 50"


@pytest.mark.parametrize("typed", ["", "sm_", "120", "rtx", "sm_75", "rtx5090ti", "cpu"])
def test_unknown_name_lists_the_known_ones(typed):
    with pytest.raises(UsageError) as caught:
        parse_target(typed)
    assert caught.value.exit_code == ExitCode.USAGE
    line = str(caught.value)
    assert f"'{typed}'" in line
    assert "\n" not in line
    assert all(target.name in line and target.aliases[0] in line for target in TARGETS)


# Relative to FP16 with fp32 accumulation, 512 FLOP per SM and clock on GeForce Blackwell: the
# block-scaled instructions do 4096 for 4-bit operands and 2048 for e4m3, which 6 bits are widened
# to.
@pytest.mark.parametrize(
    ("name", "rate"),
    [("mxfp4", 8), ("nvfp4", 8), ("mxfp6_e2m3", 4), ("mxfp6_e3m2", 4), ("mxfp8", 4)],
)
def test_instruction_rates(name, rate):
    pair = FormatPair(name, name)
    assert parse_target("sm_120").rate(pair) == rate
    # RTX PRO and DGX Spark run FP16 with fp32 accumulation at 1024: half the gain.
    for twice in ("rtxpro6000", "sm_121"):
        assert parse_target(twice).rate(pair) == rate / 2
    assert parse_target("sm_90").rate(pair) == 1


def limit(*parts, out=64):
    channels = sum(part[0] for part in parts)
    return nm.group(parts, range(channels), out)


def test_compute_limit_follows_the_shares_of_k():
    target = parse_target("sm_120")
    # 1 / (f4 / 8 + f8 / 4) with the shares f4 and f8 of K.
    mixed = limit((96, "mxfp4", "mxfp4"), (32, "mxfp8", "mxfp8"))
    assert target.compute_limit([mixed]) == pytest.approx(1 / (0.75 / 8 + 0.25 / 4))
    assert target.compute_limit([limit((64, "mxfp4", "mxfp4"))]) == 8
    assert target.compute_limit([limit((64, "mxfp6_e3m2", "mxfp6_e3m2"))]) == 4
    assert target.compute_limit([]) == 1
    assert parse_target("h100").compute_limit([mixed]) == 1


def test_compute_limit_takes_the_wider_side_and_weighs_layers_by_size():
    target = parse_target("sm_120")
    assert target.compute_limit([limit((64, "mxfp8", "mxfp4"))]) == 4
    assert target.compute_limit([limit((64, "mxfp4", "mxfp8"))]) == 4
    small = limit((64, "mxfp8", "mxfp8"), out=32)
    large = limit((64, "mxfp4", "mxfp4"), out=96)
    assert target.compute_limit([small, large]) == pytest.approx(1 / (0.25 / 4 + 0.75 / 8))


def test_padding_costs_time_but_does_no_work():
    padded = nm.group([(128, "mxfp4", "mxfp4")], [*range(96), *[-1] * 32], 64)
    assert parse_target("sm_120").compute_limit([padded]) == pytest.approx(8 * 96 / 128)
