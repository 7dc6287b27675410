"""TensorRT's messages, brought back to the ONNX node and the remedy."""

from __future__ import annotations

import pytest

from mmcompile.backends.engines.messages import (
    PLUGIN,
    Message,
    ParserMessage,
    explain_build,
    explain_parser,
)
from mmcompile.ops import OP_TYPE

NODES = ("layer", "/encoder/layer", "/encoder/layer.1/query", "/encoder/layer.1/query+key", "relu")


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("no implementation for node /encoder/layer.1/query.", "/encoder/layer.1/query"),
        ("no implementation for node /encoder/layer.1/query+key.", "/encoder/layer.1/query+key"),
        ("no implementation for node relu + /encoder/layer", "/encoder/layer"),
        ("no implementation for node {ForeignNode[relu...relu]}", "relu"),
        ("no implementation for node relu_12", None),
        ("no implementation for node /other/layer.2/x", None),
    ],
)
def test_the_longest_whole_name_is_the_node(text, node):
    assert explain_build([Message(1, text)], NODES).node == node


def test_a_known_cause_wins_over_the_last_error():
    log = [Message(1, "OutOfMemory in relu"), Message(1, "Engine building failed: internal error")]
    found = explain_build(log, NODES)
    assert (found.code, found.node) == ("build-out-of-memory", "relu")
    assert "OutOfMemory in relu" in found.reason


def test_warnings_count_only_where_there_is_no_error():
    warning = Message(2, "insufficient memory on a tactic")
    assert explain_build([warning, Message(1, "something else")], NODES).code == "build-failed"
    assert explain_build([warning], NODES).code == "build-out-of-memory"


@pytest.mark.parametrize(
    ("message", "node", "code"),
    [
        (ParserMessage("relu", "Relu", 4, "UNSUPPORTED_NODE", "no"), "relu", "parser-error"),
        (ParserMessage("", "Relu", 4, "UNSUPPORTED_NODE", "no"), "relu", "parser-error"),
        (ParserMessage("", "", -1, "INVALID_GRAPH", "near relu:"), "relu", "parser-error"),
        (ParserMessage("", "", -1, "", "nothing to go by"), None, "parser-error"),
        (ParserMessage("relu", PLUGIN, 4, "", "Plugin not found, …"), "relu", "plugin-not-found"),
        # TensorRT takes every operator that it does not know for a plugin.
        (ParserMessage("relu", "Odd", 4, "", "Plugin not found, …"), "relu", "parser-error"),
    ],
)
def test_the_parsers_objections(message, node, code):
    found = explain_parser([message, message], NODES)
    assert (found.node, found.code) == (node, code)


def test_reasons_are_one_short_line():
    found = explain_build([Message(1, "a\n\tb " + "x" * 999)], NODES)
    assert "a b xxx" in found.reason and len(found.reason) <= 300


def test_our_plugins_word_wins_over_the_parsers():
    error = ParserMessage("layer", PLUGIN, 0, "UNSUPPORTED_NODE", "Could not create the plugin.")
    log = [
        Message(2, "a warning"),
        Message(1, f"{PLUGIN} layer '/encoder/layer': field 'layout_version' is 1"),
        Message(1, "something that follows"),
    ]
    found = explain_parser([error], NODES, log, "TensorRT-RTX")
    assert (found.code, found.node) == ("plugin-refused", "/encoder/layer")
    assert found.reason == "its plugin is refused: field 'layout_version' is 1"
    other = explain_parser([error], NODES, log[:1], "TensorRT-RTX")
    assert other.code == "parser-error"
    assert other.reason.startswith("TensorRT-RTX's parser does not take it: UNSUPPORTED_NODE")


def test_the_plugin_is_called_so():
    assert PLUGIN == OP_TYPE
