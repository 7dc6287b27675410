"""Rewritten models against the specification, and what of a model a rewrite must not touch."""

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompile import ops
from mmcompile.errors import MMCompileError
from mmcompile.model.passes.name_nodes import name_nodes
from mmcompile.model.passes.rewrite_linears import packed_names, rewrite_linears
from mmcompile.model.source import load_model
from mmcompile.verification.compiled import compiled_nodes, read_nodes
from mmcompile.verification.nodes import node_excess
from tests import models
from tests import node_models as nm
from tests.compiling import compiled, mixed, prepare, uniform
from tests.models import LINEAR_MODELS, SMALL_MODELS, K, N, feeds, weight
from tests.running import run

node = helper.make_node

W = weight(K, N)
B = weight(N, seed=1)
F32 = np.float32


def half(value):
    return value.astype(np.float16).astype(F32)


def brain(value):
    return value.astype(ml_dtypes.bfloat16).astype(F32)


def dequantized():
    tensors = models.dequantized_weight().graph.initializer
    codes, scale, zero = (numpy_helper.to_array(tensor).astype(F32) for tensor in tensors)
    return (codes - zero) * scale


def tied_input(feed):
    return feed["x"] + W.T[feed["ids"]]


def transposed(feed):
    return feed["x"].T


LAYERS = {
    # Weight [K, N], bias, and where it is not x itself, what the layer reads: written down here,
    # not taken from the compiler.
    "matmul": (W, 0),
    "matmul_add": (W, B),
    "matmul_add_bias_first": (W, B),
    "gemm": (W, B),
    "gemm_no_bias": (W, 0),
    "gemm_trans_b": (W, B),
    "gemm_trans_a": (W, B, transposed),
    "gemm_trans_ab": (W, B, transposed),
    "gemm_alpha_beta": (F32(0.5) * W, F32(-2) * B),
    "gemm_beta_zero": (W, 0),
    "gemm_bias_1n": (W, weight(1, N, seed=1)[0]),
    "gemm_bias_1": (W, weight(1, seed=1)[0]),
    "gemm_bias_scalar": (W, F32(0.5)),
    "gemm_between_reshapes": (W, B),
    "transposed_weight": (W, 0),
    "cast_weight": (half(W), 0),
    "dequantized_weight": (dequantized(), 0),
    "identity_weight": (W, 0),
    "constant_node_weight": (W, 0),
    "tied_weight": (W, 0, tied_input),
    "fp16": (half(W), half(B)),
    "shared_input": (
        np.concatenate([weight(K, n, seed=s) for s, n in enumerate((N, 32, 32))], axis=1),
        np.concatenate([weight(N, seed=10), weight(32, seed=11), np.zeros(32, F32)]),
    ),
}
PLANS = {"uniform": uniform, "mixed": mixed, "nvfp4": lambda group: uniform(group, "nvfp4")}


def check_against_specification(y, x, layer, bias, plan, *, unit=0.0, tiny=0.0):
    """y within the derived bound of the float64 product of the specified operands.

    unit and tiny: unit roundoff and half the smallest step of a 16-bit output type.
    """
    bias = np.broadcast_to(bias, layer.shape[1]).astype(F32)
    x_hat = nm.spec_operand(x.reshape(-1, x.shape[-1]), plan, "act")
    w_hat = nm.spec_operand(layer.T, plan, "weight")
    exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
    bound = nm.summation_bound(x_hat, w_hat, bias)
    bound += unit * (np.abs(exact) + bound) + tiny
    assert y.shape == (*x.shape[:-1], layer.shape[1])
    error = np.abs(y.reshape(exact.shape).astype(np.float64) - exact)
    assert (error <= bound).all(), float((error / bound).max())
    # The bound would be no test if any quantization passed it: dropping it must be out of bounds.
    plain = x.reshape(-1, x.shape[-1]).astype(np.float64) @ layer + bias
    assert (np.abs(plain - exact) > bound).mean() > 0.5


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("variant", LAYERS)
def test_rewritten_pattern_computes_what_the_specification_says(variant, plan, tmp_path):
    layer, bias, *how = LAYERS[variant]
    model = LINEAR_MODELS[variant]()
    result = compiled(prepare(model, tmp_path), tmp_path, PLANS[plan])
    onnx.checker.check_model(str(result.path), full_check=True)
    feed = feeds(model)
    (y,) = run(result.path, feed)
    x = how[0](feed) if how else feed["x"]
    accuracy = {"unit": 2.0**-11, "tiny": 2.0**-25} if variant == "fp16" else {}
    assert y.dtype == feed["x"].dtype
    check_against_specification(y, x.astype(F32), layer, bias, result.plans[0], **accuracy)


