"""Calibration inputs from a text file and a tokenizer.json.

Three ways of cutting a text into sequences: paragraphs (where blank lines separate some), lines
(where none do), or chunks of equal length of the running text, as language models are calibrated.
Inputs are filled by their names (`FILLED`); a model with others needs arrays instead of text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcompile.data.sample import AnyArray, InputSpec, Sample, cut_feed, format_shape, number_kind
from mmcompile.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILLED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""The inputs that text fills."""

BLOCK_CHARACTERS = 1 << 16
"""How much running text is tokenized at a time; large, since tokens never cross its ends."""

_OTHER_SOURCES = "give the inputs as .npz files or with a data loader script"


@dataclass(frozen=True)
class TextShape:
    """What the model's inputs ask of text.

    Attributes:
        batch: rows per sample: the model's fixed batch, or 1.
        fixed: the model's fixed sequence length, or None.
        limit: tokens per sequence at most, special tokens included.
        running: whether the running text is chunked, rather than each paragraph cut off.
        masked: whether the model takes an attention mask, without which padding is no option.
    """

    batch: int
    fixed: int | None
    limit: int
    running: bool
    masked: bool


@dataclass(frozen=True)
class _Tokens:
    """One sequence of token ids with its token types."""

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: _Tokens) -> _Tokens:
        return _Tokens(self.ids + other.ids, self.types + other.types)


@dataclass(frozen=True)
class _Padding:
    """How a tokenizer pads: to which side, and with which token."""

    left: bool
    token: int
    type: int


