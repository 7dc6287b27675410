"""TensorRT's quantizing operators in standard operators, code by code against ml_dtypes."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mmcompile.model.passes.baselines.functions import (
    FP4_QUANTIZE,
    FP4_UNPACK,
    MXFP8_DEQUANTIZE,
    MXFP8_QUANTIZE,
    OWN,
    TRT,
    function_protos,
)
from tests import running
from tests.model.baselines import oracle

E4M3 = TensorProto.FLOAT8E4M3FN


def session_of(kind, nodes, inputs, outputs, opset):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )
    imports = [helper.make_opsetid(domain, v) for domain, v in (("", opset), (TRT, 1), (OWN, 1))]
    model = helper.make_model(
        graph, opset_imports=imports, functions=function_protos(kind, opset), ir_version=11
    )
    onnx.checker.check_model(model, full_check=True)
    return running.session_of(model)


def numbers(block):
    """Blocks at all magnitudes: random ones, and ones around every boundary of a scale."""
    generator = np.random.default_rng(1)
    shape = (400, block)
    random = generator.standard_normal(shape) * np.exp2(generator.integers(-40, 40, (400, 1)))
    tops = np.array([448, 449, 6, 6.5, 1.75, 1.7500001, 2, 1, 224, 7 * 2.0**-10]).astype(np.float32)
    exponents = np.exp2(np.arange(-60.0, 60.0))
    edges = (tops[:, None] * exponents).ravel()
    edges = np.concatenate([np.nextafter(edges, 0, dtype=np.float32), edges.astype(np.float32)])
    blocks = generator.standard_normal((edges.size, block)) * 0.1 * edges[:, None]
    blocks[:, 3] = edges
    zeros = np.zeros((2, block))
    zeros[1, 0] = -0.0
    return np.concatenate([random, np.clip(blocks, -edges.max(), edges.max()), zeros]).astype(
        np.float32
    )


@pytest.mark.parametrize("opset", [19, 20, 21, 23, 25])
def test_mxfp8_quantize(opset):
    node = helper.make_node(
        MXFP8_QUANTIZE, ["x"], ["q", "s"], domain=TRT, axis=-1, block_size=32, output_dtype=E4M3
    )
    cast = helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)
    x = numbers(32).reshape(-1, 1, 32)
    outputs = [("y", TensorProto.FLOAT, x.shape), ("s", TensorProto.UINT8, (*x.shape[:2], 1))]
    session = session_of("mxfp8", [node, cast], [("x", 1, x.shape)], outputs, opset)
    codes, scales = session.run(None, {"x": x})
    np.testing.assert_array_equal(scales.astype(int), oracle.mxfp8_exponents(x) + 127)
    np.testing.assert_array_equal(codes, oracle.mxfp8_codes(x).astype(np.float32))


def test_mxfp8_infinity_saturates_and_nan_stays():
    node = helper.make_node(
        MXFP8_QUANTIZE, ["x"], ["q", "s"], domain=TRT, axis=-1, block_size=32, output_dtype=E4M3
    )
    cast = helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)
    x = np.ones((3, 32), np.float32)
    x[0, 4], x[1, 5] = np.inf, np.nan
    outputs = [("y", 1, x.shape), ("s", TensorProto.UINT8, [3, 1])]
    session = session_of("mxfp8", [node, cast], [("x", 1, x.shape)], outputs, 21)
    codes, scales = session.run(None, {"x": x})
    assert codes[0, 4] == 448
    assert np.isnan(codes[1, 5])
    assert scales[2, 0] == 127 - 8
    assert (codes[2] == 256).all()


@pytest.mark.parametrize("to", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_mxfp8_dequantize_takes_every_code_and_scale(to):
    node = helper.make_node(
        MXFP8_DEQUANTIZE, ["q", "s"], ["y"], domain=TRT, axis=-1, block_size=32, output_dtype=to
    )
    cast = helper.make_node("Cast", ["x"], ["q"], to=E4M3)
    values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    x = np.broadcast_to(values, (255, 256)).copy()
    scales = np.broadcast_to(np.arange(255, dtype=np.uint8)[:, None], (255, 8)).copy()
    inputs = [("x", 1, x.shape), ("s", TensorProto.UINT8, scales.shape)]
    session = session_of("mxfp8", [cast, node], inputs, [("y", to, x.shape)], 21)
    (found,) = session.run(None, {"x": x, "s": scales})
    exact = values.astype(np.float64) * np.ldexp(1.0, np.arange(-127, 128))[:, None]
    with np.errstate(over="ignore"):
        expected = exact.astype(np.float32).astype(found.dtype)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tensor_scale", [1.0, 0.00371, 3.0e-5, 117.25])
def test_fp4_quantize(tensor_scale):
    node = helper.make_node(
        FP4_QUANTIZE, ["x", "t"], ["q", "s"], domain=TRT, axis=-1, block_size=16, scale_type=E4M3
    )
    casts = [helper.make_node("Cast", [a], [b], to=1) for a, b in (("q", "y"), ("s", "scale"))]
    x = numbers(16)
    outputs = [("y", 1, x.shape), ("scale", 1, [len(x), 1])]
    session = session_of("nvfp4", [node, *casts], [("x", 1, x.shape), ("t", 1, [])], outputs, 23)
    scale = np.array(tensor_scale, np.float32)
    codes, scales = session.run(None, {"x": x, "t": scale})
    expected = oracle.nvfp4_block_scales(x, scale).astype(np.float32)
    np.testing.assert_array_equal(scales, expected)
    np.testing.assert_array_equal(codes, oracle.nvfp4_codes(x, scale).astype(np.float32))


def test_fp4_ties_go_to_the_even_code():
    node = helper.make_node(
        FP4_QUANTIZE, ["x", "t"], ["q", "s"], domain=TRT, axis=-1, block_size=16, scale_type=E4M3
    )
    cast = helper.make_node("Cast", ["q"], ["y"], to=1)
    x = np.array([[6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5]])
    x = np.append(x, [[-5, 0]], axis=1).astype(np.float32)
    session = session_of(
        "nvfp4", [node, cast], [("x", 1, x.shape), ("t", 1, [])], [("y", 1, x.shape)], 23
    )
    (codes,) = session.run(None, {"x": x, "t": np.array(1, np.float32)})
    rounded = [6, 0, 1, 1, 2, 2, 4, 4, 0, -1, -1, -2, -2, -4, -4, 0]
    np.testing.assert_array_equal(codes, [rounded])


def test_fp4_unpack_takes_every_byte():
    node = helper.make_node(FP4_UNPACK, ["q", "s"], ["y"], domain=OWN, axis=-1, block_size=16)
    codes = np.arange(256, dtype=np.uint8).reshape(32, 8)
    scales = np.exp2(np.arange(32, dtype=np.float32) - 10).reshape(32, 1)
    inputs = [("q", TensorProto.UINT8, codes.shape), ("s", 1, scales.shape)]
    session = session_of("nvfp4", [node], inputs, [("y", 1, [32, 16])], 23)
    (found,) = session.run(None, {"q": codes, "s": scales})
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(32, 16)
    values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(found, values * scales)
