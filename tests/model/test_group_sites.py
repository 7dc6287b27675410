import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from mmcompile.model.passes.group_sites import group_name, group_sites
from tests import models
from tests.compiling import prepare
from tests.models import K, N, model_of, weight


def shapes_of(groups):
    return [[site.node for site in group.sites] for group in groups]


def test_linears_that_read_one_tensor_form_one_group(tmp_path):
    (group,) = prepare(models.shared_input((64, 32, 48)), tmp_path).groups
    assert [site.node for site in group.sites] == ["q", "k", "v"]
    assert group.name == "q+k+v"
    assert (group.input, group.in_channels, group.out_channels) == ("x", K, 144)
    assert [site.out_channels for site in group.sites] == [64, 32, 48]
    assert [site.bias is not None for site in group.sites] == [True, True, False]


def test_other_tensors_make_other_groups_in_graph_order(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], name="first"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "W"], ["b"], name="second"),
        helper.make_node("MatMul", ["x", "W"], ["c"], name="third"),
        helper.make_node("Sum", ["a", "b", "c"], ["y"], name="sum"),
    ]
    groups = prepare(model_of(nodes, {"W": weight(K, N)}), tmp_path).groups
    assert shapes_of(groups) == [["first", "third"], ["second"]]
    assert [group.input for group in groups] == ["x", "r"]


def test_transposed_input_is_a_group_of_its_own(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "W"], [f"{name}_out"], name=name, transA=int(name != "c"))
        for name in "abc"
    ]
    nodes.append(helper.make_node("Sum", ["a_out", "b_out", "c_out"], ["y"], name="sum"))
    model = model_of(nodes, {"W": weight(K, N)}, x=(K, K), y=(K, N))
    groups = prepare(model, tmp_path).groups
    assert shapes_of(groups) == [["a"], ["b"], ["c"]]
    assert [group.transpose_input for group in groups] == [True, True, False]


def test_another_type_or_width_is_another_group(tmp_path):
    site = prepare(models.matmul(), tmp_path).sites[0]
    sites = [
        dataclasses.replace(site, node="a"),
        dataclasses.replace(site, node="b", elem_type=TensorProto.FLOAT16),
        dataclasses.replace(site, node="c", in_channels=48),
        dataclasses.replace(site, node="d"),
    ]
    assert shapes_of(group_sites(sites)) == [["a", "d"], ["b"], ["c"]]
    assert group_sites([]) == ()


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        (["a.q/MatMul"], "a.q/MatMul"),
        (["a.q/MatMul", "a.k/MatMul"], "a.q+k/MatMul"),
        (["layers.0.q_proj/MatMul", "layers.0.k_proj/MatMul"], "layers.0.q+k_proj/MatMul"),
        (["q", "k", "v"], "q+k+v"),
        (["query", "queue"], "query+queue"),
        (["a/MatMul", "a/MatMul_1"], "a/MatMul+MatMul_1"),
        (["/up/MatMul", "/gate/MatMul", "/up2/MatMul"], "/up+gate+up2/MatMul"),
        (["a.a.a", "a.a"], "a.a.a+a"),
    ],
)
def test_group_name(nodes, name):
    assert group_name(nodes) == name


@given(st.lists(st.text("ab./_", min_size=1, max_size=8), min_size=2, max_size=4, unique=True))
def test_group_name_keeps_every_name_apart(nodes):
    name = group_name(nodes)
    middles = name.count("+") + 1
    assert middles == len(nodes)
    start, end = name.split("+")[0], name.split("+")[-1]
    assert nodes[0].startswith(start)
    assert nodes[-1].endswith(end)


def test_shared_weight_is_read_by_each_layer(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"], name="a"),
        helper.make_node("MatMul", ["x", "W"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    prepared = prepare(model_of(nodes, {"W": weight(K, N)}), tmp_path)
    (group,) = prepared.groups
    for site in group.sites:
        np.testing.assert_array_equal(site.read_weight(prepared.source), weight(K, N))