def plan_text(specs: Sequence[InputSpec], max_length: int, chunk: bool) -> TextShape:
    """How text can fill the model's inputs.

    Args:
        specs: the model's inputs.
        max_length: tokens per sequence at most.
        chunk: cut the running text into sequences of equal length. A model that needs equal
            lengths (a fixed sequence length or batch) and takes no `attention_mask` always gets
            them, so that it never sees padding.

    Raises:
        UsageError: an input cannot be filled from text.
    """
    lengths: dict[int, str] = {}
    for spec in specs:
        place = f"model input '{spec.name}'"
        if spec.name not in FILLED:
            reason = f"text fills only {', '.join(FILLED)}"
            raise UsageError("text-input-unknown", place, reason, _OTHER_SOURCES)
        if len(spec.shape) != 2:
            reason = f"text fills shapes [batch, sequence], not {format_shape(spec.shape)}"
            raise UsageError("text-input-unknown", place, reason, _OTHER_SOURCES)
        if isinstance(spec.shape[1], int):
            lengths[spec.shape[1]] = spec.name
    ids = next((spec for spec in specs if spec.name == "input_ids"), None)
    if ids is None:
        raise UsageError("text-input-unknown", "model", "it has no input_ids", _OTHER_SOURCES)
    if len(lengths) > 1:
        reason = f"its inputs have several fixed lengths ({', '.join(map(str, sorted(lengths)))})"
        raise UsageError("text-input-unknown", "model", reason, _OTHER_SOURCES)
    fixed = next(iter(lengths), None)
    batch = ids.shape[0] if isinstance(ids.shape[0], int) else 1
    masked = any(spec.name == "attention_mask" for spec in specs)
    even = not masked and (fixed is not None or batch > 1)
    limit = max_length if fixed is None else fixed if even else min(max_length, fixed)
    return TextShape(batch, fixed, limit, chunk or even, masked)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json (or in a folder with one); it neither pads nor truncates.

    Raises:
        UsageError: there is no such file, or it is no tokenizer.
        EnvironmentProblem: the package `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        reason = "text needs the package 'tokenizers', which is not installed"
        remedy = "pip install 'mmcompile[text]'"
        raise EnvironmentProblem("tokenizers-missing", path, reason, remedy) from error
    file = path / "tokenizer.json" if path.is_dir() else path
    remedy = "give the tokenizer.json that belongs to the model"
    if not file.is_file():
        raise UsageError("tokenizer-missing", file, "there is no such file", remedy)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more specific
        reason = f"it is no tokenizer: {error}"
        raise UsageError("tokenizer-unreadable", file, reason, remedy) from error
    return tokenizer


def read_text(
    path: Path, specs: Sequence[InputSpec], tokenizer_path: Path, shape: TextShape
) -> Iterator[Sample]:
    """Yields samples made from a text file.

    Sequences are as long as their text, at most `shape.limit`, and carry the tokenizer's special
    tokens. They are padded to a fixed length (or to the longest of a fixed batch) and masked. Of
    running text, a rest too short for a chunk is used only where it is all there is and the model
    takes any length. Sequences that do not fill a last fixed batch are left out.

    Args:
        path: a UTF-8 text file.
        specs: the model's inputs.
        tokenizer_path: see `load_tokenizer`.
        shape: see `plan_text`.

    Raises:
        UsageError: the file is no text, or holds too little for one sample.
    """
    tokenizer = load_tokenizer(tokenizer_path)
    padding = _padding(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = tokenizer.num_special_tokens_to_add(False)
    if shape.limit <= special:
        reason = f"{shape.limit} tokens leave no room beside {special} special tokens"
        raise UsageError("text-too-short", path, reason, "allow longer sequences")
    sequences = _chunks if shape.running else _paragraph_tokens
    groups = _groups(sequences(path, tokenizer, shape), shape.batch)
    index = -1
    for index, group in enumerate(groups):
        length = shape.fixed or max(map(len, group))
        feed = {spec.name: _fill(spec, group, length, padding) for spec in specs}
        yield from cut_feed(feed, specs, f"{path}, sample {index}", set())
    if index < 0:
        reason = "it holds too little text for one sample"
        if shape.running:
            reason += f" of {shape.batch} × {shape.limit} tokens"
        raise UsageError("calibration-empty", path, reason, "give more text")


def describe_text(path: Path, shape: TextShape) -> str:
    """The way of cutting as text, for reports.

    Raises:
        UsageError: the file is no text.
    """
    if shape.running:
        return f"chunks of {shape.limit} tokens"
    unit = "paragraphs" if _has_paragraphs(path) else "lines"
    return f"{unit} of at most {shape.limit} tokens"


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        reason = f"it cannot be read as UTF-8 text: {error}"
        remedy = "give a text file, or arrays as .npz, .npy or .json"
        raise UsageError("calibration-unreadable", path, reason, remedy) from error


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two others."""
    runs = itertools.groupby(_lines(path), key=lambda line: bool(line.strip()))
    texts = (is_text for is_text, _ in runs if is_text)
    return len(list(itertools.islice(texts, 2))) > 1


def _encode(tokenizer: Tokenizer, text: str, path: Path, special: bool) -> _Tokens:
    """The tokens of a text, with or without the special tokens around them."""
    try:
        encoding = tokenizer.encode(text, add_special_tokens=special)
    except Exception as error:  # the package raises nothing more specific
        reason = f"the tokenizer cannot encode it: {error}"
        remedy = "give the tokenizer.json that belongs to the model"
        raise UsageError("tokenizer-unfit", path, reason, remedy) from error
    return _Tokens(encoding.ids, encoding.type_ids)


def _paragraph_tokens(path: Path, tokenizer: Tokenizer, shape: TextShape) -> Iterator[_Tokens]:
    """One sequence per paragraph or line, cut off at the limit."""
    whole = _has_paragraphs(path)
    tokenizer.enable_truncation(shape.limit)
    for is_text, lines in itertools.groupby(_lines(path), key=lambda line: bool(line.strip())):
        if not is_text:
            continue
        for text in ["".join(lines)] if whole else lines:
            tokens = _encode(tokenizer, text.strip(), path, special=True)
            if len(tokens):
                yield tokens


def _blocks(path: Path) -> Iterator[str]:
    """The running text in blocks that end where a line does, or else where a word does."""
    rest = ""
    for line in _lines(path):
        rest += line
        while len(rest) >= BLOCK_CHARACTERS:
            end = rest.rfind("\n", 0, BLOCK_CHARACTERS) + 1
            if end == 0:
                end = max(rest.rfind(" ", 0, BLOCK_CHARACTERS), 0) or BLOCK_CHARACTERS
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _chunks(path: Path, tokenizer: Tokenizer, shape: TextShape) -> Iterator[_Tokens]:
    """The running text in sequences of equal length, each with the special tokens around it."""
    before, after = _special_tokens(tokenizer, path)
    body = shape.limit - len(before) - len(after)
    pending = _Tokens([], [])
    found = False
    for block in _blocks(path):
        pending = pending + _encode(tokenizer, block, path, special=False)
        full = len(pending) // body * body
        for start in range(0, full, body):
            found = True
            end = start + body
            yield before + _Tokens(pending.ids[start:end], pending.types[start:end]) + after
        pending = _Tokens(pending.ids[full:], pending.types[full:])
    if not found and len(pending) and (shape.masked or shape.fixed is None) and shape.batch == 1:
        yield before + pending + after


def _special_tokens(tokenizer: Tokenizer, path: Path) -> tuple[_Tokens, _Tokens]:
    """What the tokenizer puts before and after a text."""
    empty = _Tokens([], [])
    if tokenizer.num_special_tokens_to_add(False) == 0:
        return empty, empty
    bare = _encode(tokenizer, "a", path, special=False).ids
    full = _encode(tokenizer, "a", path, special=True)
    for start in range(len(full.ids) - len(bare) + 1):
        end = start + len(bare)
        if full.ids[start:end] == bare:
            return (
                _Tokens(full.ids[:start], full.types[:start]),
                _Tokens(full.ids[end:], full.types[end:]),
            )
    return empty, empty


def _padding(tokenizer: Tokenizer) -> _Padding:
    """How the tokenizer pads; any token serves where none is named, since padding is masked."""
    options = tokenizer.padding or {}
    token = options.get("pad_id")
    if token is None:
        named = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>"))
        token = next((known for known in named if known is not None), 0)
    return _Padding(options.get("direction") == "left", token, options.get("pad_type_id", 0))


def _groups(sequences: Iterator[_Tokens], size: int) -> Iterator[list[_Tokens]]:
    """Runs of `size` sequences; an incomplete last one is left out."""
    while len(group := list(itertools.islice(sequences, size))) == size:
        yield group


def _fill(spec: InputSpec, group: list[_Tokens], length: int, padding: _Padding) -> AnyArray:
    """One input for a batch of sequences, padded to the length."""
    mask = np.zeros((len(group), length), np.int64)
    values = np.zeros((len(group), length), np.int64)
    fillers = {"input_ids": padding.token, "token_type_ids": padding.type}
    values[:] = fillers.get(spec.name, 0)
    for row, tokens in enumerate(group):
        at = slice(length - len(tokens), length) if padding.left else slice(0, len(tokens))
        mask[row, at] = 1
        if spec.name == "input_ids":
            values[row, at] = tokens.ids
        elif spec.name == "token_type_ids":
            values[row, at] = tokens.types
    if spec.name == "attention_mask":
        values = mask
        if number_kind(spec.dtype) == "float":
            return values.astype(spec.dtype)
    elif spec.name == "position_ids":
        values = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        if spec.shape[0] == 1 and (values == values[0]).all():
            values = values[:1]
    return values
