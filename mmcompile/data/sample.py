"""One feed of a model: what the model declares, the checks of a feed, the cut into batch 1.

Everything that calibration reads, from whatever kind of file, passes through `cut`: it compares
stacked arrays with the model's inputs and yields them sample by sample, so that a sample that
leaves here can be fed to the model as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mmcompile.errors import UsageError

AnyArray = npt.NDArray[Any]
Sample = dict[str, AnyArray]
"""One feed: every input of the model by name, with its batch dimension."""

SHARED = 0
"""Rows per sample of an input that is the same, whole array in every sample."""


@dataclass(frozen=True)
class InputSpec:
    """A model input as the ONNX model declares it.

    Attributes:
        name: the input's name.
        dtype: its element type; `ml_dtypes.bfloat16` is possible.
        shape: its dimensions; a string (a symbol) or None is a dynamic one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        """Name, type and shape, e.g. `input_ids int64[batch, 128]`."""
        return f"{self.name} {self.dtype}{format_shape(self.shape)}"


@dataclass(frozen=True)
class Stack:
    """An array whose first axis may stack samples, wherever its bytes lie.

    Attributes:
        dtype: element type as stored.
        shape: shape of the whole array.
        rows: `rows(n)` yields runs of n entries of the first axis, in order, to the end.
        whole: gives the whole array.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: Callable[[int], Iterator[AnyArray]]
    whole: Callable[[], AnyArray]


def format_shape(shape: Sequence[int | str | None]) -> str:
    """A shape as text, `?` for a dimension without a name."""
    return f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def stack_of(array: AnyArray) -> Stack:
    """The stack over an array in memory; its rows are views."""

    def rows(size: int) -> Iterator[AnyArray]:
        for start in range(0, len(array), size):
            yield array[start : start + size]

    return Stack(array.dtype, array.shape, rows, lambda: array)


def cut_feed(
    feed: object, specs: Sequence[InputSpec], where: str, rounded: set[str]
) -> Iterator[Sample]:
    """Checks one feed in memory and cuts it into samples.

    Args:
        feed: a mapping of input names to whatever numpy takes as an array, or a torch tensor.
        specs: the model's inputs.
        where: the file and item, for errors.
        rounded: see `cut`.

    Raises:
        UsageError: the feed does not fit the model.
    """
    items = getattr(feed, "items", None)
    if items is None:
        reason = f"a sample is a {type(feed).__name__}, not a dict of arrays by input name"
        raise UsageError("calibration-sample", where, reason, _expected(specs))
    stacks = {
        str(name): stack_of(_as_array(value, f"{where}, input '{name}'")) for name, value in items()
    }
    yield from cut(stacks, specs, where, rounded)


def cut(
    stacks: Mapping[str, Stack], specs: Sequence[InputSpec], where: str, rounded: set[str]
) -> Iterator[Sample]:
    """Checks stacked arrays against the model's inputs and yields them sample by sample.

    The first axis is the batch. It is cut into ones where the model's batch is dynamic, else into
    the model's fixed batch. Scalars, inputs of a fixed size that are given once, and inputs whose
    first axis is another one's later axis (positions of the sequence) go whole into each sample.

    Args:
        stacks: the arrays by input name.
        specs: the model's inputs.
        where: their file, for errors.
        rounded: receives what was rounded to a narrower floating-point type, in words.

    Raises:
        UsageError: an input is missing, unknown, or of a shape, type or value that does not fit.
    """
    rows, count = _batching(stacks, specs, where)
    readers = {
        name: itertools.repeat(stacks[name].whole()) if size == SHARED else stacks[name].rows(size)
        for name, size in rows.items()
    }
    for index in range(count):
        place = f"{where}, sample {index}" if count > 1 else where
        sample = {
            spec.name: _conform(
                next(readers[spec.name]), spec, f"{place}, input '{spec.name}'", rounded
            )
            for spec in specs
        }
        _check_symbols(sample, specs, place)
        yield sample


def count_samples(stacks: Mapping[str, Stack], specs: Sequence[InputSpec], where: str) -> int:
    """How many samples `cut` makes of the stacks; reads no data.

    Raises:
        UsageError: an input is missing, unknown or of a shape that does not fit.
    """
    return _batching(stacks, specs, where)[1]


def is_batch(axis: int, spec: InputSpec, specs: Sequence[InputSpec]) -> bool:
    """Whether an axis of an input is its batch.

    The first axis is, unless its symbol is what other inputs have further inside (a sequence) and
    not what leads the first input of two or more dimensions.
    """
    if axis != 0 or not spec.shape:
        return False
    symbol = spec.shape[0]
    leads = [other.shape[0] for other in specs if len(other.shape) > 1]
    if not isinstance(symbol, str) or not leads or symbol == leads[0]:
        return True
    return not any(symbol in other.shape[1:] for other in specs)


def check_specs(specs: Sequence[InputSpec]) -> None:
    """Refuses models whose inputs calibration cannot feed.

    Raises:
        UsageError: there is no input, or one that holds neither integers nor floats.
    """
    remedy = "calibration needs a model whose inputs are tensors of integers or floats"
    if not specs:
        raise UsageError("input-unsupported", "model", "it has no inputs", remedy)
    for spec in specs:
        if number_kind(spec.dtype) is None:
            reason = f"its element type {spec.dtype} cannot be fed"
            raise UsageError("input-unsupported", f"model input '{spec.name}'", reason, remedy)


def number_kind(dtype: np.dtype[Any]) -> Literal["integer", "float"] | None:
    """Whether a type holds integers (bool counts) or floats (ml_dtypes' count); else None."""
    if dtype.kind in "biu":
        return "integer"
    return "float" if "float" in dtype.name else None


def _expected(specs: Sequence[InputSpec]) -> str:
    return "the model's inputs are " + ", ".join(map(str, specs))


def _as_array(value: object, place: str) -> AnyArray:
    """A feed's value as an array of numbers; torch tensors come from any device and type."""
    try:
        if hasattr(value, "detach"):
            tensor = value.detach().cpu()
            # numpy has no bfloat16 of torch's; float32 holds its values exactly.
            value = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"no array: {error}"
        raise UsageError("calibration-dtype", place, reason, "give a numpy array") from error
    return array


def _batching(
    stacks: Mapping[str, Stack], specs: Sequence[InputSpec], where: str
) -> tuple[dict[str, int], int]:
    """Rows of each input per sample (or `SHARED`), and the number of samples."""
    names = [spec.name for spec in specs]
    for name in stacks:
        if name not in names:
            reason = f"the model has no input '{name}'"
            raise UsageError("calibration-inputs", where, reason, _expected(specs))
    rows: dict[str, int] = {}
    counts: dict[str, int] = {}
    for spec in specs:
        if spec.name not in stacks:
            reason = f"input '{spec.name}' is missing"
            raise UsageError("calibration-inputs", where, reason, _expected(specs))
        shape = stacks[spec.name].shape
        place = f"{where}, input '{spec.name}'"
        batched = is_batch(0, spec, specs)
        _check_shape(shape, spec, place, skip=1 if batched else 0)
        first = spec.shape[0] if batched else None
        size = first if isinstance(first, int) else 1
        if not batched:
            rows[spec.name] = SHARED
        elif shape[0] % max(size, 1):
            reason = f"{shape[0]} rows are no multiple of the model's fixed batch of {size}"
            remedy = f"give whole batches of shape {format_shape(spec.shape)}"
            raise UsageError("calibration-shape", place, reason, remedy)
        else:
            rows[spec.name] = size
            counts[spec.name] = shape[0] // size if size else 0
    count = max(counts.values(), default=1)
    for spec in specs:
        if counts.get(spec.name, count) == count:
            continue
        if counts[spec.name] == 1 and isinstance(spec.shape[0], int):
            rows[spec.name] = SHARED
            continue
        other = next(name for name, value in counts.items() if value == count)
        reason = f"it holds {counts[spec.name]} samples, input '{other}' holds {count}"
        remedy = "give every input as many rows"
        raise UsageError("calibration-shape", f"{where}, input '{spec.name}'", reason, remedy)
    if count == 0:
        remedy = "give at least one sample"
        raise UsageError("calibration-empty", where, "its arrays hold no sample", remedy)
    return rows, count


def _check_shape(shape: tuple[int, ...], spec: InputSpec, place: str, skip: int) -> None:
    """Refuses a wrong rank or fixed dimension; the first `skip` axes are of any size."""
    fits = len(shape) == len(spec.shape) and all(
        size == dim
        for size, dim in zip(shape[skip:], spec.shape[skip:], strict=True)
        if isinstance(dim, int)
    )
    if not fits:
        reason = f"its shape is {format_shape(shape)}, the model expects {format_shape(spec.shape)}"
        remedy = "give arrays of the model's rank and fixed sizes, the batch on the first axis"
        raise UsageError("calibration-shape", place, reason, remedy)


def _check_symbols(sample: Sample, specs: Sequence[InputSpec], where: str) -> None:
    """Refuses inputs that disagree about a dimension to which the model gives one name."""
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for size, dim in zip(sample[spec.name].shape, spec.shape, strict=True):
            if not isinstance(dim, str):
                continue
            known, name = seen.setdefault(dim, (size, spec.name))
            if known != size:
                reason = f"dimension '{dim}' is {size}, but {known} in input '{name}'"
                remedy = "give both inputs the same size"
                raise UsageError(
                    "calibration-shape", f"{where}, input '{spec.name}'", reason, remedy
                )


def _conform(array: AnyArray, spec: InputSpec, place: str, rounded: set[str]) -> AnyArray:
    """The array in the model's type, after the checks of its values.

    Floats are rounded where the model's type is narrower, as the model's user would have to.
    """
    if spec.dtype.kind == "V" and array.dtype == np.dtype(f"V{spec.dtype.itemsize}"):
        # numpy's file format knows no bfloat16: it stores such arrays as raw bytes of that size.
        array = array.view(spec.dtype)
    kind = number_kind(array.dtype)
    if kind is None or kind != number_kind(spec.dtype):
        reason = f"its type is {array.dtype}, the model expects {spec.dtype}"
        remedy = f"save it as {spec.dtype}"
        raise UsageError("calibration-dtype", place, reason, remedy)
    _check_values(array, spec, place, kind)
    if array.dtype == spec.dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype)
    if _is_lossless(array, cast):
        return cast
    if kind == "float" and not _overflows(array, cast, spec):
        rounded.add(f"{spec.name} rounded from {array.dtype} to {spec.dtype}")
    else:
        reason = f"{spec.dtype} cannot hold its {array.dtype} values exactly"
        remedy = f"convert it yourself: x.astype({spec.dtype}) before saving"
        raise UsageError("calibration-dtype", place, reason, remedy)
    return cast