@pytest.mark.parametrize("plan", PLANS)
def test_factor_that_is_no_power_of_two(plan, tmp_path):
    model = models.gemm(alpha=0.3, beta=1.7, trans_b=True)
    result = compiled(prepare(model, tmp_path), tmp_path, PLANS[plan])
    feed = feeds(model)
    (y,) = run(result.path, feed)
    layer, bias = F32(0.3) * W, F32(1.7) * B
    check_against_specification(y, feed["x"], layer, bias, result.plans[0])


@pytest.mark.parametrize("plan", PLANS)
def test_bfloat16_layer_runs_between_casts(plan, tmp_path):
    """ONNX Runtime's Python interface has no bfloat16, its casts have."""
    model = models.typed("bf16")
    result = compiled(prepare(model, tmp_path), tmp_path, PLANS[plan])
    onnx.checker.check_model(str(result.path), full_check=True)
    proto = result.proto
    proto.graph.node.insert(0, node("Cast", ["x32"], ["x"], to=TensorProto.BFLOAT16))
    proto.graph.node.append(node("Cast", ["y"], ["y32"], to=TensorProto.FLOAT))
    proto.graph.input[0].name = "x32"
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    proto.graph.output[0].name = "y32"
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    x = np.random.default_rng(0).standard_normal((2, 5, K)).astype(F32)
    (y,) = run(proto, {"x32": x})
    np.testing.assert_array_equal(y, brain(y))
    check_against_specification(y, brain(x), brain(W), brain(B), result.plans[0], unit=2.0**-8)


@pytest.mark.parametrize("opset", [15, 17, 18, 21, 25])
def test_every_opset(opset, tmp_path):
    model = models.gemm_between_reshapes()
    model.opset_import[0].version = opset
    result = compiled(prepare(model, tmp_path), tmp_path)
    feed = feeds(model)
    (y,) = run(result.path, feed)
    check_against_specification(y, feed["x"], W, B, result.plans[0])
    (function,) = result.proto.functions
    assert [entry.version for entry in function.opset_import] == [opset]


def test_default_domain_by_its_other_name(tmp_path):
    model = models.matmul_add()
    model.opset_import[0].domain = "ai.onnx"
    result = compiled(prepare(model, tmp_path), tmp_path)
    assert {entry.domain for entry in result.proto.opset_import} == {"ai.onnx", "mmcompile"}
    feed = feeds(model)
    check_against_specification(run(result.path, feed)[0], feed["x"], W, B, result.plans[0])


def test_layer_on_a_vector(tmp_path):
    model = models.model_of(
        [node("MatMul", ["x", "W"], ["y"], name="linear")], {"W": W}, x=(K,), y=(N,)
    )
    result = compiled(prepare(model, tmp_path), tmp_path)
    x = np.random.default_rng(0).standard_normal(K).astype(F32)
    (y,) = run(result.path, {"x": x})
    check_against_specification(y, x, W, 0, result.plans[0])


