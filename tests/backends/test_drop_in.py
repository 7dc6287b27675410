"""A compiled model can take the original's place: names, types, dynamic dimensions, order."""

from __future__ import annotations

import msgspec
import onnx
import pytest

from mmcompile.backends.engines.interface import (
    Interface,
    TensorSpec,
    check_engine,
    check_model,
    model_interface,
)
from mmcompile.data.options import DataOptions
from mmcompile.errors import VerificationError
from mmcompile.model.selection import Selection
from mmcompile.pipeline import compile as pipeline
from mmcompile.pipeline.compile import compile_model
from mmcompile.pipeline.options import CompileOptions, VerifyOptions

X = TensorSpec("x", "float16", ("batch", "sequence", 64))
MASK = TensorSpec("mask", "int64", ("batch", None))
Y = TensorSpec("y", "float16", ("batch", "sequence", 32))
MODEL = Interface((X, MASK), (Y,))


def changed(spec, **values):
    return msgspec.structs.replace(spec, **values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "bert", "gpt2"])
def test_exported_models_keep_their_interface(exported, home, library, install, name):
    """The rewritten ONNX, and the network and the engine that TensorRT's double makes of it."""
    install()
    path = exported(name)
    options = CompileOptions(
        data=DataOptions(calibration="random", samples=4, max_length=16),
        selection=Selection(heads=True),
        verify=VerifyOptions(enabled=False),
        output=home / "out",
        html=False,
    )
    result = compile_model(path, options)
    assert result.engine is not None
    before, after = (
        model_interface(onnx.load(p, load_external_data=False)) for p in (path, result.model)
    )
    assert before == after
    assert before.is_dynamic
    assert any(node.op_type == "MicroMixLinear" for node in onnx.load(result.model).graph.node)


@pytest.mark.parametrize(
    "other",
    [
        Interface((MASK, X), (Y,)),
        Interface((X,), (Y,)),
        Interface((changed(X, name="z"), MASK), (Y,)),
        Interface((changed(X, dtype="float32"), MASK), (Y,)),
        Interface((changed(X, shape=("batch", "sequence", 63)), MASK), (Y,)),
        Interface((changed(X, shape=(1, "sequence", 64)), MASK), (Y,)),
        Interface((changed(X, shape=("b", "sequence", 64)), MASK), (Y,)),
        Interface((X, MASK), (changed(Y, shape=("batch", "sequence")),)),
    ],
)
def test_any_difference_of_the_model_is_an_error(other):
    check_model(MODEL, MODEL, "model.onnx")
    with pytest.raises(VerificationError) as caught:
        check_model(MODEL, other, "model.onnx")
    assert caught.value.code == "not-drop-in"


ENGINE = Interface(
    (changed(X, shape=(None, None, 64)), changed(MASK, shape=(None, None))),
    (changed(Y, shape=(None, 16, 32)),),
)


def test_an_engine_may_know_its_outputs_better():
    check_engine(MODEL, ENGINE, "engine", ordered=True)
    check_engine(MODEL, turned_round(ENGINE), "engine")


def turned_round(interface):
    return Interface(interface.inputs[::-1], interface.outputs[::-1])


@pytest.mark.parametrize(
    "other",
    [
        Interface(ENGINE.inputs[:1], ENGINE.outputs),
        Interface((changed(ENGINE.inputs[0], dtype="float32"), MASK), ENGINE.outputs),
        Interface((changed(X, shape=(None, 8, 64)), ENGINE.inputs[1]), ENGINE.outputs),
        Interface((changed(X, shape=(None, None, 65)), ENGINE.inputs[1]), ENGINE.outputs),
        Interface((changed(X, shape=(None, 64)), ENGINE.inputs[1]), ENGINE.outputs),
        Interface(ENGINE.inputs, (changed(Y, name="z"),)),
    ],
)
def test_any_difference_of_the_engine_is_an_error(other):
    with pytest.raises(VerificationError):
        check_engine(MODEL, other, "engine")


def test_a_network_has_to_keep_the_order():
    with pytest.raises(VerificationError):
        check_engine(MODEL, turned_round(ENGINE), "network", ordered=True)


def test_a_pass_that_changes_the_interface_is_caught(work, monkeypatch):
    """A fault planted into the rewritten model, with verification switched off."""
    rewrite = pipeline.rewrite_linears

    def faulty(*arguments):
        model = rewrite(*arguments)
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "renamed"
        return model

    monkeypatch.setattr(pipeline, "rewrite_linears", faulty)
    options = CompileOptions(
        data=DataOptions(calibration="random", samples=2),
        verify=VerifyOptions(enabled=False),
        output=work.out,
    )
    with pytest.raises(VerificationError, match="renamed"):
        compile_model(work.model, options)
    assert not options.output.exists()
