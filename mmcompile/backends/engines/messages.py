"""What TensorRT says, brought back to the ONNX node and to what the user can do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_ERROR = 1
_LONGEST = 300


class Message(NamedTuple):
    """A line of TensorRT's log: severity 0 or 1 is an error, 2 a warning."""

    severity: int
    text: str


class ParserMessage(NamedTuple):
    """What the ONNX parser objects to; the node's name may be empty, its position -1."""

    node: str
    operator: str
    position: int
    code: str
    text: str


@dataclass(frozen=True)
class Explanation:
    """A failure for the user: an error's code, the ONNX node, the reason, the remedy."""

    code: str
    node: str | None
    reason: str
    remedy: str


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    code: str
    remedy: str


def _rule(pattern: str, code: str, remedy: str) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), code, remedy)


PLUGIN = "MicroMixLinear"
"""Our operator and its plugin, as TensorRT names them."""
_OWN = _rule(
    rf"mmcompile: |{PLUGIN} layer",
    "plugin-refused",
    "use the model and the plugin library of the same version of mmcompile",
)
"""What our plugin says; nothing that follows from it is as clear."""
_PREFIX = re.compile(rf"^(mmcompile: )?{PLUGIN} layer '.*?': ")
_NOT_FOUND = _rule(
    r"plugin not found|no importer registered|creator (was )?not found|getplugincreator",
    "plugin-not-found",
    "name the library with MMCOMPILE_PLUGIN; `mmcompile doctor` looks at it",
)
_RULES = (
    _rule(
        r"out of (host )?memory|outofmemory|insufficient memory|cuda_error_out_of_memory"
        r"|memory allocation|std::bad_alloc|failed_allocation",
        "build-out-of-memory",
        "free GPU memory (nvidia-smi), limit --workspace, or build smaller --shapes",
    ),
    _rule(
        r"no space left|disk quota",
        "disk-full",
        "free some space where TensorRT writes its temporary files (TMPDIR)",
    ),
    _NOT_FOUND,
    _OWN,
    _rule(
        r"could not find any implementation|no implementation",
        "build-no-implementation",
        "raise --workspace, or exclude the node with --exclude",
    ),
    _rule(
        r"optimization profile|setdimensions|kmin|kmax|kopt",
        "build-profile",
        "give --shapes that fit the model's inputs",
    ),
    _rule(
        r"no kernel image|unsupported sm|compute capability|sm \d",
        "gpu-unsupported",
        "use a TensorRT release that supports this GPU, or another GPU",
    ),
)


def last_error(messages: Sequence[Message]) -> str | None:
    """The last error of a log, as one line; None where there is none."""
    errors = _errors(messages)
    return _line(errors[-1]) if errors else None


def explain_parser(
    errors: Sequence[ParserMessage],
    nodes: Sequence[str],
    messages: Sequence[Message] = (),
    title: str = "TensorRT",
) -> Explanation:
    """The first objection of the parser, which the others follow from; our plugin's word before it.

    Args:
        errors: at least one.
        nodes: names of the model's nodes in order, for errors that give only an index.
        messages: the log of the parsing.
        title: what the builder is called.
    """
    first = errors[0]
    name = first.node
    if not name and 0 <= first.position < len(nodes):
        name = nodes[first.position]
    name = name or _named(first.text, nodes) or ""
    what = " ".join(part for part in (first.code, first.operator) if part)
    reason = f"{title}'s parser does not take it: {what}: {first.text}".replace(": : ", ": ")
    found = _match([first.text])
    if found is _NOT_FOUND and first.operator not in ("", PLUGIN):
        found = None  # TensorRT takes every operator that it does not know for a plugin
    code, remedy = (found.code, found.remedy) if found else ("parser-error", _parser_remedy(first))
    own = next((text for text in _errors(messages) if _OWN.pattern.search(text)), None)
    if own is not None:
        name, reason = _named(own, nodes) or name, f"its plugin is refused: {_PREFIX.sub('', own)}"
        code, remedy = _OWN.code, _OWN.remedy
    return Explanation(code, name or None, _line(reason), remedy)


def explain_build(
    messages: Sequence[Message], nodes: Sequence[str], title: str = "TensorRT"
) -> Explanation:
    """Why the builder gave no engine.

    A known cause anywhere in the log wins over the last error, which mostly only says that the
    build has failed.

    Args:
        messages: the log of the build.
        nodes: names of the model's nodes in order.
        title: what the builder is called.
    """
    texts = _errors(messages) or [message.text for message in messages]
    found = _match(texts)
    telling = texts[-1] if texts else "the builder returned nothing and logged no error"
    if found:
        telling = next(text for text in texts if found.pattern.search(text))
        code, remedy = found.code, found.remedy
    else:
        code, remedy = "build-failed", "see what the commands of reproduce.sh say"
    node = next(filter(None, (_named(text, nodes) for text in (telling, *texts))), None)
    return Explanation(code, node, _line(f"{title} built no engine: {telling}"), remedy)


def _errors(messages: Sequence[Message]) -> list[str]:
    return [message.text for message in messages if message.severity <= _ERROR]


def _match(texts: Iterable[str]) -> _Rule | None:
    """The first rule, in the rules' order, that fits any of the texts."""
    lines = list(texts)
    for rule in _RULES:
        if any(rule.pattern.search(line) for line in lines):
            return rule
    return None


def _named(text: str, nodes: Sequence[str]) -> str | None:
    """The longest node name that stands in a text as a whole word.

    TensorRT names layers after their nodes, joins those that it fuses with ` + ` or as
    `{ForeignNode[first...last]}`, and numbers those that a node becomes several of.
    """
    for name in sorted(filter(None, nodes), key=len, reverse=True):
        if re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/]|\.\w)", text):
            return name
    return None


def _parser_remedy(error: ParserMessage) -> str:
    if "DYNAMIC" in error.code or "SHAPE" in error.code:
        return "export the model with simpler dynamic shapes, or make them static"
    return "export the model in another way (opset, operators), or use a newer TensorRT"


def _line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _LONGEST else joined[: _LONGEST - 1] + "…"
