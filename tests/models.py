"""Models for tests: small language models exported from PyTorch, and one-linear ONNX graphs.

The exported ones need torch and transformers, imported where they are used; the fixture `exported`
in conftest.py makes each once per session. The hand-made ones need only onnx: each is a few nodes,
the candidate to be rewritten is the node called `linear`, inputs and outputs are `x` and `y`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmcompile.exporting.options import Dtype

SMALL_MODELS = ("llama", "qwen2", "qwen3", "bert", "gpt2")
SMALL_VOCABULARY = 120
CHECKPOINT = "hugging_face"
"""Folder beside an exported small model that holds what it was exported from."""

K, N = 96, 64
"""Channels of the hand-made linears."""


def small_model(name: str, seed: int = 0) -> Any:
    """A transformers model of two layers with random weights, the same for the same seed.

    Norm weights are log-normal, so that channels differ in size as they do in trained models;
    biases are not zero. Llama's feed-forward width, 176, is no multiple of 32. Qwen2 and GPT-2
    have biases, and a head that shares its weight with the embedding: Qwen2's is exported as
    MatMul(x, Transpose(W)), GPT-2's is so small that the exporter folds the transposition.
    """
    import torch
    import transformers

    shared: dict[str, Any] = {
        "vocab_size": SMALL_VOCABULARY,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attn_implementation": "eager",
    }
    decoder = shared | {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(seed)
    if name == "llama":
        config = transformers.LlamaConfig(hidden_size=64, intermediate_size=176, **decoder)
        model = transformers.LlamaForCausalLM(config)
    elif name == "qwen2":
        config = transformers.Qwen2Config(
            hidden_size=96, intermediate_size=160, tie_word_embeddings=True, **decoder
        )
        model = transformers.Qwen2ForCausalLM(config)
    elif name == "qwen3":
        config = transformers.Qwen3Config(
            hidden_size=64, intermediate_size=128, head_dim=32, **decoder
        )
        model = transformers.Qwen3ForCausalLM(config)
    elif name == "bert":
        config = transformers.BertConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            **shared,
        )
        model = transformers.BertModel(config)
    elif name == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, **shared)
        model = transformers.GPT2LMHeadModel(config)
    else:
        raise ValueError(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.ndim == 1:
                parameter.mul_(torch.exp(torch.randn_like(parameter) * 0.7))
    return model.eval()


def export_small_model(name: str, folder: Path, seed: int = 0, dtype: Dtype = "fp32") -> Path:
    """Saves `small_model(name, seed)` below a folder and exports it; the `model.onnx` there."""
    from mmcompile.exporting import export_model
    from mmcompile.exporting.options import ExportOptions
    from mmcompile.exporting.source import quiet

    with quiet():
        small_model(name, seed).save_pretrained(folder / CHECKPOINT)
    options = ExportOptions(dtype=dtype)
    return export_model(str(folder / CHECKPOINT), folder / "model.onnx", options)


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 values whose first axis, the input channels, differs in size."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(generator.normal(0, 0.7, shape[:1])).reshape(-1, *[1] * (len(shape) - 1))
    return (generator.standard_normal(shape) * sizes * shape[0] ** -0.5).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: dict[str, np.ndarray],
    *,
    x: Sequence[str | int] = ("batch", "sequence", K),
    y: Sequence[str | int] = ("batch", "sequence", N),
    dtype: int = TensorProto.FLOAT,
    inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A checked model with input `x`, output `y` and further inputs, at opset 20 and IR 10."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, x), *inputs],
        [helper.make_tensor_value_info("y", dtype, y)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def matmul() -> onnx.ModelProto:
    """MatMul(x, W[K, N])."""
    return model_of([_node("MatMul", ["x", "W"], "y", "linear")], {"W": weight(K, N)})


def matmul_add(bias_first: bool = False, bias_shape: tuple[int, ...] = (N,)) -> onnx.ModelProto:
    """MatMul(x, W) + bias, in either order of the addition."""
    terms = ["b", "h"] if bias_first else ["h", "b"]
    nodes = [_node("MatMul", ["x", "W"], "h", "linear"), _node("Add", terms, "y", "bias")]
    return model_of(nodes, {"W": weight(K, N), "b": weight(*bias_shape, seed=1)})


def gemm(
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float = 1.0,
    bias_shape: tuple[int, ...] | None = (N,),
    rows: int | str = "rows",
) -> onnx.ModelProto:
    """Gemm(x, W, b) on two dimensions; a bias shape of None leaves the third input away."""
    values = {"W": weight(K, N).T.copy() if trans_b else weight(K, N)}
    if bias_shape is not None:
        values["b"] = weight(*bias_shape, seed=1) if bias_shape else np.float32([0.5])[0]
    node = _node(
        "Gemm",
        ["x", *values],
        "y",
        "linear",
        transA=int(trans_a),
        transB=int(trans_b),
        alpha=alpha,
        beta=beta,
    )
    return model_of([node], values, x=(K, rows) if trans_a else (rows, K), y=(rows, N))


def gemm_between_reshapes() -> onnx.ModelProto:
    """Reshape to two dimensions, Gemm, Reshape back: how GPT-2's linears are exported."""
    nodes = [
        _node("Reshape", ["x", "flat"], "h"),
        _node("Gemm", ["h", "W", "b"], "g", "linear"),
        _node("Shape", ["x"], "s", end=2),
        _node("Concat", ["s", "n"], "back", axis=0),
        _node("Reshape", ["g", "back"], "y"),
    ]
    values = {"W": weight(K, N), "b": weight(N, seed=1)}
    return model_of(nodes, values | {"flat": np.array([-1, K]), "n": np.array([N])})