@pytest.mark.parametrize(("kind", "condition"), [("If", True), ("If", False), ("Loop", None)])
def test_bodies_still_read_what_they_read(kind, condition, tmp_path):
    model = models.subgraph(kind)
    result = compiled(prepare(model, tmp_path), tmp_path)
    onnx.checker.check_model(str(result.path), full_check=True)
    feed = feeds(model)
    if kind == "If":
        feed["condition"] = np.array(condition)
    (y,) = run(result.path, feed)
    if kind == "If" and condition:
        np.testing.assert_array_equal(y, run(model, feed)[0])
    elif kind == "If":
        bias = weight(N, seed=2)
        # The Add stays outside the node: one more rounding of fp32.
        layer = weight(K, N, seed=1)
        check_against_specification(y, feed["x"], layer, bias, result.plans[0], unit=2.0**-24)
    else:
        plan = result.plans[0]
        w_hat = nm.spec_operand(weight(K, K).T, plan, "weight")
        h = nm.spec_operand(feed["x"].reshape(-1, K), plan, "act") @ w_hat.T
        for _ in range(3):
            h = h @ weight(K, K)
        # Four products of K = 96 in fp32, whose order is free: 4 · 98 · 2⁻²⁴ = 2.3e-5 of sums of
        # magnitudes below 4.
        np.testing.assert_allclose(y.reshape(h.shape), h, atol=1e-4)
    original = {tensor.name for tensor in model.graph.initializer} - {"V"}
    kept = {tensor.name for tensor in result.proto.graph.initializer}
    assert original <= kept
    for inner in result.proto.graph.node:
        for attribute in inner.attribute:
            assert not attribute.g.initializer  # no weight moves into a body


def test_interface_and_names_stay(tmp_path):
    model = models.shared_input()
    result = compiled(prepare(model, tmp_path), tmp_path)
    assert list(result.proto.graph.input) == list(model.graph.input)
    assert list(result.proto.graph.output) == list(model.graph.output)
    assert [d.dim_param for d in result.proto.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "sequence",
        "",
    ]
    before = {name for n in model.graph.node for name in n.output}
    after = {name for n in result.proto.graph.node for name in n.output}
    assert before - after == {"q_product", "k_product"}  # inside the node now
    assert after - before == {"mmcompile.y.q+k+v"}


def test_inputs_and_outputs_stay_in_their_order(tmp_path):
    model = models.tied_weight()
    model.graph.output.append(helper.make_tensor_value_info("h", 1, ["batch", 3, K], "doc"))
    result = compiled(prepare(model, tmp_path), tmp_path)
    assert [value.name for value in result.proto.graph.input] == ["x", "ids"]
    assert list(result.proto.graph.input) == list(model.graph.input)
    assert list(result.proto.graph.output) == list(model.graph.output)


@pytest.mark.parametrize("lead", [(1, 1), (3, 7), (2, 0), (0, 4)])
def test_dynamic_sizes_stay_dynamic(lead, tmp_path):
    model = models.shared_input()
    result = compiled(prepare(model, tmp_path), tmp_path)
    x = np.zeros((*lead, K), F32)
    assert run(result.path, {"x": x})[0].shape == (*lead, N + 64)


def test_layers_that_read_one_tensor_become_one_node(tmp_path):
    model = models.shared_input((64, 32, 48))
    result = compiled(prepare(model, tmp_path), tmp_path)
    by_type = {n.op_type: n for n in result.proto.graph.node}
    assert sorted(n.op_type for n in result.proto.graph.node) == [
        "Concat",
        "MicroMixLinear",
        "Split",
    ]
    merged = by_type["MicroMixLinear"]
    assert merged.domain == ops.DOMAIN
    assert list(merged.input) == ["x", *packed_names("q+k+v")]
    assert len(merged.input) == len(ops.INPUTS)
    assert {a.name for a in merged.attribute} == {field.name for field in ops.ATTRIBUTES}
    assert list(by_type["Split"].output) == ["q_out", "k_out", "v_out"]
    sizes = next(t for t in result.proto.graph.initializer if t.name == by_type["Split"].input[1])
    assert numpy_helper.to_array(sizes).tolist() == [64, 32, 48]
    (read,) = compiled_nodes(load_model(result.path))
    assert read.outputs == ("q_out", "k_out", "v_out")


