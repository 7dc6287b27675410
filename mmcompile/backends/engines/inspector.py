"""Reads the JSON of TensorRT's engine inspector: layers, their ONNX nodes, the types they run in.

The same JSON comes from `trtexec --exportLayerInfo`. What a layer is made of stands in its
`Metadata`, as `[ONNX Layer: name]` for every node (profiling verbosity `detailed`). Where that is
missing, the layer's own name is read: it is a node's, several joined by ` + `, or a
`{ForeignNode[first...last]}` of a whole region, which names only its ends.

Inputs of a layer are often only its activations, so the type of the weights comes from the name of
the kernel. Two families of names are known, of cuBLAS and of CUTLASS 3:

    sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_…           A and D, B and the sums, scales of both
    cutlass3x_…gemm_block_scaled_ue4m3xe2m1_ue4m3xe2m1_f32_f16_f16_…    A, B, the sums, C, D

Written after examples in public issues; no inspector was at hand where this was written.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from mmcompile.backends.engines.layer_precision import (
    UNKNOWN,
    Kind,
    LayerPrecision,
    product_precision,
)
from mmcompile.ops import OP_TYPE

_METADATA = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_TYPES = re.compile(
    r"\b(FP4(?:E2M1)?|E2M1|FP8(?:E4M3)?|E4M3|E8M0|BF16|BFloat16|FP16|Half|FP32|Float|INT8|INT32"
    r"|INT64|Bool)\b",
    re.IGNORECASE,
)
_SHORT = {
    "HALF": "FP16",
    "FLOAT": "FP32",
    "BFLOAT16": "BF16",
    "E2M1": "FP4",
    "FP4E2M1": "FP4",
    "E4M3": "FP8",
    "FP8E4M3": "FP8",
}
_KERNEL_TYPES = {
    "e4m3": "FP8",
    "e2m1": "FP4",
    "bf16": "BF16",
    "f16": "FP16",
    "f32": "FP32",
    "i8": "INT8",
    "i32": "INT32",
}
_TYPE = "(?:e4m3|e2m1|bf16|f16|f32|i8|i32)"
_SCALES = {"ue4m3": "FP8", "ue8m0": "E8M0"}
_XMMA = re.compile(rf"gemm_({_TYPE})({_TYPE})_({_TYPE})({_TYPE})_{_TYPE}(?:_|$)")
_CUTLASS = re.compile(
    rf"gemm_(?:block_scaled_)?(?:(ue4m3|ue8m0)x)?({_TYPE})_(?:(ue4m3|ue8m0)x)?({_TYPE})"
    rf"_({_TYPE})_(?:{_TYPE}|void)_({_TYPE})(?:_|$)"
)


def parse_layers(inspection: str | bytes) -> list[dict[str, Any]]:
    """The layers of the engine inspector's JSON; older releases give only their names."""
    try:
        document = msgspec.json.decode(inspection, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return []
    layers = document.get("Layers", [])
    if not isinstance(layers, list):
        return []
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def layer_nodes(name: str, layer: Mapping[str, Any], nodes: Collection[str]) -> tuple[str, ...]:
    """The ONNX nodes of a layer, in the order in which TensorRT names them.

    Args:
        name: the layer's.
        layer: what the inspector says of it; may be empty.
        nodes: names of all ONNX nodes, to find them in a layer's name.
    """
    told = _METADATA.findall(str(layer.get("Metadata", "")))
    if told:
        return tuple(dict.fromkeys(told))
    if name in nodes:
        return (name,)
    parts = re.split(r" \+ |\.\.\.|[{}\[\]()]|__myl\w*", name)
    stripped = (re.sub(r"^(ForeignNode|PWN|Reformatting CopyNode.*)$", "", part) for part in parts)
    return tuple(dict.fromkeys(part.strip() for part in stripped if part.strip() in nodes))


def layer_types(layer: Mapping[str, Any]) -> str:
    """Types of inputs and outputs, such as `FP8, FP16 → FP16`."""
    sides = [", ".join(dict.fromkeys(_types(layer, side))) for side in ("Inputs", "Outputs")]
    return " → ".join(sides) if all(sides) else "".join(sides)


def read_inspection(inspection: str | bytes, nodes: Collection[str]) -> tuple[LayerPrecision, ...]:
    """The products among the layers of an engine.

    Args:
        inspection: the inspector's JSON; any text gives an answer.
        nodes: names of ONNX nodes, to find them in names of layers without metadata.
    """
    found = (_product(layer, nodes) for layer in parse_layers(inspection))
    return tuple(dict.fromkeys(product for product in found if product is not None))


def _product(layer: Mapping[str, Any], nodes: Collection[str]) -> LayerPrecision | None:
    """The product that a layer is; None where it is none."""
    name, kernel = str(layer.get("Name", "")), str(layer.get("TacticName", ""))
    kind = _kind(layer, kernel)
    if kind is None:
        return None
    x, output = (next(_types(layer, side), UNKNOWN) for side in ("Inputs", "Outputs"))
    own = layer_nodes(name, layer, nodes) or (name,)
    if kind == "plugin":
        return LayerPrecision(name, own, kind, x=x, output=output, precision="plugin")
    if kind == "attention":
        read = set(_types(layer, "Inputs"))
        one = read.pop() if len(read) == 1 else UNKNOWN
        return LayerPrecision(name, own, kind, one, one, output, precision=one)
    told = _kernel(kernel)
    if told is None:
        return LayerPrecision(name, own, kind, x=x, output=output)
    a, b, sums, scales = told
    if x not in (UNKNOWN, a):
        a, scales = UNKNOWN, UNKNOWN  # the kernel's name is read wrongly, or the layer is not it
    precision = product_precision(a, b, scales)
    return LayerPrecision(name, own, kind, a, b, output, accumulation=sums, precision=precision)


def _kind(layer: Mapping[str, Any], kernel: str) -> Kind | None:
    said = str(layer.get("LayerType", "")).lower()
    if "plugin" in said:
        return "plugin" if layer.get("PluginType", OP_TYPE) == OP_TYPE else None
    if "mha" in kernel:
        return "attention"
    if "conv" in said:
        return "convolution"
    if "gemm" in said or "matrixmultiply" in said.replace("_", "") or "gemm" in kernel:
        return "gemm"
    return None


def _kernel(name: str) -> tuple[str, str, str, str] | None:
    """Types of A, B, the sums and the block scales by the name of a kernel; None if not known."""
    if found := _XMMA.search(name):
        a, _, b, sums = (_KERNEL_TYPES[part] for part in found.groups())
        return a, b, sums, ""
    if found := _CUTLASS.search(name):
        scales = {_SCALES.get(found[group], "") for group in (1, 3)}
        a, b, sums = (_KERNEL_TYPES[found[group]] for group in (2, 4, 5))
        return a, b, sums, scales.pop() if len(scales) == 1 else UNKNOWN
    return None


def _types(layer: Mapping[str, Any], side: str) -> Iterator[str]:
    """The type of every input or output that has one."""
    tensors = layer.get(side, ())
    for tensor in tensors if isinstance(tensors, list) else []:
        if isinstance(tensor, dict):
            text = str(tensor.get("Format/Datatype", tensor.get("Format", "")))
            found = [name.upper() for name in _TYPES.findall(text)]
            if found:
                yield _SHORT.get(found[-1], found[-1])