def _check_values(array: AnyArray, spec: InputSpec, place: str, kind: str) -> None:
    """Refuses values that no sound feed holds."""
    reason = ""
    remedy = "correct or drop this sample"
    if kind == "float":
        # An additive mask holds -inf where attention is barred.
        bad = ~np.isfinite(array)
        if "mask" in spec.name:
            bad &= array != -np.inf
        if bad.any():
            position = [int(i) for i in np.unravel_index(int(bad.argmax()), array.shape)]
            reason = f"{array[tuple(position)]} at {position}"
    elif spec.name.endswith(("input_ids", "token_type_ids")) and array.size and array.min() < 0:
        reason = f"token id {array.min()} is negative"
        remedy = "give the ids that the tokenizer makes; -100 marks labels, not inputs"
    elif spec.name == "attention_mask" and array.size and not array.any():
        reason = "it masks every token"
    if reason:
        raise UsageError("calibration-values", place, reason, remedy)


def _overflows(array: AnyArray, cast: AnyArray, spec: InputSpec) -> bool:
    """Whether a number became an infinity; the lowest ones of a mask may."""
    grown = np.isfinite(array) & ~np.isfinite(cast)
    if "mask" in spec.name:
        grown &= cast != -np.inf
    return bool(grown.any())


def _is_lossless(array: AnyArray, cast: AnyArray) -> bool:
    """Whether a cast within integers or within floats kept every value (no NaN among them)."""
    if cast.dtype.kind in "iu" and array.dtype.kind != "b" and array.size:
        # The way back would wrap around unseen, so the range is compared.
        limits = np.iinfo(cast.dtype)
        return bool(limits.min <= int(array.min()) and int(array.max()) <= limits.max)
    return bool(np.array_equal(cast.astype(array.dtype), array))