def test_each_layer_of_a_group_equals_the_layer_alone(tmp_path):
    """The Split hands every layer its own rows."""
    model = models.shared_input((64, 32, 48))
    together = compiled(prepare(model, tmp_path), tmp_path, uniform)
    feed = feeds(model)
    (merged,) = run(together.path, feed)
    start = 0
    for name, width in (("q", 64), ("k", 32), ("v", 48)):
        folder = tmp_path / name
        folder.mkdir()
        alone = compiled(prepare(model, folder, include=(name,)), folder, uniform)
        (y,) = run(alone.path, feed)
        part = slice(start, start + width)
        # Equal operands; the order of fp32 additions is free: 98 · 2⁻²⁴ = 6e-6 of sums of
        # magnitudes below 16.
        np.testing.assert_allclose(merged[..., part], y[..., part], atol=1e-4)
        assert np.abs(merged - y).max() > 1e-3  # the other layers are not quantized there
        start += width


def test_unused_weights_go_and_tied_ones_stay(tmp_path):
    gone = compiled(prepare(models.matmul_add(), tmp_path), tmp_path)
    names = {tensor.name for tensor in gone.proto.graph.initializer}
    assert names == set(packed_names("linear"))
    data = gone.path.with_name(f"{gone.path.name}.data")
    codes = gone.plans[0].packed_bytes
    assert codes < gone.path.stat().st_size + data.stat().st_size < codes + 20_000
    folder = tmp_path / "tied"
    folder.mkdir()
    tied = compiled(prepare(models.tied_weight(), folder), folder)
    kept = {tensor.name: tensor for tensor in tied.proto.graph.initializer}
    assert kept.keys() == {"W", *packed_names("linear")}
    np.testing.assert_array_equal(numpy_helper.to_array(kept["W"]), W.T)


def test_names_of_constants_never_meet_the_models_own(tmp_path):
    """A node `fc` with weights `fc.weight` and `fc.bias`, of which the Gather still reads one."""
    model = models.tied_weight()
    renamed = {"W": "fc.weight", "t": "fc.order", "e": "fc.scales", "h": "fc.bias"}
    for inner in model.graph.node:
        inner.input[:] = [renamed.get(name, name) for name in inner.input]
        inner.output[:] = [renamed.get(name, name) for name in inner.output]
        inner.name = "fc" if inner.name == "linear" else inner.name
    model.graph.initializer[0].name = "fc.weight"
    result = compiled(prepare(model, tmp_path), tmp_path)
    feed = feeds(model)
    check_against_specification(run(result.path, feed)[0], tied_input(feed), W, 0, result.plans[0])


def test_nothing_but_the_layer_changes(tmp_path):
    """Fields, types of attributes and kinds of values that graphsurgeon does not know."""
    model = rich_model()
    prepared = prepare(model, tmp_path)
    result = compiled(prepared, tmp_path)
    before, after = model, result.proto
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(before, field) == getattr(after, field) != type(getattr(before, field))()
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.graph.metadata_props) == list(before.graph.metadata_props)
    assert (after.graph.name, after.graph.doc_string) == ("rich", "its documentation")
    assert list(after.functions[:2]) == list(before.functions)
    assert after.functions[2].name == ops.OP_TYPE
    kept = {n.name: n for n in after.graph.node}
    for original in before.graph.node:
        if original.name not in ("linear", "bias"):
            assert kept[original.name] == original, original.name
    assert [v.name for v in after.graph.value_info] == ["empty", "maybe", "text"]
    assert all(v in list(before.graph.value_info) for v in after.graph.value_info)
    assert list(after.graph.sparse_initializer) == list(before.graph.sparse_initializer)
    weights = {tensor.name for tensor in after.graph.initializer}
    assert weights == {"strings", "spare", *packed_names("linear")}
    onnx.checker.check_model(after)
    load_model(result.path)


