"""Injected outliers keep the function, on the linears' path only; run by hand: `python -m pytest research`."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.conftest import exported
from research.outliers import (
    TOLERANCE,
    Injection,
    NormSearch,
    choose_factors,
    difference,
    inject,
    main,
)
from mmcompile.errors import UnsupportedModelError, UsageError, VerificationError
from mmcompile.model.source import load_model
from tests.running import run
from tests.models import K, N, matmul, model_of, small_model, transposed_weight, weight

NORM_FED = {"llama": ("q+k+v_proj", "gate+up_proj"), "bert": ("query+key+value", "intermediate")}
"""Groups that read a norm, in a pre-norm decoder and a post-norm encoder."""


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "qwen2"])
def test_function_is_preserved(exported, tmp_path, name):
    """Checked on other inputs than the tool's own, with padding among them."""
    original = exported(name)
    injected = inject(original, tmp_path, Injection())
    assert injected.difference <= TOLERANCE
    ids = np.random.default_rng(7).integers(0, 100, (2, 24))
    mask = np.ones_like(ids)
    mask[1, 20:] = 0
    known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    names = [value.name for value in onnx.load(original).graph.input]
    feed = {name: known[name] for name in names}
    for before, after in zip(run(original, feed), run(injected.model, feed), strict=True):
        assert np.abs(before - after).max() <= TOLERANCE * np.abs(before).max()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_only_norm_fed_linears_are_touched(exported, tmp_path, name):
    """Every other node reads what it read, the residual behind a norm above all."""
    injected = inject(exported(name), tmp_path, Injection())
    groups = [entry.group for entry in injected.outliers]
    assert len(groups) == 4
    assert all(any(part in group for part in NORM_FED[name]) for group in groups)
    assert {left.code for left in injected.left_alone} == {"not-norm-fed"}
    before, after = (onnx.load(path).graph for path in (exported(name), injected.model))
    reads = {tuple(node.output): list(node.input) for node in before.node}
    muls = {f"{group}.outliers" for group in groups}
    changed = Counter()
    for node in after.node:
        if node.name in muls:
            assert node.op_type == "Mul"
            continue
        expected = reads.pop(tuple(node.output))
        if list(node.input) == expected:
            assert not muls.intersection(node.input)
        else:
            assert node.input[0] in muls
            changed[node.input[0]] += 1
    assert set(changed) == muls
    assert sum(changed.values()) == {"llama": 2 * (3 + 2), "bert": 2 * (3 + 1)}[name]
    # What is gone transformed or was a weight that has been replaced.
    assert not {name for name in reads if name[0] in {n for node in after.node for n in node.input}}


def test_residual_reads_the_norm_itself(exported, tmp_path):
    """In a post-norm encoder the norm's output has other readers than the injected linears."""
    injected = inject(exported("bert"), tmp_path, Injection())
    graph = onnx.load(injected.model).graph
    norms = {node.input[0] for node in graph.node if node.name.endswith(".outliers")}
    readers = Counter(name for node in graph.node for name in node.input if name in norms)
    assert len(readers) == 4
    assert all(count == 2 for count in readers.values())


def test_weights_are_divided_and_activations_multiplied(tmp_path):
    """Row k of the weight is divided by the factor of channel k, exactly once."""
    injected = inject(_saved(_normed(), tmp_path), tmp_path / "out", Injection(share=0.1, seed=3))
    (outliers,) = injected.outliers
    factors = outliers.factors
    assert len(outliers.channels) == round(0.1 * K)
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(injected.model).graph.initializer
    }
    np.testing.assert_array_equal(weights["linear.outlier_factors"], factors)
    np.testing.assert_array_equal(weights["linear.outlier_weight"], weight(K, N) / factors[:, None])
    assert "W" not in weights


def test_seed_decides():
    """Same seed, same factors; another seed or group has others; all lie in the range."""
    asked = Injection(share=0.02, least=20, most=60, seed=5)
    factors = choose_factors(384, asked, 2)
    np.testing.assert_array_equal(factors, choose_factors(384, asked, 2))
    outliers = factors[factors != 1]
    assert len(outliers) == round(0.02 * 384)
    assert ((outliers >= 20) & (outliers <= 60)).all()
    for other in (
        choose_factors(384, Injection(0.02, 20, 60, 6), 2),
        choose_factors(384, asked, 3),
    ):
        assert (factors != other).any()
    assert (choose_factors(8, asked, 0) != 1).sum() == 1


def test_same_seed_gives_same_bytes(exported, tmp_path):
    """A second run writes the same files."""
    first, second = (
        inject(exported("bert"), tmp_path / name, Injection(seed=4)).model for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()
    data = [path.with_name("model.onnx.data").read_bytes() for path in (first, second)]
    assert data[0] == data[1]


def test_changed_function_is_refused(exported, tmp_path):
    """The check sees a weight that was not divided."""
    injected = inject(exported("bert"), tmp_path, Injection())
    faulty = onnx.load(injected.model)
    tensor = next(t for t in faulty.graph.initializer if t.name.endswith("outlier_factors"))
    factors = numpy_helper.to_array(tensor).copy()
    factors[factors != 1] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(factors, tensor.name))
    path = tmp_path / "faulty.onnx"
    onnx.save(faulty, path)
    assert difference(load_model(exported("bert")), path) > TOLERANCE


