"""TensorRT's messages, brought back to the ONNX node and the remedy."""

from __future__ import annotations

import pytest

from mmcompile.backends.engines.messages import (
    Message,
    ParserMessage,
    explain_build,
    explain_parser,
)

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
        (ParserMessage("relu", "R", 4, "", "Plugin not found, are …"), "relu", "plugin-not-found"),
    ],
)
def test_the_parsers_objections(message, node, code):
    found = explain_parser([message, message], NODES)
    assert (found.node, found.code) == (node, code)


def test_reasons_are_one_short_line():
    found = explain_build([Message(1, "a\n\tb " + "x" * 999)], NODES)
    assert "a b xxx" in found.reason and len(found.reason) <= 300