def rich_model():
    """A model that uses what is rare: every test value is checked by onnx.checker."""
    halve = onnx.parser.parse_function(
        '<domain: "local", opset_import: ["": 20]> Halve <a> (x) => (y)'
        " { c = Constant <value_float: float = @a> ()\n y = Mul (x, c) }"
    )
    again = onnx.FunctionProto()
    again.CopyFrom(halve)
    again.overload = "again"
    empty = onnx.AttributeProto(name="value_ints", type=onnx.AttributeProto.INTS)
    nodes = [
        node("MatMul", ["x", "W"], ["h"], name="linear"),
        node("Add", ["h", "b"], ["z"], name="bias"),
        node("Halve", ["z"], ["half"], name="halve", domain="local", a=0.5),
        node("Halve", ["half"], ["quarter"], name="halve_again", domain="local", a=0.5),
        node("Constant", [], ["empty"], name="empty"),
        node("ReduceSum", ["quarter"], ["sum"], name="sum", keepdims=0),
        node("Reshape", ["sum", "empty"], ["total"], name="reshape"),
        node("Optional", ["total"], ["maybe"], name="optional"),
        node("OptionalGetElement", ["maybe"], ["got"], name="get"),
        node("Add", ["quarter", "got"], ["dense"], name="add"),
        node("Add", ["dense", "sparse"], ["y"], name="add_sparse"),
        node("Identity", ["strings"], ["text"], name="text"),
        node("Odd", ["x"], ["odd"], name="odd", domain="odd", blob=b"\xff\x00"),
    ]
    nodes[3].overload = "again"
    nodes[4].attribute.append(empty)
    kind = onnx.AttributeProto(name="kind", type=onnx.AttributeProto.TYPE_PROTO)
    kind.tp.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT8E8M0, [None, "n"]))
    nodes[12].attribute.append(kind)
    nodes[2].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['a', 'b']")
    nodes[2].doc_string = "halves"
    graph = helper.make_graph(
        nodes,
        "rich",
        [
            helper.make_tensor_value_info("x", 1, ["batch", "sequence", K]),
            helper.make_tensor_value_info("spare", 1, [2]),
        ],
        [
            helper.make_tensor_value_info("y", 1, ["batch", "sequence", N], "the answer"),
            helper.make_tensor_value_info("text", TensorProto.STRING, [2]),
            helper.make_tensor_value_info("odd", 1, ["n"]),
        ],
        [
            numpy_helper.from_array(W, "W"),
            numpy_helper.from_array(B, "b"),
            numpy_helper.from_array(np.array(["a", "b"], object), "strings"),
            numpy_helper.from_array(np.ones(2, F32), "spare"),
        ],
        doc_string="its documentation",
        value_info=[
            helper.make_tensor_value_info("h", 1, ["batch", "sequence", N]),
            helper.make_tensor_value_info("empty", TensorProto.INT64, [0]),
            helper.make_value_info(
                "maybe", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, []))
            ),
            helper.make_tensor_value_info("text", TensorProto.STRING, [2], "words"),
        ],
        sparse_initializer=[
            helper.make_sparse_tensor(
                helper.make_tensor("sparse", 1, [2], [1.0, 2.0]),
                helper.make_tensor("sparse_at", TensorProto.INT64, [2], [3, 5]),
                [N],
            )
        ],
    )
    graph.metadata_props.add(key="graph", value="g")
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in (("", 20), ("local", 1), ("odd", 1))],
        functions=[halve, again],
        ir_version=10,
        producer_name="test",
        producer_version="7",
        domain="org.test",
        model_version=3,
        doc_string="documented",
    )
    helper.set_model_props(model, {"license": "MIT", "vocabulary": "120"})
    return model