def test_difference_is_the_condition(exported, tmp_path, monkeypatch):
    """A model that is not the same function is refused, one whose outputs are NaN, too."""
    for found in (2 * TOLERANCE, float("nan")):
        monkeypatch.setattr("research.outliers.difference", lambda *_, found=found: found)
        with pytest.raises(VerificationError, match="function-changed"):
            inject(exported("bert"), tmp_path, Injection())


def _normed(**options):
    """Decomposed RMSNorm with a scale, then the linear."""
    return model_of(
        [
            helper.make_node("Mul", ["x", "x"], ["square"]),
            helper.make_node("ReduceMean", ["square", "axes"], ["mean"], **options),
            helper.make_node("Add", ["mean", "epsilon"], ["shifted"]),
            helper.make_node("Sqrt", ["shifted"], ["root"]),
            helper.make_node("Div", ["x", "root"], ["unit"]),
            helper.make_node("Mul", ["scale", "unit"], ["normed"]),
            helper.make_node("MatMul", ["normed", "W"], ["h"], name="linear"),
            helper.make_node("Relu", ["h"], ["y"]),  # a linear that is the output is a head
        ],
        {
            "axes": np.array([-1]),
            "epsilon": np.float32(1e-6),
            "scale": np.linspace(0.5, 2, K, dtype=np.float32),
            "W": weight(K, N),
        },
    )


def _saved(model, folder):
    path = folder / "original.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ([("LayerNormalization", "x scale bias", "n")], True),
        ([("LayerNormalization", "x scale bias", "m"), ("Gelu", "m", "n")], False),
        ([("LayerNormalization", "x scale bias", "m"), ("Reshape", "m flat", "n")], True),
        ([("LayerNormalization", "x scale bias", "m"), ("Add", "m x", "n")], False),
        ([("Mul", "x scale", "m"), ("Add", "bias m", "n")], False),
        (
            [
                ("ReduceMean", "x axes", "mean"),
                ("Sub", "x mean", "d"),
                ("Mul", "d d", "s"),
                ("ReduceMean", "s axes", "v"),
                ("Add", "v epsilon", "w"),
                ("Sqrt", "w", "r"),
                ("Reciprocal", "r", "t"),
                ("Mul", "d t", "u"),
                ("Mul", "u scale", "m"),
                ("Add", "bias m", "n"),
            ],
            True,
        ),
        # Gates by the mean divide by no deviation.
        (
            [("ReduceMean", "x axes", "mean"), ("Mul", "x mean", "u"), ("Mul", "u scale", "n")],
            False,
        ),
        (
            [
                ("ReduceMean", "x axes", "mean"),
                ("Add", "mean epsilon", "gate"),
                ("Mul", "x gate", "u"),
                ("Mul", "u scale", "n"),
            ],
            False,
        ),
    ],
)
def test_norms_are_recognised(tmp_path, nodes, found):
    """Operators and decomposed forms that are norms, and some that are none."""
    made = [helper.make_node(op, x.split(), [y]) for op, x, y in nodes]
    model = model_of(
        [*made, helper.make_node("MatMul", ["n", "W"], ["y"], name="linear")],
        {
            "scale": np.ones(K, np.float32),
            "bias": np.ones(K, np.float32),
            "flat": np.array([-1, 1, K]),
            "axes": np.array([-1]),
            "epsilon": np.float32(1e-6),
            "W": weight(K, N),
        },
    )
    assert NormSearch(load_model(_saved(model, tmp_path))).feeds("n", K) == found


def test_scale_of_another_width_is_no_norm(exported):
    """A norm over other channels, as one over heads, does not count."""
    source = load_model(exported("bert"))
    name = next(n.output[0] for n in source.proto.graph.node if n.op_type == "LayerNormalization")
    assert NormSearch(source).feeds(name, small_model("bert").config.hidden_size)
    assert not NormSearch(source).feeds(name, 32)


@pytest.mark.parametrize("make", [matmul, transposed_weight])
def test_model_without_norms_is_refused(tmp_path, make):
    """There is nothing to inject into."""
    with pytest.raises(UnsupportedModelError, match="nothing-norm-fed"):
        inject(_saved(make(), tmp_path), tmp_path / "out", Injection())
    assert not (tmp_path / "out").exists()


def test_own_folder_is_refused(tmp_path):
    """The weights are read while the new ones are written."""
    with pytest.raises(UsageError, match="output-is-input"):
        inject(_saved(_normed(), tmp_path), tmp_path, Injection())


@pytest.mark.parametrize("options", [{"share": 0.0}, {"share": 1.5}, {"least": 60, "most": 20}])
def test_senseless_options_are_refused(options):
    """Shares and ranges that cannot be."""
    with pytest.raises(UsageError, match="bad-"):
        Injection(**options)


def test_command(tmp_path, monkeypatch, capsys):
    """The command says what it did, and a mistake of the user's is one line."""
    model, out = _saved(_normed(), tmp_path), tmp_path / "out"
    command = ["outliers", "inject", str(model), str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--scale", "32", "--share", "0.02"])
    assert main() == 0
    assert "×32.0" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--scale", "many"])
    assert main() == UsageError.exit_code
    assert "bad-scale" in capsys.readouterr().err
