"""One layer at a time: its error on real activations, and its node against the specification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from mmcompile import ops
from mmcompile.dtypes import F32
from mmcompile.model.session import open_session
from mmcompile.model.sites import SiteGroup
from mmcompile.model.source import SourceModel
from mmcompile.packed import PackedLinear, dequantize_activations, dequantize_weight
from mmcompile.plan import GroupPlan
from mmcompile.verification.metrics import decibel

MEASURED_ROWS = 64
"""Token rows that a layer's error is measured on, spread over all samples."""
_UNIT_ROUNDOFF: dict[int, float] = {
    TensorProto.FLOAT: 0.0,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
}


@dataclass(frozen=True)
class LayerError:
    """Error of one layer's output on sampled activations, all its predecessors being exact."""

    output_sqnr_db: float
    output_cosine: float


def layer_error(
    sites: SiteGroup, plan: GroupPlan, packed: PackedLinear, rows: F32, source: SourceModel
) -> LayerError | None:
    """What quantizing one layer does to its output on sampled rows[R, K]; None without rows.

    Every token counts alike: the SQNR is that of the mean over tokens of error energy over signal
    energy, the cosine the mean of the tokens' cosines. Energies summed over tokens would show
    only the few tokens with the largest activations.
    """
    if not rows.size:
        return None
    rows = measured_rows(rows)
    exact = exact_output(sites, rows, source)
    quantized = dequantize_activations(rows, plan) @ dequantize_weight(packed, plan).T
    return output_error(exact, quantized)


def measured_rows(rows: F32) -> F32:
    """About `MEASURED_ROWS` of some rows[R, K], spread over all."""
    return rows[:: max(1, -(-len(rows) // MEASURED_ROWS))]


def exact_output(sites: SiteGroup, rows: F32, source: SourceModel) -> F32:
    """The outputs of a group's layers without their biases, side by side: float32[R, N]."""
    outputs = []
    for site in sites.sites:
        weight = site.read_weight(source).astype(np.float32, copy=False)
        outputs.append(rows @ (weight if site.channels_first else weight.T))
    return np.concatenate(outputs, axis=1)


def output_error(exact: F32, quantized: F32) -> LayerError:
    """The error of outputs[R, N], every row counting alike (`layer_error`)."""
    signal, size, noise, product = (
        np.einsum("tn,tn->t", first, second)
        for first, second in (
            (exact, exact),
            (quantized, quantized),
            (quantized - exact, quantized - exact),
            (exact, quantized),
        )
    )
    counted = signal > 0
    if not counted.any():
        return LayerError(decibel(0.0, float(noise.sum())), float(not noise.any()))
    lengths = np.sqrt(signal * size)
    cosines = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    ratio = float((noise[counted] / signal[counted]).mean())
    return LayerError(decibel(1.0, ratio), min(1.0, float(cosines[counted].mean())))


def node_excess(
    plan: GroupPlan, packed: PackedLinear, rows: F32, elem_type: int, opset: int
) -> float:
    """How far ONNX Runtime's result of the node is from the specification, in units of the bound.

    The reference is the float64 product of the operands that the packed bytes and the
    specification define. n fp32 additions in any order err by at most n·u / (1 − n·u) times the
    sum of magnitudes (N. Higham, Accuracy and Stability of Numerical Algorithms, 4.2), u = 2⁻²⁴,
    n = K_pad + 2 with one rounding per product and the bias; rounding to a 16-bit output type
    adds its own unit roundoff. A node is right where the answer is at most 1.
    """
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    typed = rows.astype(dtype)
    actual = _run(plan, packed, typed, elem_type, opset)
    x = dequantize_activations(typed.astype(np.float32), plan).astype(np.float64)
    weight = dequantize_weight(packed, plan).astype(np.float64)
    exact = x @ weight.T + packed.bias
    steps = plan.padded_channels + 2
    gamma = steps * 2.0**-24 / (1 - steps * 2.0**-24)
    bound = gamma * (np.abs(x) @ np.abs(weight).T + np.abs(packed.bias)) + steps * 2.0**-149
    bound += _UNIT_ROUNDOFF[elem_type] * (np.abs(exact) + bound)
    if elem_type == TensorProto.FLOAT16:  # half a step of its subnormals
        bound += 2.0**-25
    excess = np.abs(actual.astype(np.float64) - exact) / bound
    excess[np.isnan(excess)] = np.inf  # a NaN on one side only; no bound allows it
    excess[np.isnan(exact) & np.isnan(actual)] = 0.0
    return float(np.max(excess, initial=0.0))


def _run(
    plan: GroupPlan,
    packed: PackedLinear,
    rows: npt.NDArray[np.generic],
    elem_type: int,
    opset: int,
) -> npt.NDArray[np.generic]:
    attributes: dict[str, Any] = ops.node_attributes(plan)
    constants: dict[str, npt.NDArray[Any]] = {
        "order": packed.order,
        "weight": packed.weight,
        "scales": packed.scales,
        "bias": packed.bias,
    }
    node = helper.make_node(
        ops.OP_TYPE,
        ["x", *constants],
        ["y"],
        name=plan.name,
        domain=ops.DOMAIN,
        **attributes,
    )
    # The bytes of bfloat16 pass through the runtime's Python interface as float32.
    before = [helper.make_node("Cast", ["x_float"], ["x"], to=elem_type)]
    after = [helper.make_node("Cast", ["y"], ["y_float"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        [*before, node, *after],
        plan.name,
        [helper.make_tensor_value_info("x_float", TensorProto.FLOAT, ["M", plan.in_channels])],
        [helper.make_tensor_value_info("y_float", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(ops.DOMAIN, ops.OP_VERSION),
        ],
        functions=[ops.function_proto(opset, half_blocks=ops.needs_half_blocks([plan]))],
        ir_version=10,
    )
    session = open_session(model, Path())
    return np.asarray(session.run(None, {"x_float": rows.astype(np.float32)})[0])