def test_inputs_and_outputs_that_are_left_out_stay_so():
    """Names that are empty, at the end of a list as well."""
    hidden = 8
    nodes = [
        node("Clip", ["x", "", "high"], ["a"], name="no_low"),
        node("Clip", ["a", "low", ""], ["b"], name="no_high"),
        node("LSTM", ["b", "W", "R", "", "", "h", ""], ["", "c", ""], name="lstm", hidden_size=8),
        node("Dropout", ["b"], ["y", ""], name="dropout"),
    ]
    values = {
        "high": F32(3),
        "low": F32(-3),
        "W": np.ones((1, 4 * hidden, K), F32),
        "R": np.ones((1, 4 * hidden, hidden), F32),
        "h": np.zeros((1, 1, hidden), F32),
    }
    model = models.model_of(nodes, values, x=("s", 1, K), y=("s", 1, K))
    model.graph.output.append(helper.make_tensor_value_info("c", 1, None))
    rewritten = rewrite_linears(model, [])
    assert {n.name: n for n in rewritten.graph.node} == {n.name: n for n in model.graph.node}


def test_node_that_graphsurgeon_changes_is_no_silent_loss(monkeypatch):
    """Its attributes would be missing, as only the topology goes through graphsurgeon."""
    model = models.transposed_weight()
    export = gs.export_onnx

    def changed(graph, **options):
        exported = export(graph, **options)
        exported.graph.node[0].input.append("")
        return exported

    monkeypatch.setattr(gs, "export_onnx", changed)
    with pytest.raises(MMCompileError, match=r"node t \(Transpose\).*please report"):
        rewrite_linears(model, [])


@pytest.mark.parametrize(("before", "after"), [(3, 8), (8, 8), (10, 10), (12, 12), (13, 12)])
def test_version_of_the_format_stays_where_readers_know_it(before, after, tmp_path):
    model = models.matmul()
    model.ir_version = before
    if before == 3:  # which asks for every initializer to be an input, too
        model.graph.node[0].op_type = "Relu"
        del model.graph.node[0].input[1:], model.graph.initializer[:]
    rewritten = rewrite_linears(model, [])
    assert rewritten.ir_version == after
    assert not rewritten.functions


def test_half_block_scales_only_where_activations_need_them(tmp_path):
    sizes = {}
    for name in ("mxfp4", "nvfp4"):
        folder = tmp_path / name
        folder.mkdir()
        result = compiled(prepare(models.matmul(), folder), folder, lambda g, n=name: uniform(g, n))
        sizes[name] = len(result.proto.functions[0].node)
    assert sizes["mxfp4"] < sizes["nvfp4"]


def test_rewriting_prints_nothing(tmp_path, capfd):
    prepared = prepare(models.typed("bf16"), tmp_path)
    rewrite_linears(prepared.source.proto, [(g, mixed(g)) for g in prepared.groups])
    assert capfd.readouterr() == ("", "")


def test_rewriting_reads_no_weight_and_leaves_its_argument_alone(tmp_path):
    prepared = prepare(models.shared_input(), tmp_path)
    before = prepared.source.proto.SerializeToString(deterministic=True)
    (tmp_path / "original.onnx").unlink()
    rewrite_linears(prepared.source.proto, [(g, mixed(g)) for g in prepared.groups])
    assert prepared.source.proto.SerializeToString(deterministic=True) == before


def test_node_names_are_made_unique():
    model = models.shared_input()
    for inner, name in zip(
        model.graph.node, ["", "", "a", "a", "a", "MatMul:q_product"], strict=True
    ):
        inner.name = name
    named = [inner.name for inner in name_nodes(model).graph.node]
    assert len(set(named)) == len(named)
    assert named[:4] == ["MatMul:q_product", "Add:q_out", "a", "a:k_out"]
    assert [inner.name for inner in model.graph.node][:2] == ["", ""]
    model.graph.node[0].name = "Add:q_out"
    named = [inner.name for inner in name_nodes(model).graph.node]
    assert named[:2] == ["Add:q_out", "Add:q_out:2"]