def transposed_weight() -> onnx.ModelProto:
    """MatMul(x, Transpose(W[N, K])): how a head that shares the embedding is exported."""
    nodes = [
        _node("Transpose", ["W"], "t", perm=[1, 0]),
        _node("MatMul", ["x", "t"], "y", "linear"),
    ]
    return model_of(nodes, {"W": weight(K, N).T.copy()})


def cast_weight() -> onnx.ModelProto:
    """MatMul(x, Cast(W)), float16 to float32."""
    nodes = [
        _node("Cast", ["W"], "w", to=TensorProto.FLOAT),
        _node("MatMul", ["x", "w"], "y", "linear"),
    ]
    return model_of(nodes, {"W": weight(K, N).astype(np.float16)})


def dequantized_weight() -> onnx.ModelProto:
    """MatMul(x, DequantizeLinear(W)), int8 with a scale and a zero point per output channel."""
    values = weight(K, N)
    scale = (np.abs(values).max(axis=0) / 120).astype(np.float32)
    zero_point = (np.arange(N) % 5 - 2).astype(np.int8)
    codes = np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)
    nodes = [
        _node("DequantizeLinear", ["W", "scale", "zero"], "w", axis=1),
        _node("MatMul", ["x", "w"], "y", "linear"),
    ]
    return model_of(nodes, {"W": codes, "scale": scale, "zero": zero_point})


def identity_weight() -> onnx.ModelProto:
    """MatMul(x, Identity(Identity(W)))."""
    nodes = [
        _node("Identity", ["W"], "v"),
        _node("Identity", ["v"], "w"),
        _node("MatMul", ["x", "w"], "y", "linear"),
    ]
    return model_of(nodes, {"W": weight(K, N)})


def constant_node_weight() -> onnx.ModelProto:
    """MatMul(x, W) where W is the output of a Constant node."""
    nodes = [
        _node("Constant", [], "W", value=numpy_helper.from_array(weight(K, N))),
        _node("MatMul", ["x", "W"], "y", "linear"),
    ]
    return model_of(nodes, {})