@pytest.fixture(scope="module")
def small(exported, tmp_path_factory):
    """`small(name)`: a small exported model, compiled with a mixed plan, once per file."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            prepared = prepare(exported(name), folder)
            made[name] = prepared, compiled(prepared, folder)
        return made[name]

    return make


def token_feeds(proto, batch, length, seed=0):
    random = np.random.default_rng(seed)
    feed = {"input_ids": random.integers(3, models.SMALL_VOCABULARY, (batch, length))}
    for value in proto.graph.input[1:]:
        feed[value.name] = np.full((batch, length), value.name == "attention_mask", np.int64)
    return feed


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_real_model_runs_compiled_at_any_size(name, small):
    prepared, result = small(name)
    onnx.checker.check_model(str(result.path), full_check=True)
    proto = prepared.source.proto
    assert list(result.proto.graph.input) == list(proto.graph.input)
    assert list(result.proto.graph.output) == list(proto.graph.output)
    assert list(result.proto.metadata_props) == list(proto.metadata_props)
    for batch, length in ((1, 9), (3, 4)):
        feed = token_feeds(proto, batch, length)
        (expected,) = run(prepared.source.path, feed)
        (actual,) = run(result.path, feed)
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        distance = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert 1e-3 < distance < 0.7  # quantized to few bits, yet the same function


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_real_model_has_the_operands_of_the_specification(name, small):
    """Of every node: the operands inside the inlined function, from the tensors it reads."""
    prepared, result = small(name)
    inlined = onnx.inliner.inline_local_functions(result.proto)
    produced = [output for inner in inlined.graph.node for output in inner.output]
    wanted = {}
    for kind in ("dequantized_x", "dequantized_weight"):
        wanted[kind] = [n for n in produced if n.startswith(kind)]
        assert len(wanted[kind]) == len(result.plans)
    order = [n.op_type for n in result.proto.graph.node]
    assert order.count(ops.OP_TYPE) == len(result.plans)
    inputs = [n.input[0] for n in result.proto.graph.node if n.op_type == ops.OP_TYPE]
    del inlined.graph.output[:]
    for tensor in (*wanted["dequantized_x"], *wanted["dequantized_weight"], *inputs):
        inlined.graph.output.append(helper.make_tensor_value_info(tensor, 1, None))
    feed = token_feeds(prepared.source.proto, 2, 6)
    values = dict(zip((o.name for o in inlined.graph.output), run(inlined, feed), strict=True))
    plans = {plan.name: plan for plan in result.plans}
    groups = {group.name: group for group in prepared.groups}
    nodes = [n for n in result.proto.graph.node if n.op_type == ops.OP_TYPE]
    for index, merged in enumerate(nodes):
        plan, group = plans[merged.name], groups[merged.name]
        x = values[merged.input[0]].reshape(-1, plan.in_channels)
        expected = nm.spec_operand(x, plan, "act")
        np.testing.assert_array_equal(values[wanted["dequantized_x"][index]], expected)
        rows = [
            site.read_weight(prepared.source).T
            if site.channels_first
            else site.read_weight(prepared.source)
            for site in group.sites
        ]
        expected = nm.spec_operand(np.concatenate(rows), plan, "weight")
        np.testing.assert_array_equal(values[wanted["dequantized_weight"][index]].T, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_every_node_of_a_real_model_is_within_the_bound(name, small):
    _, result = small(name)
    random = np.random.default_rng(0)
    count = 0
    for _, plan, packed in read_nodes(load_model(result.path)):
        rows = random.standard_normal((5, plan.in_channels), dtype=F32)
        assert node_excess(plan, packed, rows, TensorProto.FLOAT, 20) <= 1
        count += 1
    assert count == len(result.plans)