def tied_weight() -> onnx.ModelProto:
    """Gather(W, ids) + x, times Transpose(W): one weight, read twice."""
    nodes = [
        _node("Gather", ["W", "ids"], "e"),
        _node("Add", ["x", "e"], "h"),
        _node("Transpose", ["W"], "t", perm=[1, 0]),
        _node("MatMul", ["h", "t"], "y", "linear"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    return model_of(nodes, {"W": weight(K, N).T.copy()}, inputs=[ids])


def two_activations() -> onnx.ModelProto:
    """Softmax(x·xᵀ)·x: products of activations, as in attention; no weight, no linear."""
    nodes = [
        _node("Transpose", ["x"], "t", perm=[0, 2, 1]),
        _node("MatMul", ["x", "t"], "scores", "scores"),
        _node("Softmax", ["scores"], "p", axis=-1),
        _node("MatMul", ["p", "x"], "y", "mix"),
    ]
    return model_of(nodes, {}, y=("batch", "sequence", K))


def subgraph(kind: str = "If") -> onnx.ModelProto:
    """A linear inside the branch of an If or the body of a Loop, which read outer tensors.

    Args:
        kind: `If`, whose second branch adds a constant, or `Loop`, of three rounds (K = N).
    """
    if kind == "If":
        then = helper.make_graph(
            [_node("MatMul", ["x", "W"], "then_y", "inner")], "then", [], [_any_shape("then_y")]
        )
        other = helper.make_graph(
            [_node("Add", ["h", "b"], "else_y")], "else", [], [_any_shape("else_y")]
        )
        nodes = [
            _node("MatMul", ["x", "V"], "h", "linear"),
            _node("If", ["condition"], "y", then_branch=then, else_branch=other),
        ]
        condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
        values = {"W": weight(K, N), "V": weight(K, N, seed=1), "b": weight(N, seed=2)}
        return model_of(nodes, values, inputs=[condition])
    body = helper.make_graph(
        [
            _node("MatMul", ["state", "W"], "next", "inner"),
            _node("Identity", ["going"], "go_on"),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            _any_shape("state"),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), _any_shape("next")],
    )
    nodes = [
        _node("MatMul", ["x", "W"], "h", "linear"),
        _node("Loop", ["rounds", "yes", "h"], "y", body=body),
    ]
    values = {"W": weight(K, K), "rounds": np.array(3), "yes": np.array(True)}
    return model_of(nodes, values, y=("batch", "sequence", K))


def typed(dtype: str = "fp16") -> onnx.ModelProto:
    """MatMul + Add entirely in `fp16` or `bf16`; ONNX Runtime's CPU runs only the first."""
    kind = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[dtype]
    numpy_type = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    nodes = [_node("MatMul", ["x", "W"], "h", "linear"), _node("Add", ["h", "b"], "y", "bias")]
    values = {"W": weight(K, N).astype(numpy_type), "b": weight(N, seed=1).astype(numpy_type)}
    return model_of(nodes, values, dtype=kind)


def shared_input(out_channels: tuple[int, int, int] = (N, 32, 32)) -> onnx.ModelProto:
    """Three linears `q`, `k`, `v` on x, the first two with a bias; y is their concatenation."""
    nodes, values = [], {}
    for seed, (name, width) in enumerate(zip("qkv", out_channels, strict=True)):
        values[f"W{name}"] = weight(K, width, seed=seed)
        product = f"{name}_product" if name != "v" else f"{name}_out"
        nodes.append(_node("MatMul", ["x", f"W{name}"], product, name))
        if name != "v":
            values[f"b{name}"] = weight(width, seed=10 + seed)
            nodes.append(_node("Add", [product, f"b{name}"], f"{name}_out"))
    nodes.append(_node("Concat", ["q_out", "k_out", "v_out"], "y", axis=-1))
    return model_of(nodes, values, y=("batch", "sequence", sum(out_channels)))


LINEAR_MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "matmul": matmul,
    "matmul_add": matmul_add,
    "matmul_add_bias_first": lambda: matmul_add(bias_first=True),
    "matmul_add_bias_11n": lambda: matmul_add(bias_shape=(1, 1, N)),
    "gemm": gemm,
    "gemm_no_bias": lambda: gemm(bias_shape=None),
    "gemm_trans_b": lambda: gemm(trans_b=True),
    "gemm_trans_a": lambda: gemm(trans_a=True),
    "gemm_trans_ab": lambda: gemm(trans_a=True, trans_b=True),
    "gemm_alpha_beta": lambda: gemm(alpha=0.5, beta=-2.0),
    "gemm_beta_zero": lambda: gemm(beta=0.0),
    "gemm_bias_1n": lambda: gemm(bias_shape=(1, N)),
    "gemm_bias_1": lambda: gemm(bias_shape=(1,)),
    "gemm_bias_scalar": lambda: gemm(bias_shape=()),
    "gemm_bias_m1": lambda: gemm(bias_shape=(8, 1), rows=8),
    "gemm_bias_mn": lambda: gemm(bias_shape=(8, N), rows=8),
    "gemm_between_reshapes": gemm_between_reshapes,
    "transposed_weight": transposed_weight,
    "cast_weight": cast_weight,
    "dequantized_weight": dequantized_weight,
    "identity_weight": identity_weight,
    "constant_node_weight": constant_node_weight,
    "tied_weight": tied_weight,
    "two_activations": two_activations,
    "if": subgraph,
    "loop": lambda: subgraph("Loop"),
    "fp16": typed,
    "bf16": lambda: typed("bf16"),
    "shared_input": shared_input,
}
"""All hand-made graphs by name, for parametrized tests."""


def linear_model(variant: str) -> onnx.ModelProto:
    """The hand-made graph of this name, see `LINEAR_MODELS`."""
    return LINEAR_MODELS[variant]()


def feeds(model: onnx.ModelProto, rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs for a hand-made graph: two batches of `rows`, or `rows` where x is 2-D."""
    generator = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        sizes = {"batch": 2, "sequence": rows, "rows": rows}
        shape = [sizes.get(d.dim_param, d.dim_value) for d in kind.shape.dim]
        numpy_type = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.elem_type == TensorProto.BOOL:
            values[value.name] = np.ones(shape, bool)
        elif kind.elem_type == TensorProto.INT64:
            values[value.name] = generator.integers(0, N, shape)
        else:
            values[value.name] = generator.standard_normal(shape).astype(numpy_type)
    return values


def _node(
    op: str, inputs: Sequence[str], output: str, name: str | None = None, **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=name or output, **attributes)


def _any_shape(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
